"""What the Amazon review dumps of 2014 and 2018 share; `amazon2014.py` and `amazon2018.py` are the sources.

Users and items stand in the order of their appearance among the reviews that are kept. The reviews file is
read twice, first for the numbers, then for the texts of the reviews that are kept, so that no other text is
ever held. Shapes: N reviews of the file, K kept ones.
"""

from __future__ import annotations

import logging
import re
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from recloom.data_shards.cards import with_notes
from recloom.data_shards.errors import UserError
from recloom.data_shards.sources.amazon_items import item_table, read_items, text_of
from recloom.data_shards.sources.dump_lines import read_lines, read_records, whole_text
from recloom.data_shards.sources.k_core import k_core
from recloom.data_shards.tables import Tables, assemble_tables

FILE_NAME = re.compile(r"(?:reviews_|meta_)?(?P<category>.+?)(?:_5)?\.jsonl?(?:\.gz)?")
TEXTS = {"review": "reviewText", "summary": "summary"}
CHUNK = 2**16  # reviews whose texts wait in Python before they go into an Arrow array
MOST_BYTES = 2**31 - 1  # of a string column

log = logging.getLogger(__name__)


class AmazonSettings(BaseModel):
    """The settings of both sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        default=None,
        description="Folder with one category's reviews file and its meta_NAME file, named as downloaded.",
    )
    reviews: str | None = Field(default=None, description="The reviews file, instead of path.")
    meta: str | None = Field(
        default=None, description="The metadata file beside reviews; left out, items have only their key."
    )
    threshold: int = Field(
        default=5, ge=0, description="Users and items with fewer reviews are dropped; 0 keeps all."
    )
    mode: Literal["single_pass", "iterated"] = Field(
        default="single_pass",
        description="single_pass drops once, by the counts in the file (A-LLMRec); iterated again and again, "
        "after all other dropping (k-core).",
    )
    drop_untitled: bool = Field(
        default=False,
        description="Drop items without a title (Laser); otherwise their key is their title.",
    )
    texts: bool = Field(
        default=True,
        description="Keep the reviews' text and summary; false saves half the reading, and gigabytes on the "
        "large categories.",
    )

    @model_validator(mode="after")
    def check_files(self) -> AmazonSettings:
        if (self.path is None) == (self.reviews is None):
            raise ValueError("set either path (a folder) or reviews (a file)")
        if self.meta is not None and self.reviews is None:
            raise ValueError("meta is set without reviews: set both, or path alone")
        if self.drop_untitled and self.reviews is not None and self.meta is None:
            raise ValueError("drop_untitled needs the titles: set meta, or drop_untitled to false")
        return self


@dataclass(frozen=True)
class Reviews:
    """The numbers of a reviews file in file order; codes count the keys by first appearance."""

    user_keys: list[str]
    item_keys: list[str]
    user_N: np.ndarray
    item_N: np.ndarray
    rating_N: np.ndarray
    time_N: np.ndarray

    def items_of(self, index_K: np.ndarray) -> set[str]:
        return {self.item_keys[code] for code in np.unique(self.item_N[index_K])}

    def columns(self, index_K: np.ndarray) -> dict[str, pa.Array]:
        """user_key, item_key, rating and timestamp of the reviews `index_K`."""
        return {
            "user_key": pa.array(self.user_keys, pa.string()).take(pa.array(self.user_N[index_K])),
            "item_key": pa.array(self.item_keys, pa.string()).take(pa.array(self.item_N[index_K])),
            "rating": pa.array(self.rating_N[index_K], pa.float32()),
            "timestamp": pa.array(self.time_N[index_K], pa.int64()),
        }


def load_dump(settings: AmazonSettings, year: int, literals: bool) -> Tables:
    """Read one category; raises UserError when files are missing or malformed.

    Of several reviews of one item by one user the latest stays, the later line where they are of one second.
    `literals` allows lines that are Python dicts.
    """
    path, meta = find_files(settings)
    name = f"Amazon {year} {category_of(path).replace('_', ' ')}"
    reviews = read_reviews(path, literals)
    index_K = often_enough(name, settings, reviews)
    items = {} if meta is None else read_items(meta, literals, reviews.items_of(index_K))
    index_K, notes = titled(settings, meta, reviews, items, index_K)
    latest_K = latest(reviews, index_K)
    dropped = len(index_K) - len(latest_K)
    notes.append(f"earlier reviews of an item by the same user that were dropped: {dropped:,}")
    index_K = core(name, settings, reviews, latest_K)
    texts = read_texts(path, literals, index_K) if settings.texts else {}
    rows = pa.table({**reviews.columns(index_K), **texts})
    users = pa.table({"user_key": rows["user_key"].unique()})
    tables = assemble_tables(name, rows, item_table(rows["item_key"].unique().to_pylist(), items), users)
    return with_notes(tables, notes)


def find_files(settings: AmazonSettings) -> tuple[Path, Path | None]:
    """The reviews file and the metadata file, with a warning where there is none of the latter."""
    if settings.reviews is not None:
        reviews = Path(settings.reviews).expanduser()
        meta = None if settings.meta is None else Path(settings.meta).expanduser()
        remedy = "set data.meta"
    else:
        folder = Path(settings.path or "").expanduser()
        reviews = the_reviews(folder)
        name = f"meta_{category_of(reviews)}.json"
        meta = next((folder / file for file in (f"{name}.gz", name) if (folder / file).is_file()), None)
        remedy = f"put {name}.gz into data.path"
    if meta is None and settings.drop_untitled:
        raise UserError(f"data.drop_untitled is true, but no metadata tell the titles: {remedy}.")
    if meta is None:
        log.warning(
            "%s: no metadata file, so the items' keys stand in for their titles: %s.", reviews, remedy
        )
    return reviews, meta


def the_reviews(folder: Path) -> Path:
    """The one file of the folder that has the name of a reviews file."""
    if not folder.is_dir():
        raise UserError(f"data.path is {folder}, no such folder: set it to the folder with the reviews file.")
    names = [path.name for path in sorted(folder.iterdir()) if FILE_NAME.fullmatch(path.name)]
    names = [name for name in names if not name.startswith(("meta_", "."))]
    if not names:
        raise UserError(f"data.path is {folder}, which holds no reviews file: put NAME_5.json.gz there.")
    if len(names) > 1:
        raise UserError(
            f"data.path is {folder}, where {', '.join(names)} could be the reviews: "
            "set data.reviews and data.meta instead."
        )
    return folder / names[0]


def category_of(path: Path) -> str:
    match = FILE_NAME.fullmatch(path.name)
    return match["category"] if match else path.stem


def read_reviews(path: Path, literals: bool) -> Reviews:
    """The numbers of every review; raises UserError that names the first line that is none."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_codes, item_codes, ratings, times = array("i"), array("i"), array("d"), array("q")
    for record in read_records(path, literals):
        user, item = record.key("reviewerID"), record.key("asin")
        ratings.append(record.number("overall"))
        times.append(record.whole_number("unixReviewTime"))
        user_codes.append(users.setdefault(user, len(users)))
        item_codes.append(items.setdefault(item, len(items)))
    if not times:
        raise UserError(f"{path}: the file holds no review: download it again.")
    numbers = (np.array(column) for column in (user_codes, item_codes, ratings, times))
    return Reviews(list(users), list(items), *numbers)


def often_enough(name: str, settings: AmazonSettings, reviews: Reviews) -> np.ndarray:
    """The reviews that a single pass leaves: user and item have enough reviews in the whole file."""
    if settings.mode == "iterated":
        return np.arange(len(reviews.time_N))
    enough_N = np.ones(len(reviews.time_N), bool)
    for code_N in (reviews.user_N, reviews.item_N):
        enough_N &= np.bincount(code_N)[code_N] >= settings.threshold
    if not enough_N.any():
        raise nothing_left(name, settings)
    return np.flatnonzero(enough_N)


def nothing_left(name: str, settings: AmazonSettings) -> UserError:
    return UserError(
        f"data.threshold is {settings.threshold}, which leaves no interaction of {name}: lower it."
    )


def titled(
    settings: AmazonSettings,
    meta: Path | None,
    reviews: Reviews,
    items: dict[str, dict[str, str]],
    index_K: np.ndarray,
) -> tuple[np.ndarray, list[str]]:
    """The reviews without those that drop_untitled drops, and what the dataset card says about titles."""
    code_K = reviews.item_N[index_K]
    without = [code for code in np.unique(code_K) if not items.get(reviews.item_keys[code], {}).get("title")]
    if meta is not None and len(without) == len(np.unique(code_K)):
        raise UserError(f"{meta}: it titles none of the items: take it from the same dump as the reviews.")
    if not settings.drop_untitled:
        return index_K, [f"items without a title, whose key stands in: {len(without):,}"]
    kept_K = index_K[~np.isin(code_K, without)]
    lost = len(index_K) - len(kept_K)
    return kept_K, [f"items without a title that were dropped: {len(without):,}, with {lost:,} reviews"]


def latest(reviews: Reviews, index_K: np.ndarray) -> np.ndarray:
    """The last review of every user and item, in file order."""
    user_K, item_K = reviews.user_N[index_K], reviews.item_N[index_K]
    order_K = np.lexsort((reviews.time_N[index_K], item_K, user_K))
    user_K, item_K = user_K[order_K], item_K[order_K]
    last_K = np.append((user_K[1:] != user_K[:-1]) | (item_K[1:] != item_K[:-1]), True)
    return np.sort(index_K[order_K[last_K]])


def core(name: str, settings: AmazonSettings, reviews: Reviews, index_K: np.ndarray) -> np.ndarray:
    """The reviews of the iterated core; all of them in the other mode."""
    if settings.mode == "single_pass":
        return index_K
    codes = {"user_key": reviews.user_N[index_K], "item_key": reviews.item_N[index_K], "index": index_K}
    try:
        return k_core(name, pa.table(codes), settings.threshold)["index"].to_numpy()
    except UserError:  # its sentence names the setting of other sources
        raise nothing_left(name, settings) from None


def read_texts(path: Path, literals: bool, index_K: np.ndarray) -> dict[str, pa.ChunkedArray]:
    """The columns review and summary of the reviews `index_K`, "" where the dump has none."""
    chunks: dict[str, list[pa.Array]] = {name: [] for name in TEXTS}
    waiting: dict[str, list[str]] = {name: [] for name in TEXTS}
    wanted = iter(index_K.tolist())
    index = next(wanted, None)
    for number, line in enumerate(read_lines(path)):
        if number != index:
            continue
        index = next(wanted, None)
        values = line.parse(literals).values
        for name, field in TEXTS.items():
            waiting[name].append(whole_text(text_of(values.get(field))))
            if len(waiting[name]) == CHUNK or index is None:
                chunks[name].append(pa.array(waiting[name], pa.string()))
                waiting[name] = []
                check_size(path, chunks[name])
    return {name: pa.chunked_array(chunks[name], pa.string()) for name in TEXTS}


def check_size(path: Path, chunks: list[pa.Array]) -> None:
    """A string column of Arrow ends at 2 GiB."""
    size = sum(chunk.nbytes for chunk in chunks)
    if size > MOST_BYTES:
        raise UserError(
            f"{path}: the texts of the reviews exceed the {MOST_BYTES:,} bytes of a column: "
            "set data.texts to false or raise data.threshold."
        )
