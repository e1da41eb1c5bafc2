"""Both Amazon dumps, from files that the tests write and from the real ones."""

import gzip
import json
import logging
import tracemalloc
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recloom.data_shards.cards import AMAZON, PAPER, PAPER_FEATURES, dataset_card, format_card
from recloom.data_shards.errors import UserError
from recloom.data_shards.sources import amazon, amazon2014, amazon2018
from recloom.data_shards.sources.amazon_items import clean_text, item_texts
from recloom.data_shards.sources.registry import source_module, source_names
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer.config_io import ConfigError, build_config, parse_yaml, read_yaml

SOURCES = {2014: amazon2014, 2018: amazon2018}


def review(user: str, item: str, time: int, rating: float = 5.0, **more: Any) -> dict[str, Any]:
    values = {"overall": rating, "reviewerID": user, "asin": item, "unixReviewTime": time}
    return {**values, "reviewText": f"{user} on {item} at {time}", "summary": f"at {time}", **more}


# User u2 comes first; u1 has reviewed b twice, the later review stands earlier in the file.
REVIEWS = [
    review("u2", "b", 30),
    review("u1", "b", 20, 4.0, summary="kept"),
    review("u1", "a", 10),
    review("u1", "b", 15, 1.0),
    review("u3", "c", 5, 2.5, reviewText=None),
]
META_2018 = [
    {"asin": "c", "title": " Cup &amp;\n Saucer ", "description": ["<b>Blue</b><br>cup", "not this"]},
    {"asin": "z", "title": "not reviewed"},
    {"asin": "a", "title": "", "price": "$1,250.00", "category": ["Gifts", "Cards|Paper", "</span>"]},
    {"asin": "b", "title": "Bowl", "brand": "B&#39;s", "price": ".a-box-inner{background}", "rank": []},
]
META_2014 = [
    {"asin": "c", "title": "Cup & Saucer", "description": "Blue cup", "price": 9.5},
    {"asin": "b", "title": "Bowl", "brand": "B's", "categories": [["x", "y"], ["Home", "Kitchen"]]},
    {"asin": "a", "imUrl": "http://x/1", "related": {"also_bought": ["b"]}, "salesRank": {"Home": 1}},
]


def lines(rows: list[dict[str, Any]], literal: bool = False) -> bytes:
    return "".join((repr(row) if literal else json.dumps(row)) + "\n" for row in rows).encode()


def write(
    folder: Path,
    reviews: list[dict[str, Any]],
    meta: list[dict[str, Any]] | None,
    year: int = 2018,
    literal: bool = False,
    packed: bool = True,
) -> Path:
    folder.mkdir(exist_ok=True)
    pack, end = (gzip.compress, ".json.gz") if packed else (bytes, ".json")
    prefix = "reviews_" if year == 2014 else ""
    (folder / f"{prefix}Home_and_Kitchen_5{end}").write_bytes(pack(lines(reviews, literal)))
    if meta is not None:
        (folder / f"meta_Home_and_Kitchen{end}").write_bytes(pack(lines(meta, literal)))
    return folder


def load_from(folder: Path, year: int = 2018, **data: Any) -> Tables:
    module = SOURCES[year]
    return module.load(module.Settings(**{"path": str(folder), **data}), Path("unused"))


def history(tables: Tables) -> list[tuple[str, str, float, int]]:
    """(user key, item key, rating, timestamp) in the tables' order."""
    users, items = tables.users["user_key"].to_pylist(), tables.items["item_key"].to_pylist()
    columns = (tables.interactions[name].to_pylist() for name in ("user", "item", "rating", "timestamp"))
    return [
        (users[user], items[item], rating, time) for user, item, rating, time in zip(*columns, strict=True)
    ]


def card_of(tables: Tables, positive: float | None = 4.0) -> str:
    return format_card(dataset_card(tables, leave_one_out(tables, positive)))


def test_registry_finds_both_and_not_what_they_share() -> None:
    assert {"amazon2014", "amazon2018"} <= set(source_names())
    assert not {"amazon", "amazon_items", "dump_lines"} & set(source_names())
    assert source_module("amazon2014").load is amazon2014.load


def test_the_tables_of_2018(tmp_path: Path) -> None:
    tables = load_from(write(tmp_path / "dump", REVIEWS, META_2018), threshold=0)
    assert tables.name == "Amazon 2018 Home and Kitchen"
    assert tables.users.to_pydict() == {"user": [0, 1, 2], "user_key": ["u2", "u1", "u3"]}
    assert tables.items.drop_columns("item").to_pydict() == {
        "item_key": ["b", "a", "c"],
        "title": ["Bowl", "a", "Cup & Saucer"],
        "description": ["", "", "Blue cup"],
        "brand": ["B's", "", ""],
        "category": ["", "Gifts|Cards/Paper", ""],
        "price": ["", "1250.00", ""],
    }
    assert history(tables) == [
        ("u2", "b", 5, 30),
        ("u1", "a", 5, 10),
        ("u1", "b", 4, 20),
        ("u3", "c", 2.5, 5),
    ]
    assert tables.interactions["review"].to_pylist() == [
        "u2 on b at 30",
        "u1 on a at 10",
        "u1 on b at 20",
        "",
    ]
    assert tables.interactions["summary"].to_pylist() == ["at 30", "at 10", "kept", "at 5"]


def test_the_tables_of_2014(tmp_path: Path) -> None:
    tables = load_from(write(tmp_path / "dump", REVIEWS, META_2014, 2014, literal=True), 2014, threshold=0)
    assert tables.name == "Amazon 2014 Home and Kitchen"
    assert tables.items.drop_columns("item").to_pydict() == {
        "item_key": ["b", "a", "c"],
        "title": ["Bowl", "a", "Cup & Saucer"],
        "description": ["", "", "Blue cup"],
        "brand": ["B's", "", ""],
        "category": ["Home|Kitchen", "", ""],
        "price": ["", "", "9.50"],
    }
    with pytest.raises(UserError, match="line 1: no JSON object"):
        load_from(tmp_path / "dump", 2018, threshold=0)


def test_what_was_done_stands_on_the_card_also_after_a_save(tmp_path: Path) -> None:
    tables = load_from(write(tmp_path / "dump", REVIEWS, META_2018), threshold=0)
    tables.save(tmp_path / "saved")
    for found in (tables, Tables.load(tmp_path / "saved")):
        text = card_of(found)
        assert "  items without a title, whose key stands in: 1\n" in text
        assert "  earlier reviews of an item by the same user that were dropped: 1\n" in text


def test_untitled_items_go_when_asked(tmp_path: Path) -> None:
    """The page's JavaScript is no title, nor is a missing line."""
    meta = [*META_2018[:3], {"asin": "b", "title": "var x = new Date().getTime();"}]
    tables = load_from(write(tmp_path / "dump", REVIEWS, meta), threshold=0, drop_untitled=True)
    assert history(tables) == [("u3", "c", 2.5, 5)]
    assert "items without a title that were dropped: 2, with 4 reviews" in card_of(tables, None)
    write(tmp_path / "dump", REVIEWS, meta[:2])
    assert load_from(tmp_path / "dump", threshold=0).titles == ["b", "a", "Cup & Saucer"]


def test_a_later_line_of_an_item_stands_if_it_has_a_title(tmp_path: Path) -> None:
    twice = [
        {"asin": key, "title": title} for key, title in (("a", "A"), ("b", "B1"), ("b", "B2"), ("a", ""))
    ]
    assert load_from(write(tmp_path / "dump", REVIEWS, twice), threshold=0).titles == ["B2", "A", "c"]


def test_lines_of_other_items_are_told_at_a_glance(tmp_path: Path) -> None:
    """A text that looks like another item's key, and a key whose letters are escaped, do not mislead."""
    meta = [{"title": "'asin': 'zz'", "asin": "b"}, {"asin": "zz", "title": "b"}, {"asin": "é", "title": "E"}]
    reviews = [review("u", "b", 1), review("u", "é", 2)]
    for year in SOURCES:
        folder = write(tmp_path / str(year), reviews, meta, year, literal=year == 2014)
        assert load_from(folder, year, threshold=0).titles == ["'asin': 'zz'", "E"]


def test_without_metadata_keys_are_titles_and_one_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "dump", REVIEWS, None)
    with caplog.at_level(logging.WARNING):
        tables = load_from(folder, threshold=0)
    assert tables.items.column_names == ["item", "item_key", "title"]
    assert tables.titles == ["b", "a", "c"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'Home_and_Kitchen_5.json.gz'}: no metadata file, so the items' keys stand in for their "
        "titles: put meta_Home_and_Kitchen.json.gz into data.path."
    ]
    with pytest.raises(UserError, match="data.drop_untitled is true, but no metadata tell the titles: put"):
        load_from(folder, drop_untitled=True)


def test_of_reviews_in_one_second_the_later_line_stays(tmp_path: Path) -> None:
    rows = [review("u", "a", 7, 1.0, summary="first"), review("u", "a", 7, 2.0), review("u", "b", 6, 3.0)]
    tables = load_from(write(tmp_path / "dump", rows, None), threshold=0)
    assert history(tables) == [("u", "b", 3, 6), ("u", "a", 2, 7)]
    assert tables.interactions["summary"].to_pylist() == ["at 6", "at 7"]


def test_a_single_pass_counts_all_lines_of_the_file(tmp_path: Path) -> None:
    """Also repeated ones and those of items that fall, as in A-LLMRec; the core does not."""
    rows = [review("u", "a", time) for time in range(3)] + [review("v", "a", 1), review("v", "b", 2)]
    folder = write(tmp_path / "dump", rows, None)
    assert history(load_from(folder, threshold=2)) == [("u", "a", 5, 2), ("v", "a", 5, 1)]
    with pytest.raises(UserError, match="data.threshold is 2, which leaves no interaction"):
        load_from(folder, threshold=2, mode="iterated")


@pytest.mark.parametrize("year", SOURCES)
def test_files_by_their_names_give_the_same(tmp_path: Path, year: int) -> None:
    meta = META_2014 if year == 2014 else META_2018
    want = load_from(write(tmp_path / "dump", REVIEWS, meta, year), year, threshold=0)
    plain = write(tmp_path / "plain", REVIEWS, meta, year, packed=False)
    assert load_from(plain, year, threshold=0) == want
    reviews = next(path for path in plain.iterdir() if not path.name.startswith("meta_"))
    reviews.rename(tmp_path / "mine.txt")
    named = {"path": None, "reviews": str(tmp_path / "mine.txt"), "threshold": 0}
    found = load_from(plain, year, meta=str(plain / "meta_Home_and_Kitchen.json"), **named)
    assert (found.name, found.items) == (f"Amazon {year} mine", want.items)
    assert load_from(plain, year, **named).titles == ["b", "a", "c"]


def test_texts_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "dump", REVIEWS, META_2018)
    tables = load_from(folder, threshold=0, texts=False)
    assert tables.interactions.column_names == ["user", "item", "rating", "timestamp"]
    assert history(tables) == history(load_from(folder, threshold=0))
    monkeypatch.setattr(amazon, "MOST_BYTES", 20)
    with pytest.raises(
        UserError, match="exceed the 20 bytes .* set data.texts to false or raise data.thresh"
    ):
        load_from(folder, threshold=0)


def test_texts_in_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "dump", REVIEWS, META_2018)
    want = load_from(folder, threshold=0)
    monkeypatch.setattr(amazon, "CHUNK", 3)
    assert load_from(folder, threshold=0) == want


USERS, ITEMS = st.integers(0, 5).map("u{}".format), st.integers(0, 5).map("i{}".format)
MANY = st.lists(st.builds(review, USERS, ITEMS, st.integers(0, 4)), min_size=1, max_size=40)
TITLES = st.sets(ITEMS, min_size=1)


def kept_by_loops(
    rows: list[dict[str, Any]], threshold: int, mode: str, titled: set[str] | None
) -> list[tuple[str, str, int]]:
    """(user, item, time), by loops: A-LLMRec's counts over the file, or the core of what is left."""
    users, items = Counter(row["reviewerID"] for row in rows), Counter(row["asin"] for row in rows)
    last: dict[tuple[str, str], int] = {}
    for row in rows:
        pair = (row["reviewerID"], row["asin"])
        enough = mode == "iterated" or (users[pair[0]] >= threshold and items[pair[1]] >= threshold)
        if enough and (titled is None or pair[1] in titled):
            last[pair] = max(last.get(pair, 0), row["unixReviewTime"])
    while mode == "iterated":
        users, items = Counter(user for user, _ in last), Counter(item for _, item in last)
        kept = {(u, i): time for (u, i), time in last.items() if min(users[u], items[i]) >= threshold}
        if len(kept) == len(last):
            break
        last = kept
    return sorted((user, item, time) for (user, item), time in last.items())


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    rows=MANY,
    threshold=st.integers(0, 3),
    mode=st.sampled_from(["single_pass", "iterated"]),
    titles=TITLES,
    drop=st.booleans(),
    year=st.sampled_from(sorted(SOURCES)),
    packed=st.booleans(),
)
def test_what_is_kept(
    rows: list[dict[str, Any]],
    threshold: int,
    mode: str,
    titles: set[str],
    drop: bool,
    year: int,
    packed: bool,
) -> None:
    """Against plain loops; ids by first appearance, the texts of the review that stays."""
    want = kept_by_loops(rows, threshold, mode, titles if drop else None)
    meta = [{"asin": title, "title": f"Title {title}"} for title in sorted(titles)]
    with TemporaryDirectory() as name:
        folder = write(Path(name) / "dump", rows, meta, year, literal=year == 2014, packed=packed)
        try:
            tables = load_from(folder, year, threshold=threshold, mode=mode, drop_untitled=drop)
        except UserError as error:
            none_titled = not titles & {row["asin"] for row in rows}
            assert not want or "it titles none of the items" in str(error)
            assert none_titled or "it titles none" in str(error) or "data.threshold is" in str(error)
            return
    assert sorted((user, item, time) for user, item, _, time in history(tables)) == want
    summaries = tables.interactions["summary"].to_pylist()
    assert summaries == [f"at {time}" for *_, time in history(tables)]
    kept = {(user, item) for user, item, _ in want}
    order = [row for row in rows if (row["reviewerID"], row["asin"], row["unixReviewTime"]) in want]
    assert set(tables.users["user_key"].to_pylist()) == {user for user, _ in kept}
    if len(order) == len(want):
        assert tables.users["user_key"].to_pylist() == list(dict.fromkeys(row["reviewerID"] for row in order))
        assert tables.items["item_key"].to_pylist() == list(dict.fromkeys(row["asin"] for row in order))
    assert all(
        title == (f"Title {key}" if key in titles else key)
        for key, title in zip(tables.items["item_key"].to_pylist(), tables.titles, strict=True)
    )


WORDS = st.text(max_size=20)
JUNK = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.lists(WORDS | st.lists(WORDS))
FIELDS = ("title", "description", "brand", "category", "categories", "price")


@given(st.dictionaries(st.sampled_from(FIELDS), JUNK))
def test_any_metadata_give_clean_texts(values: dict[str, Any]) -> None:
    texts = item_texts(values)
    assert list(texts) == ["title", "description", "brand", "category", "price"]
    for text in texts.values():
        assert text == " ".join(text.split()) and text.encode() is not None
    assert not texts["price"] or float(texts["price"]) >= 0


@pytest.mark.parametrize(
    "given_text, want",
    [
        (" Maggiano&#39;s \n Gift&amp;Card", "Maggiano's Gift&Card"),
        ('<div class="aplus"> <br>a<BR />b</div>', "a b"),
        ("I <3 you, 1 < 2 > 0, <Unknown Pleasures>", "I <3 you, 1 < 2 > 0, <Unknown Pleasures>"),
        ("&lt;b&gt; is bold", "<b> is bold"),
        ("a\ud800b", "a\ufffdb"),
    ],
)
def test_clean_text(given_text: str, want: str) -> None:
    assert clean_text(given_text) == want


@pytest.mark.parametrize(
    "price, want",
    [("$25.00", "25.00"), (9.99, "9.99"), (7, "7.00"), ("$5.99 - $1,200.00", "5.99"), (None, ""), ("", "")]
    + [("$", ""), (True, ""), (float("nan"), ""), (-1.0, ""), (10**400, ""), ("€3", ""), ([], "")],
)
def test_prices(price: Any, want: str) -> None:
    assert item_texts({"price": price})["price"] == want


@pytest.mark.parametrize(
    "values, want",
    [
        ({"category": ["A", "B", " C&amp;D "]}, "A|B|C&D"),
        ({"categories": [["A", "B"], ["C"], ["D", "E"]]}, "D|E"),
        ({"categories": [[]]}, ""),
        ({"category": []}, ""),
        ({"category": "A"}, ""),
        ({"category": [None, "A"]}, "A"),
    ],
)
def test_the_last_category_path(values: dict[str, Any], want: str) -> None:
    assert item_texts(values)["category"] == want


def test_dropped_reviews_take_no_memory(tmp_path: Path) -> None:
    """40 MB of text by users of one review each, beside a few kept ones; the file is twice read."""
    text = "many words " * 200
    rare = [review(f"rare{number}", "i0", 1, reviewText=f"{number} {text}") for number in range(20_000)]
    kept = [review(f"u{user}", f"i{item}", item) for user in range(5) for item in range(5)]
    folder = write(tmp_path / "dump", rare + kept, None)
    del rare
    tracemalloc.start()
    tables = load_from(folder, threshold=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tables.interactions.num_rows == 25
    assert peak < 10e6


def broken(**changed: Any) -> bytes:
    """A good line, a blank one, then one with changed fields; None takes the field away."""
    row = {**review("u", "i", 1), **changed}
    row = {name: value for name, value in row.items() if value is not None or name == "reviewText"}
    return lines([review("u", "j", 1)]) + b"\n" + lines([row])


BAD_REVIEWS = {
    "no user": (broken(reviewerID=None), "line 3: no reviewerID: add it or drop the line"),
    "no item": (broken(asin=None), "line 3: no asin: add it or drop the line"),
    "no rating": (broken(overall=None), "line 3: no overall: add it"),
    "no time": (broken(unixReviewTime=None), "line 3: no unixReviewTime: add it"),
    "null": (broken().replace(b'"asin": "i"', b'"asin": null'), "line 3: no asin: add it"),
    "empty user": (broken(reviewerID=" "), "line 3: reviewerID is ' ', it must be a text that is not empty"),
    "number item": (broken(asin=138), "line 3: asin is 138, it must be a text"),
    "rating word": (
        broken(overall="five"),
        "line 3: overall is 'five', it must be a number: mend it or drop",
    ),
    "rating true": (broken(overall=True), "line 3: overall is True, it must be a number"),
    "rating nan": (broken(overall=float("nan")), "line 3: overall is nan, it must be a number"),
    "rating huge": (broken(overall=10**400), r"line 3: overall is 10{56}\.\.\., it must be a number"),
    "time word": (broken(unixReviewTime="03 2, 2014"), "line 3: unixReviewTime is '03 2, 2014', it must be"),
    "time half": (broken(unixReviewTime=1.5), "line 3: unixReviewTime is 1.5, it must be a whole number"),
    "line break": (broken(overall="a\nb"), r"line 3: overall is 'a\\nb', it must be a number"),
    "list": (broken() + b"[]\n", "line 4: no JSON object: drop the line or download the file again"),
    "cut": (broken()[:-9], "line 3: no JSON object: drop the line or download the file again"),
    "empty": (b"", "the file holds no review: download it again"),
    "blank": (b"\n\n", "the file holds no review: download it again"),
    "gzip": (gzip.compress(broken())[:-20], "line 2: the gzip data are damaged .*: download the file again"),
}


@pytest.mark.parametrize("case", BAD_REVIEWS)
def test_bad_reviews_give_one_sentence(tmp_path: Path, case: str) -> None:
    data, message = BAD_REVIEWS[case]
    (tmp_path / "Books.json").write_bytes(data)
    with pytest.raises(UserError, match=f"Books.json: {message}") as caught:
        load_from(tmp_path, threshold=0)
    assert "\n" not in str(caught.value)


def test_bad_metadata_give_one_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "dump", REVIEWS, [{"asin": "a", "title": "A"}, {"title": "no key"}])
    with pytest.raises(UserError, match="meta_Home_and_Kitchen.json.gz: line 2: no asin: add it or drop"):
        load_from(folder, threshold=0)
    (folder / "meta_Home_and_Kitchen.json.gz").write_bytes(b'{"asin": "not reviewed", "title": "cut of')
    with pytest.raises(UserError, match="meta_Home_and_Kitchen.json.gz: line 1: no JSON object: drop the"):
        load_from(folder, threshold=0)
    write(folder, REVIEWS, [{"asin": "of another dump", "title": "A"}])
    with pytest.raises(UserError, match="it titles none of the items: take it from the same dump as the rev"):
        load_from(folder, threshold=0)


@pytest.mark.parametrize("mode", ["single_pass", "iterated"])
def test_a_threshold_that_leaves_nothing(tmp_path: Path, mode: str) -> None:
    folder = write(tmp_path / "dump", REVIEWS, META_2018)
    with pytest.raises(
        UserError,
        match="data.threshold is 4, which leaves no interaction of Amazon 2018 Home and Kitchen: lower it",
    ):
        load_from(folder, threshold=4, mode=mode)


def test_folders_that_do_not_tell_the_file(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="data.path is .*/gone, no such folder: set it to the folder with the"
    ):
        load_from(tmp_path / "gone")
    with pytest.raises(UserError, match="which holds no reviews file: put NAME_5.json.gz there"):
        load_from(tmp_path)
    for name in ("Books.json", "Books_5.json.gz", "meta_Books.json", ".Hidden.json", "README.md"):
        (tmp_path / name).write_text("")
    with pytest.raises(
        UserError, match="where Books.json, Books_5.json.gz could be the reviews: set data.rev"
    ):
        load_from(tmp_path)
    with pytest.raises(UserError, match="gone.json: no such file: check the path"):
        load_from(tmp_path, path=None, reviews=str(tmp_path / "gone.json"), meta=str(tmp_path / "m.json"))


BAD_SETTINGS = [
    ({}, "set either path .a folder. or reviews .a file."),
    ({"path": "x", "reviews": "y"}, "set either path"),
    ({"path": "x", "meta": "y"}, "meta is set without reviews: set both, or path alone"),
    ({"reviews": "x", "drop_untitled": True}, "drop_untitled needs the titles: set meta"),
    ({"path": "x", "threshold": -1}, "threshold"),
    ({"path": "x", "mode": "core"}, "mode"),
    ({"path": "x", "min_interactions": 5}, "min_interactions"),
]


@pytest.mark.parametrize("data, message", BAD_SETTINGS)
def test_bad_settings(data: dict[str, Any], message: str) -> None:
    for module in SOURCES.values():
        with pytest.raises(ValidationError, match=message):
            module.Settings.model_validate(data)


def test_a_config_names_it(repo_root: Path, tmp_path: Path) -> None:
    raw = read_yaml(repo_root / "configs/llama4rec_quickstart.yaml")
    block = "data: {source: amazon2018, path: data/Luxury_Beauty, threshold: 4, drop_untitled: true}"
    data = build_config(raw | parse_yaml(block), "test").data
    assert (data.source, data.threshold, data.mode, data.texts) == ("amazon2018", 4, "single_pass", True)
    block = "data: {source: amazon2014, reviews: a.json.gz, meta: b.json.gz, mode: iterated}"
    assert build_config(raw | parse_yaml(block), "test").data.threshold == 5
    with pytest.raises(ConfigError, match="data.*set either path .a folder. or reviews .a file."):
        build_config(raw | parse_yaml("data: {source: amazon2018}"), "test")
    with pytest.raises(ConfigError, match="data.thresh: unknown setting; did you mean 'threshold'"):
        build_config(raw | parse_yaml("data: {source: amazon2018, path: x, thresh: 4}"), "test")


def test_the_papers_rows(tmp_path: Path) -> None:
    """Named as the files are. The average lengths are A-LLMRec's, but its 8.88 of Video Games, which is not
    its 598,509 interactions over 64,073 users."""
    lengths = {"Movies and TV": 11.46, "Video Games": 9.34, "Luxury Beauty": 6.44, "Toys and Games": 9.15}
    for category, length in lengths.items():
        row = PAPER[f"Amazon 2018 {category}"]
        assert abs(row["interactions"] / row["users"] - length) < 0.006, category
    (tmp_path / "Luxury_Beauty.json").write_bytes(lines(REVIEWS))
    (tmp_path / "meta_Luxury_Beauty.json").write_bytes(lines(META_2018))
    text = card_of(load_from(tmp_path, threshold=0))
    assert text.splitlines()[1].split() == ["users", "3", "9,930"]
    assert "Differs from A-LLMRec, Table 10: users 3 instead of 9,930, items 3 instead of 6,141" in text
    assert "                      paper  Title, Description\n" in text
    assert AMAZON.keys() < PAPER.keys() == PAPER_FEATURES.keys()


def real_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as file:
        return [json.loads(line) for line in file]


def test_real_gift_cards(shared_data: Path) -> None:
    """Against loops; the five-core file has items of four reviews, and three lines twice to the second."""
    folder = shared_data / "amazon2018-gift-cards"
    rows = real_lines(folder / "Gift_Cards_5.json.gz")
    for threshold, mode, counts in (
        (0, "single_pass", (458, 148, 2965)),
        (5, "single_pass", (458, 147, 2961)),
        (5, "iterated", (453, 147, 2941)),
    ):
        tables = load_from(folder, threshold=threshold, mode=mode)
        found = sorted((user, item, time) for user, item, _, time in history(tables))
        assert found == kept_by_loops(rows, threshold, mode, None)
        assert (tables.num_users, tables.num_items, tables.interactions.num_rows) == counts
        assert "earlier reviews of an item by the same user that were dropped: 7\n" in card_of(tables)
    meta = {row["asin"]: row for row in real_lines(folder / "meta_Gift_Cards.json.gz")}
    for item in load_from(folder, threshold=0, drop_untitled=True).items.to_pylist():
        assert item["title"] == clean_text(meta[item["item_key"]]["title"])
        assert item["brand"] == clean_text(meta[item["item_key"]]["brand"])
        assert item["category"].startswith("Gift Cards|") or not meta[item["item_key"]]["category"]
        assert not item["price"] or f"${item['price']}" in meta[item["item_key"]]["price"].replace(",", "")


def test_card_of_the_real_gift_cards(shared_data: Path) -> None:
    card = card_of(load_from(shared_data / "amazon2018-gift-cards"))
    print(card)
    assert card.splitlines()[:5] == [
        "Amazon 2018 Gift Cards        here",
        "  users                        458",
        "  items                        147",
        "  interactions               2,961",
        "  density                 0.043980",
    ]
    assert "item features       here   title, description, brand, category, price\n" in card


def test_real_musical_instruments(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The genuine five-core file of 2014 without metadata: nothing is dropped, and every text is kept."""
    folder = shared_data / "amazon2014-musical-instruments"
    rows = real_lines(folder / "reviews_Musical_Instruments_5.json.gz")
    tables = load_from(folder, 2014)
    print(card_of(tables))
    assert (tables.num_users, tables.num_items, tables.interactions.num_rows) == (1429, 900, 10_261)
    assert load_from(folder, 2014, mode="iterated") == tables
    texts = (tables.interactions[name].to_pylist() for name in ("review", "summary"))
    found = [(*row, *more) for row, *more in zip(history(tables), *texts, strict=True)]
    fields = ("reviewerID", "asin", "overall", "unixReviewTime", "reviewText", "summary")
    assert sorted(found) == sorted(tuple(row[field] for field in fields) for row in rows)
    assert tables.users["user_key"].to_pylist() == list(dict.fromkeys(row["reviewerID"] for row in rows))
    assert tables.titles == list(dict.fromkeys(row["asin"] for row in rows))
    assert len(caplog.records) == 2, "a warning a load"
