"""BookCrossing (Ziegler et al. 2005), as the official dump or as its comma separated variant.

Only explicit ratings (1 to 10) of books that BX-Books lists are kept, then the k-core. Neither the order
of the rows nor the format matters: users and items are sorted by their keys, and the histories, which
have no times, stand in a seeded random order.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from pydantic import BaseModel, ConfigDict, Field

from recloom.data_shards.errors import UserError
from recloom.data_shards.read_columns import as_strings, check_filled, check_header, numbers, read_columns
from recloom.data_shards.sources.k_core import k_core, key_codes
from recloom.data_shards.tables import Tables, assemble_tables

NAME = "BookCrossing"
BOOKS, USERS = "BX-Books.csv", "BX-Users.csv"
RATING_COLUMNS = {"user_key": "User-ID", "item_key": "ISBN", "rating": "Book-Rating"}
LARGEST_RATING = 10
# People typed their ages, up to 244. Years are 0 where unknown; the crawl is of autumn 2004.
AGES = range(5, 101)
YEARS = range(1450, 2006)
UNKNOWN = re.compile(r"\W*(n/a|null|not applicable \(na ?)?\W*", re.IGNORECASE)
LOST_BYTE = re.compile("Ã\\?Â([\x80-\xbf?])")
BETWEEN, QUOTE, BACKSLASH = b"\x1f", b"\x1e", b"\x1d"  # control characters that no field holds


class Settings(BaseModel):
    """The `data` block of a config with `source: bookcrossing`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        description="Folder with the official dump (BX-Book-Ratings.csv, BX-Books.csv, BX-Users.csv) or with "
        "its comma separated variant (BX-Ratings.csv instead)."
    )
    min_interactions: int = Field(
        default=5,
        ge=0,
        description="Users and items with fewer ratings are dropped, again and again (k-core); 0 keeps all.",
    )
    order_seed: int = Field(default=2024, ge=0, description="Seed of the histories' random order.")


@dataclass(frozen=True)
class Layout:
    """One format of the three files. `read(path, wanted, skip)` gives string columns; `skip` allows it to
    leave out lines with too many or too few fields."""

    ratings: str
    read: Callable[[Path, Mapping[str, str], bool], pa.Table]
    publisher: str
    places: tuple[str, ...]
    age: str

    @property
    def book_columns(self) -> dict[str, str]:
        names = ("ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", self.publisher)
        return dict(zip(("item_key", "title", "author", "year", "publisher"), names, strict=True))

    @property
    def user_columns(self) -> dict[str, str]:
        return {"user_key": "User-ID", **{place: place for place in self.places}, "age": self.age}


def load(settings: Settings, cache: Path) -> Tables:
    """Read either format; raises UserError when files are missing or malformed. `cache` is not used.

    A user without a row in BX-Users stays, with empty attributes. Of two ratings of one book by one user
    the higher one stays.
    """
    folder = Path(settings.path).expanduser()
    layout = find_layout(folder)
    ratings = explicit_ratings(folder / layout.ratings, layout)
    books = layout.read(folder / BOOKS, layout.book_columns, True)
    books = books.set_column(0, "item_key", clean_keys(books["item_key"]))
    rows = rows_with_book(folder, ratings, books)
    core = k_core(NAME, rows, settings.min_interactions)
    core = core.append_column("timestamp", pa.array(random_positions(core, settings.order_seed)))
    users = layout.read(folder / USERS, layout.user_columns, True)
    users = users.set_column(0, "user_key", clean_keys(users["user_key"]))
    return assemble_tables(NAME, core, book_table(books, core), user_table(users, core, layout))


def find_layout(folder: Path) -> Layout:
    """The format whose ratings file the folder holds, the official one first."""
    if not folder.is_dir():
        raise UserError(f"data.path is {folder}, no such folder: set it to the folder with {BOOKS}.")
    found = [layout for layout in LAYOUTS if (folder / layout.ratings).is_file()]
    missing = [] if found else [" or ".join(layout.ratings for layout in LAYOUTS)]
    missing += [name for name in (BOOKS, USERS) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"data.path is {folder}, which lacks {', '.join(missing)}: put the files there.")
    return found[0]


def read_official(path: Path, wanted: Mapping[str, str], skip: bool) -> pa.Table:
    """Semicolons, latin-1, every field but NULL in double quotes."""
    data = separated(path.read_bytes())
    check_header(path, wanted, data.split(b"\n", 1)[0].decode("latin-1").split(BETWEEN.decode()))
    parse = csv.ParseOptions(
        delimiter=BETWEEN.decode(),
        quote_char=False,
        invalid_row_handler=lambda row: "skip" if skip else "error",
    )
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(wanted.values(), pa.string()), include_columns=list(wanted.values())
    )
    try:
        read = csv.ReadOptions(encoding="latin-1")
        table = csv.read_csv(pa.BufferReader(data), read, parse, convert)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not in the format of {NAME} ({reason}): unpack the files again.") from None
    return as_strings(table, wanted)


def separated(data: bytes) -> bytes:
    """The official format with BETWEEN for `";"`, without outer quotes and escapes, one record a line.

    A field may hold semicolons, line breaks and, behind a backslash, quotes. No record runs over its end, as
    it may for a CSV parser, where a quote is missing.
    """
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b" ").strip()
    data = data.replace(b"\\\\", BACKSLASH).replace(b'\\"', QUOTE)
    data = re.sub(b"\n\n+", b"\n", data)
    data = re.sub(b'\n(?!")', b" ", data)
    data = re.sub(b";NULL(?=[;\n]|$)", b';"NULL"', data)
    data = data.replace(b'";"', BETWEEN).replace(b'\n"', b"\n").replace(b'"\n', b"\n")
    data = data.removeprefix(b'"').removesuffix(b'"') + b"\n"
    return data.replace(QUOTE, b'"').replace(BACKSLASH, b"\\")


def read_commas(path: Path, wanted: Mapping[str, str], skip: bool) -> pa.Table:
    """An ordinary CSV, made from the official one by a parser that did not know the backslash.

    From `"\\"O\\" Is for Outlaw"` it took the opening quote for the whole field, so that the first inner
    quote was lost and one was added at the end: `\\O\\" Is for Outlaw"`. Both are put right here, before the
    backslashes go.
    """
    table = read_columns(path, "csv", wanted, ",", "utf-8")
    for number, name in enumerate(table.column_names):
        mended = pc.replace_substring_regex(table[name], r'^([^\\]*)\\([^"\\].*)"$', r'\1\\"\2')
        table = table.set_column(number, name, pc.replace_substring(mended, '\\"', '"'))
    return table


LAYOUTS = (
    Layout("BX-Book-Ratings.csv", read_official, "Publisher", ("Location",), "Age"),
    Layout(
        "BX-Ratings.csv",
        read_commas,
        "Book-Publisher",
        ("User-City", "User-State", "User-Country"),
        "User-Age",
    ),
)


def clean_keys(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys without stray quotes (`\\"0432534220\\"`), the check digit x of an ISBN as X."""
    return pc.utf8_upper(pc.utf8_trim(values, characters=' "\\'))


def explicit_ratings(path: Path, layout: Layout) -> pa.Table:
    """user_key, item_key, rating of the ratings 1 to 10, one row a user and book."""
    rows = layout.read(path, RATING_COLUMNS, False)
    rating_N = numbers(path, "rating", rows["rating"])
    bad_N = np.flatnonzero((rating_N < 0) | (rating_N > LARGEST_RATING) | (rating_N % 1 != 0))
    if len(bad_N):
        raise UserError(
            f"{path}: data row {bad_N[0] + 1}: rating is {rating_N[bad_N[0]]:g}, it must be a whole number "
            f"from 0 (implicit) to {LARGEST_RATING}: mend or drop it."
        )
    keys = {name: clean_keys(rows[name]) for name in ("user_key", "item_key")}
    for name, values in keys.items():
        check_filled(path, RATING_COLUMNS[name], values)
    rows = pa.table({**keys, "rating": pa.array(rating_N, pa.float32())}).filter(pa.array(rating_N > 0))
    if rows.num_rows == 0:
        raise UserError(f"{path}: no rating is from 1 to {LARGEST_RATING}: explicit ratings are needed.")
    best = rows.group_by(list(keys), use_threads=False).aggregate([("rating", "max")])
    return best.select([*keys, "rating_max"]).rename_columns([*keys, "rating"])


def rows_with_book(folder: Path, ratings: pa.Table, books: pa.Table) -> pa.Table:
    rows = ratings.filter(pc.is_in(ratings["item_key"], value_set=books["item_key"].combine_chunks()))
    if rows.num_rows == 0:
        raise UserError(f"{folder / BOOKS}: no rated ISBN has a row: take it from the same dump.")
    return rows


def random_positions(rows: pa.Table, seed: int) -> np.ndarray:
    """The place of every row in its user's history, int64 from 0.

    A history is sorted by a hash of seed, user and ISBN: it depends on no other user and no file order.
    """
    pairs = zip(rows["user_key"].to_pylist(), rows["item_key"].to_pylist(), strict=True)
    digests = [hashlib.blake2b(f"{seed}\n{u}\n{i}".encode(), digest_size=8).digest() for u, i in pairs]
    user_N = key_codes(rows["user_key"])
    order_N = np.lexsort((np.frombuffer(b"".join(digests), np.uint64), user_N))
    sorted_N = user_N[order_N]
    position_N = np.empty(len(user_N), np.int64)
    position_N[order_N] = np.arange(len(user_N)) - np.searchsorted(sorted_N, sorted_N)
    return position_N


def described(table: pa.Table, rows: pa.Table) -> list[dict[str, str]]:
    """The table's row of every key that `rows` name, in the order of the keys, "" where it has none."""
    key = table.column_names[0]
    kept = table.filter(pc.is_in(table[key], value_set=rows[key].unique()))
    # Of rows with the same key, that which comes last in the alphabet stays, wherever it stands in the file.
    by_key = {
        row[key]: row for row in kept.sort_by([(name, "ascending") for name in kept.column_names]).to_pylist()
    }
    keys = sorted(rows[key].unique().to_pylist(), key=lambda text: (len(text), text))
    empty = dict.fromkeys(table.column_names, "")
    return [by_key.get(text, {**empty, key: text}) for text in keys]


def book_table(books: pa.Table, rows: pa.Table) -> pa.Table:
    """item_key, title (the ISBN where there is none), author, year, publisher."""
    found = [
        {
            "item_key": book["item_key"],
            "title": clean_text(book["title"]) or book["item_key"],
            "author": known_text(book["author"]),
            "year": known_number(book["year"], YEARS),
            "publisher": known_text(book["publisher"]),
        }
        for book in described(books, rows)
    ]
    return pa.Table.from_pylist(found)


def user_table(users: pa.Table, rows: pa.Table, layout: Layout) -> pa.Table:
    """user_key, location ("ottawa, ontario, canada"), country (its last part), age."""
    found = []
    for user in described(users, rows):
        parts = ",".join(user[place] for place in layout.places).split(",")
        places = [known_text(part.strip(' "\\')) for part in parts]
        found.append(
            {
                "user_key": user["user_key"],
                "location": ", ".join(filter(None, places)),
                "country": places[-1] if len(places) >= 3 else "",
                "age": known_number(user["age"], AGES),
            }
        )
    return pa.Table.from_pylist(found)


def known_number(text: str, plausible: range) -> str:
    digits = text.strip(' "\\')
    return str(int(digits)) if digits.isdecimal() and int(digits) in plausible else ""


def known_text(text: str) -> str:
    """The clean text, "" for the dump's ways to say that nothing is known."""
    text = clean_text(text)
    return "" if UNKNOWN.fullmatch(text) else text


def clean_text(text: str) -> str:
    """One line without HTML entities and broken letters."""
    return " ".join(html.unescape(mend_letters(text)).split())


def mend_letters(text: str) -> str:
    """Letters in UTF-8 that was read as latin-1, once ("Ã©" is é) or more often.

    Where that happened twice, the dump has "?" for some bytes: "Ã?Â¼" is ü, "Ã?Â?" could be 32 letters
    and becomes "?".
    """
    while not text.isascii():
        try:
            text = text.encode("latin-1").decode("utf-8")
        except UnicodeError:
            break
    return LOST_BYTE.sub(lambda match: mended_letter(match[1]), text)


def mended_letter(last: str) -> str:
    return last if last == "?" else bytes([0xC3, ord(last)]).decode("utf-8")
