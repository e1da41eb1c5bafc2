"""A dump's lines: JSON and Python literals mean the same, nothing is run, damage is told with its line."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from recloom.data_shards.errors import UserError
from recloom.data_shards.sources import dump_lines
from recloom.data_shards.sources.dump_lines import parse_object, read_lines, read_records, whole_text

TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
SCALARS = TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=4)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "dump.json"
    path.write_bytes(data)
    return path


def values_of(path: Path, literals: bool = False) -> list[dict[str, Any]]:
    return [record.values for record in read_records(path, literals)]


@given(OBJECTS)
def test_both_notations_give_the_object(values: dict[str, Any]) -> None:
    assert parse_object(json.dumps(values), literals=False) == values
    assert parse_object(json.dumps(values), literals=True) == values
    assert parse_object(repr(values), literals=True) == values
    if "'" in repr(values) and '"' not in repr(values):
        assert parse_object(repr(values), literals=False) is None


@given(st.text(max_size=40) | st.text(alphabet="{}[]()'\":,ab1.-\\u0", max_size=40))
def test_any_text_gives_an_object_or_none(text: str) -> None:
    for literals in (False, True):
        found = parse_object(text, literals)
        assert found is None or isinstance(found, dict)


@pytest.mark.parametrize("opened", ["[", "{'a':", '{"a":', "(", "-"])
def test_deep_nesting_is_no_object(opened: str) -> None:
    assert parse_object(opened * 100_000, literals=True) is None


def test_nothing_in_a_line_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for text in (
        f"{{'asin': open({str(mark)!r}, 'w')}}",
        f"{{'asin': __import__('os').mkdir({str(mark)!r})}}",
        f"[open({str(mark)!r}, 'w') for _ in 'a']",
    ):
        assert parse_object(text, literals=True) is None
    assert not mark.exists()


@given(st.lists(OBJECTS, max_size=6), st.booleans(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_lines_come_back_from_gzip_and_plain(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], packed: bool, blank: bool
) -> None:
    """Blank lines do not count as records but as lines; the last line needs no end."""
    gap = "\n \r\n" if blank else "\n"
    text = gap.join(json.dumps(row) for row in rows).encode()
    path = written(tmp_path_factory.mktemp("dump"), gzip.compress(text) if packed else text)
    assert values_of(path) == rows
    want = [1 + number * (2 if blank else 1) for number in range(len(rows))]
    assert [line.number for line in read_lines(path)] == want


@given(st.text(alphabet=st.characters() | st.sampled_from("\ud83d\ude00\ud800"), max_size=10))
def test_whole_text_can_be_encoded(text: str) -> None:
    assert whole_text(text).encode() is not None
    if text.isprintable() and not any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        assert whole_text(text) == text


def test_surrogates_are_joined_or_replaced() -> None:
    assert whole_text("a\ud83d\ude00") == "a\U0001f600"
    assert whole_text("a\ud83db") == "a\ufffdb"


def test_byte_order_mark_and_members(tmp_path: Path) -> None:
    data = gzip.compress(b'\xef\xbb\xbf{"a": 1}\n{"a"') + gzip.compress(b": 2}\n")
    assert values_of(written(tmp_path, data)) == [{"a": 1}, {"a": 2}]


LINES = b"".join(b'{"a": %d, "b": "%x"}\n' % (n, hash((n, 3)) & 0xFFFFFFFFFFFF) for n in range(20_000))


@pytest.mark.parametrize("damage", ["cut", "changed", "checksum", "garbage"])
def test_damaged_gzip_names_line_and_remedy(tmp_path: Path, damage: str) -> None:
    data = bytearray(gzip.compress(LINES))
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "changed":
        data[len(data) // 2 : len(data) // 2 + 64] = b"\xff" * 64
    elif damage == "checksum":
        data[-6] ^= 1
    else:
        data += b"garbage"
    path = written(tmp_path, bytes(data))
    good = 0
    with pytest.raises(UserError, match=r"dump.json: line (\d+): .*: .*download the file again\.$") as caught:
        for record in read_records(path, False):
            good += record.values["a"] >= 0
    assert f"line {good + 1}:" in str(caught.value) and "\n" not in str(caught.value)
    assert good == 20_000 if damage in ("checksum", "garbage") else 0 < good < 20_000
    assert "gzip data are damaged" in str(caught.value) or damage == "changed"


BAD_LINES = {
    "list": (b"[1]", "no JSON object: drop the line"),
    "number": (b"1", "no JSON object"),
    "cut": (b'{"a": "b', "no JSON object"),
    "html": (b"<!DOCTYPE html>", "no JSON object: drop the line or download the file again"),
    "python": (b"{'a': 1}", "no JSON object"),
    "latin": ('{"a": "é"}'.encode("latin-1"), "not UTF-8 .*download the file again"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_gives_one_sentence(tmp_path: Path, case: str) -> None:
    line, message = BAD_LINES[case]
    path = written(tmp_path, b'{"a": 1}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=f"dump.json: line 3: {message}") as caught:
        values_of(path)
    assert "\n" not in str(caught.value)


def test_a_literal_dump_says_that_dicts_would_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: neither a JSON object nor a Python dict: drop"):
        values_of(written(tmp_path, b"{'a': x}\n"), literals=True)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.json: no such file: check the path in the data block"):
        list(read_lines(tmp_path / "gone.json"))


def test_a_long_file_has_a_bar_and_a_short_one_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar counts the bytes on the disk, of gzip the packed ones."""
    shown, bars = io.StringIO(), []

    def bar_on(**given: Any) -> Any:
        bars.append(tqdm(**{**given, "disable": False, "file": shown, "mininterval": 0}))
        return bars[-1]

    monkeypatch.setattr(dump_lines, "tqdm", bar_on)
    path = written(tmp_path, gzip.compress(LINES))
    assert len(list(read_lines(path))) == 20_000
    assert not shown.getvalue().strip(), "it takes less than BAR_DELAY seconds"
    monkeypatch.setattr(dump_lines, "BAR_DELAY", 1e-9)
    assert len(list(read_lines(path))) == 20_000
    assert "dump.json" in shown.getvalue()
    assert all(0.5 * path.stat().st_size < bar.n <= path.stat().st_size == bar.total for bar in bars)
