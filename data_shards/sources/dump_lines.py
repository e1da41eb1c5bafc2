"""A dump of one object a line, gzip or plain, JSON or Python literals: read with one line in memory."""

from __future__ import annotations

import ast
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from recloom.data_shards.errors import UserError

GZIP = b"\x1f\x8b"
BAR_DELAY = 3  # seconds until a file gets a progress bar
BAR_STEP = 1000  # lines between its updates
LARGEST = 2**53  # beyond it, floats are no exact whole numbers
NOT_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


@dataclass(frozen=True)
class Line:
    """A line of `path` that is not blank; `number` counts all lines from 1."""

    path: Path
    number: int
    data: bytes

    def error(self, what: str, remedy: str) -> UserError:
        return UserError(f"{self.path}: line {self.number}: {what}: {remedy}.")

    def parse(self, literals: bool) -> Record:
        """The line's object; `literals` allows Python dicts too, as Python 2 printed them."""
        try:
            text = self.data.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error.reason})", "unpack or download the file again") from None
        values = parse_object(text.strip(), literals)
        if values is None:
            kind = "neither a JSON object nor a Python dict" if literals else "no JSON object"
            raise self.error(kind, "drop the line or download the file again")
        return Record(self, values)


@dataclass(frozen=True)
class Record:
    """The object of a line, with checks that name the line."""

    line: Line
    values: dict[str, Any]

    def key(self, field: str) -> str:
        """A text that is not empty."""
        value = self.present(field)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(field, "must be a text that is not empty")
        return whole_text(value)

    def number(self, field: str) -> float:
        value = self.present(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
            raise self.wrong(field, "must be a number")
        return value

    def whole_number(self, field: str) -> int:
        value = self.number(field)
        if value % 1:
            raise self.wrong(field, "must be a whole number")
        return int(value)

    def present(self, field: str) -> Any:
        if self.values.get(field) is None:
            raise self.line.error(f"no {field}", "add it or drop the line")
        return self.values[field]

    def wrong(self, field: str, rule: str) -> UserError:
        value = ascii(self.values[field])
        shown = value if len(value) <= 60 else f"{value[:57]}..."
        return self.line.error(f"{field} is {shown}, it {rule}", "mend it or drop the line")


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that is not blank; raises UserError when there is no file or its gzip data are damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: check the path in the data block.")
    bar = tqdm(
        total=path.stat().st_size,
        desc=path.name,
        unit="B",
        unit_scale=True,
        delay=BAR_DELAY,
        leave=False,
        disable=None,
    )
    number = 0
    with open(path, "rb") as raw, bar:
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP else raw  # type: ignore[assignment]
        while True:
            number += 1
            try:
                line = Line(path, number, file.readline())
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                what = f"the gzip data are damaged ({str(error).rstrip('.')})"
                raise Line(path, number, b"").error(what, "download the file again") from None
            if not line.data:
                return
            if number % BAR_STEP == 0:
                bar.update(raw.tell() - bar.n)
            if line.data.strip():
                yield line


def read_records(path: Path, literals: bool) -> Iterator[Record]:
    return (line.parse(literals) for line in read_lines(path))


def parse_object(text: str, literals: bool) -> dict[str, Any] | None:
    """The dict that the text writes, None when it writes none. Nothing in it is ever run."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = literal(text) if literals else None
    return values if isinstance(values, dict) else None


def literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except NOT_LITERAL:
        return None


def whole_text(text: str) -> str:
    """The text with pairs of surrogates joined and lone ones replaced, which Arrow could not hold."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
