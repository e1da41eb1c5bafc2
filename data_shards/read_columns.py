"""Columns of a user's CSV, Parquet or JSON lines file as strings, and checks that name the bad row.

Everything is read as strings: a key "007" stays "007", and a bad number can be shown as it stands.
Data rows are counted from 1; a CSV's header and empty lines do not count. Null and "" are the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from recloom.data_shards.errors import UserError
from recloom.data_shards.sources.registry import did_you_mean

Format = Literal["csv", "parquet", "jsonl"]
NEEDED = "it needs column names and at least one row."


def read_columns(
    path: Path, format: Format | None, wanted: Mapping[str, str], separator: str, encoding: str
) -> pa.Table:
    """Read the file's columns `wanted[name]` into string columns `name`, nulls as "".

    format None goes by the suffix. Raises UserError for a missing, empty or malformed file, and for
    a missing column.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file: check the path in the data block.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty: {NEEDED}")
    format = format or format_of(path)
    try:
        if format == "csv":
            table = read_csv(path, wanted, separator, encoding)
        else:
            table = read_parquet(path, wanted) if format == "parquet" else read_jsonl(path, wanted, encoding)
    except (pa.ArrowException, UnicodeError, LookupError, csv.Error) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read as {format} ({reason}): mend the file or its settings."
        ) from None
    if table.num_rows == 0:
        raise UserError(f"{path}: the file has no rows: {NEEDED}")
    return table


def format_of(path: Path) -> Format:
    suffixes: dict[str, Format] = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl"}
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: the suffix tells no format: set format to csv, parquet or jsonl.")
    return suffixes[path.suffix.lower()]


def check_header(path: Path, wanted: Mapping[str, str], header: list[str]) -> None:
    """Every wanted column is there once."""
    for name, column in wanted.items():
        if column not in header:
            near = did_you_mean(column, header)
            raise UserError(
                f"{path}: no column {column!r} (wanted as {name}){near}: the file has {', '.join(header)}."
            )
        if header.count(column) > 1:
            raise UserError(f"{path}: the column {column!r} occurs twice: rename one of them.")


def as_strings(table: pa.Table, wanted: Mapping[str, str]) -> pa.Table:
    """The wanted columns under our names."""
    return pa.table({name: string_column(table[column]) for name, column in wanted.items()})


def string_column(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast to strings: lists are joined by "|", dates and times become integer microseconds."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = pc.binary_join(values.cast(pa.list_(pa.string())), "|")
    elif pa.types.is_date(values.type) or pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us")).cast(pa.int64())
    return pc.fill_null(values.cast(pa.string()), "")


def read_csv(path: Path, wanted: Mapping[str, str], separator: str, encoding: str) -> pa.Table:
    with open(path, encoding=encoding, newline="") as file:
        filled = (row for row in csv.reader(file, delimiter=separator) if row)
        header, first = next(filled, []), next(filled, None)
    if first is None:
        raise UserError(f"{path}: the file has no rows: {NEEDED}")
    header = [column.removeprefix("\ufeff") for column in header]
    check_header(path, wanted, header)
    table = pa_csv.read_csv(
        path,
        read_options=pa_csv.ReadOptions(encoding=encoding),
        parse_options=pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(wanted.values(), pa.string()),
            include_columns=list(dict.fromkeys(wanted.values())),
        ),
    )
    return as_strings(table, wanted)


def read_parquet(path: Path, wanted: Mapping[str, str]) -> pa.Table:
    check_header(path, wanted, list(pq.read_schema(path).names))
    return as_strings(pq.read_table(path, columns=list(dict.fromkeys(wanted.values()))), wanted)


def read_jsonl(path: Path, wanted: Mapping[str, str], encoding: str) -> pa.Table:
    """Arrow's own reader guesses types (dates out of titles), so the lines are parsed by `json`."""
    rows: list[dict[str, Any]] = []
    with open(path, encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(parse_line(path, number, line))
    if rows:
        check_header(path, wanted, list(dict.fromkeys(name for row in rows for name in row)))
    columns = {name: [json_text(row.get(column)) for row in rows] for name, column in wanted.items()}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{path}: line {number} is no JSON object: write one object a line.")
    return row


def json_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        return "|".join(json_text(entry) for entry in value)
    return json.dumps(value)


def check_filled(path: Path, name: str, values: pa.ChunkedArray) -> None:
    """No value is empty."""
    empty_N = np.flatnonzero(pc.equal(values, "").to_numpy())
    if len(empty_N):
        raise UserError(f"{path}: data row {empty_N[0] + 1} has no {name}: fill it or drop the row.")


def numbers(path: Path, name: str, values: pa.ChunkedArray) -> np.ndarray:
    """The values as finite float64; raises UserError that names the first row that is none."""
    trimmed = pc.utf8_trim_whitespace(values)
    try:
        number_N = trimmed.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        number_N = np.array([to_float(value) for value in trimmed.to_pylist()])
    bad_N = np.flatnonzero(~np.isfinite(number_N))
    if len(bad_N):
        value = values[int(bad_N[0])].as_py()
        raise UserError(
            f"{path}: data row {bad_N[0] + 1}: {name} is {value!r}, it must be a number: mend or drop it."
        )
    return number_N


def to_float(value: str) -> float:
    try:
        return float(pa.scalar(value).cast(pa.float64()).as_py())
    except pa.ArrowInvalid:
        return float("nan")


def timestamps(path: Path, values: pa.ChunkedArray) -> np.ndarray:
    """int64 as they stand when all are whole numbers, else microseconds (fractions keep their order)."""
    try:
        return pc.utf8_trim_whitespace(values).cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        time_N = numbers(path, "timestamp", values)
    whole = bool((time_N == np.floor(time_N)).all())
    return np.round(time_N if whole else time_N * 1e6).astype(np.int64)


def check_unique(path: Path, names: str, columns: list[np.ndarray]) -> None:
    """No two rows agree in all `columns` (keys or numbers)."""
    code_CN = [np.unique(column, return_inverse=True)[1] for column in columns]
    order_N = np.lexsort(code_CN)
    same_N = np.logical_and.reduce([code_N[order_N][1:] == code_N[order_N][:-1] for code_N in code_CN])
    index_D = np.flatnonzero(same_N)
    if len(index_D):
        second = index_D[np.argmin(order_N[index_D + 1])]
        rows = f"data rows {order_N[second] + 1} and {order_N[second + 1] + 1}"
        raise UserError(f"{path}: {rows} have the same {names} ({len(index_D)} such rows): drop one of them.")
