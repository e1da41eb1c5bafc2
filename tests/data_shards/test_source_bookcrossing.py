"""BookCrossing in both formats, from files that the tests write and from the real subset."""

import csv
import html
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recloom.data_shards.cards import dataset_card, format_card
from recloom.data_shards.errors import UserError
from recloom.data_shards.sources.bookcrossing import Settings, load
from recloom.data_shards.sources.registry import source_module, source_names
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables

# As they stand in the dump: escaped quotes, semicolons and line breaks inside of fields, NULL, HTML entities,
# letters whose UTF-8 was read as latin-1 once and twice. The last book's line lacks a field.
OFFICIAL_BOOKS = r""""ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S"
"0449003787";"\"O\" Is for Outlaw";"SUE GRAFTON";"2001";"Ballantine; Books";"http://x/0"
"349204564X";"QuerschÃ?Â¼sse - Downsize  This!";"Jürgen Groß &amp; Co";"0";"LÃ?Â¼bbe";"http://x/1"
"0156528207";"The Little Prince &amp; more";"Antoine de Saint-ExupÃ©ry";"1968";NULL;"http://x/2"
"0000000004";"Ends in a \\";"Not Applicable (Na )";"2050";"n/a";"http://x/3"
"0000000005";"Two
lines";"A";"1999";"B";"http://x/4"
"0000000006";"too few fields";"1999";"B";"http://x/5"
"""
OFFICIAL_USERS = r""""User-ID";"Location";"Age"
"8";"timmins, ontario, canada";NULL
"19";"weston, ,";"14"
"20";"zürich, \"n/a\", switzerland";"244"
"21";"rome; lazio, , italy, europe";"0"
"22";"n/a, n/a, n/a";"100"
"""
OFFICIAL_RATINGS = r""""User-ID";"ISBN";"Book-Rating"
"8";"0449003787";"9"
"8";"349204564x";"10"
"8";"349204564X";"3"
"8";"0000000004";"0"
"8";"0000000009";"10"
"19";"\"0449003787\"";"1"
"20";"0156528207";"5"
"21";"0000000004";"7"
"22";"0000000005";"8"
"22";"0000000006";"8"
"99";"0156528207";"6"
"""
# The variant read that as latin-1 once more, C1 control characters included.
THRICE = "L\u00c3\u0083?\u00c3\u0082\u00c2\u00bcbbe"
COMMA_BOOKS = rf'''ISBN,Book-Title,Book-Author,Year-Of-Publication,Book-Publisher
a,"\O\"" Is for Outlaw""",SUE GRAFTON,2001,"One, Two"
b,Scarlett : The Sequel to \Gone With the Wind\"",B & C,0,{THRICE}
'''
COMMA_USERS = r'''User-ID,User-City,User-State,User-Country,User-Age
8,timmins, ontario," canada""",
19,weston, ,,"14"""
20,seinäjoki," \""n/a\"""," finland""",20
21,, n/a," canada""",250
'''


def write(folder: Path, ratings: str, books: str, users: str, official: bool) -> Path:
    encoding = "latin-1" if official else "utf-8"
    names = ("BX-Book-Ratings.csv" if official else "BX-Ratings.csv", "BX-Books.csv", "BX-Users.csv")
    folder.mkdir(exist_ok=True)
    for name, text in zip(names, (ratings, books, users), strict=True):
        (folder / name).write_bytes(text.encode(encoding))
    return folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write(tmp_path / "dump", OFFICIAL_RATINGS, OFFICIAL_BOOKS, OFFICIAL_USERS, official=True)


def load_from(folder: Path, **data: Any) -> Tables:
    return load(Settings(path=str(folder), **data), Path("unused"))


def history(tables: Tables) -> list[tuple[str, str, float]]:
    """(user key, ISBN, rating), a user's in the order of the history."""
    users, items = tables.users["user_key"].to_pylist(), tables.items["item_key"].to_pylist()
    columns = (tables.interactions[name].to_pylist() for name in ("user", "item", "rating"))
    return [(users[user], items[item], rating) for user, item, rating in zip(*columns, strict=True)]


def test_registry_finds_it() -> None:
    assert "bookcrossing" in source_names() and "k_core" not in source_names()
    assert source_module("bookcrossing").load is load


def test_official_ratings(official: Path) -> None:
    """Zeros and books without a row are left out; of 10 and 3 for one ISBN in two spellings 10 stays."""
    tables = load_from(official, min_interactions=0)
    assert tables.name == "BookCrossing"
    assert sorted(history(tables)) == [
        ("19", "0449003787", 1.0),
        ("20", "0156528207", 5.0),
        ("21", "0000000004", 7.0),
        ("22", "0000000005", 8.0),
        ("8", "0449003787", 9.0),
        ("8", "349204564X", 10.0),
        ("99", "0156528207", 6.0),
    ]


def test_official_books(official: Path) -> None:
    tables = load_from(official, min_interactions=0)
    assert tables.items.drop_columns("item").to_pydict() == {
        "item_key": ["0000000004", "0000000005", "0156528207", "0449003787", "349204564X"],
        "title": [
            "Ends in a \\",
            "Two lines",
            "The Little Prince & more",
            '"O" Is for Outlaw',
            "Querschüsse - Downsize This!",
        ],
        "author": ["", "A", "Antoine de Saint-Exupéry", "SUE GRAFTON", "Jürgen Groß & Co"],
        "year": ["", "1999", "1968", "2001", ""],
        "publisher": ["", "B", "", "Ballantine; Books", "Lübbe"],
    }


def test_official_users(official: Path) -> None:
    """User 99 has no row. Ages that nobody has are empty, the country is the last of three parts or more."""
    tables = load_from(official, min_interactions=0)
    assert tables.users.drop_columns("user").to_pydict() == {
        "user_key": ["8", "19", "20", "21", "22", "99"],
        "location": [
            "timmins, ontario, canada",
            "weston",
            "zürich, switzerland",
            "rome; lazio, italy, europe",
            "",
            "",
        ],
        "country": ["canada", "", "switzerland", "europe", "", ""],
        "age": ["", "14", "", "", "100", ""],
    }


def test_line_ends_and_empty_lines_do_not_matter(official: Path) -> None:
    want = load_from(official, min_interactions=0)
    for path in official.iterdir():
        lines = path.read_bytes().replace(b"\n", b"\r\n")
        path.write_bytes(lines.replace(b'"\r\n"', b'"\r\n\r\n"') + b"\r\n")
    assert load_from(official, min_interactions=0) == want


def test_comma_format_and_its_odd_quotes(tmp_path: Path) -> None:
    ratings = "User-ID,ISBN,Book-Rating\n8,a,10\n19,b,1\n20,b,2\n21,a,0\n21,b,3\n"
    folder = write(tmp_path / "commas", ratings, COMMA_BOOKS, COMMA_USERS, official=False)
    tables = load_from(folder, min_interactions=0)
    assert tables.items.drop_columns("item").to_pylist() == [
        {
            "item_key": "A",
            "title": '"O" Is for Outlaw',
            "author": "SUE GRAFTON",
            "year": "2001",
            "publisher": "One, Two",
        },
        {
            "item_key": "B",
            "title": 'Scarlett : The Sequel to "Gone With the Wind"',
            "author": "B & C",
            "year": "",
            "publisher": "Lübbe",
        },
    ]
    assert tables.users.drop_columns("user").to_pylist() == [
        {"user_key": "8", "location": "timmins, ontario, canada", "country": "canada", "age": ""},
        {"user_key": "19", "location": "weston", "country": "", "age": "14"},
        {"user_key": "20", "location": "seinäjoki, finland", "country": "finland", "age": "20"},
        {"user_key": "21", "location": "canada", "country": "canada", "age": ""},
    ]


WORDS = st.text(alphabet="abzéüß \"';,&!?-", max_size=8)
KEYS = st.integers(1, 6).map(str)
RATED = st.dictionaries(st.tuples(KEYS, KEYS), st.integers(0, 10), min_size=1, max_size=30)
BOOKS = st.fixed_dictionaries({str(key): st.tuples(WORDS, WORDS, WORDS) for key in range(1, 7)})


def official_line(*fields: str) -> str:
    escaped = (html.escape(field, quote=False).replace('"', '\\"') for field in fields)
    return ";".join(f'"{field}"' if field != "NULL" else field for field in escaped) + "\n"


def write_both(
    folder: Path, rated: dict[tuple[str, str], int], books: dict[str, tuple[str, str, str]]
) -> None:
    """The same data in both formats, the rows of the second in reverse order."""
    ratings = [(user, book, str(rating)) for (user, book), rating in rated.items()]
    users = [(str(key), f"city{key}", "state", "land", "30") for key in range(1, 6)]
    official_users = [(key, f"{city}, {state}, {land}", age) for key, city, state, land, age in users]
    heads = (
        ("User-ID", "ISBN", "Book-Rating"),
        ("ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher"),
        ("User-ID", "Location", "Age"),
    )
    rows = (
        ratings,
        [(key, title, author, "1999", house) for key, (title, author, house) in books.items()],
        official_users,
    )
    texts = [
        official_line(*head) + "".join(official_line(*row) for row in part)
        for head, part in zip(heads, rows, strict=True)
    ]
    write(folder / "official", texts[0], texts[1], texts[2], official=True)
    (folder / "commas").mkdir()
    heads = (
        heads[0],
        (*heads[1][:4], "Book-Publisher"),
        ("User-ID", "User-City", "User-State", "User-Country", "User-Age"),
    )
    for name, head, part in zip(("Ratings", "Books", "Users"), heads, (ratings, rows[1], users), strict=True):
        with open(folder / "commas" / f"BX-{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *reversed(part)])


@settings(max_examples=60, deadline=None)
@given(rated=RATED, books=BOOKS, least=st.integers(0, 2))
def test_both_formats_give_equal_tables(
    rated: dict[tuple[str, str], int], books: dict[str, tuple[str, str, str]], least: int
) -> None:
    with TemporaryDirectory() as name:
        write_both(Path(name), rated, books)
        found: list[Tables | str] = []
        for folder in ("official", "commas"):
            try:
                found.append(load_from(Path(name) / folder, min_interactions=least))
            except UserError as error:
                found.append(str(error).split(":")[-1])
    assert found[0] == found[1]
    if isinstance(found[0], Tables):
        explicit = {(user, book): float(rating) for (user, book), rating in rated.items() if rating}
        assert {(user, book): rating for user, book, rating in history(found[0])}.items() <= explicit.items()
        assert least > 1 or found[0].interactions.num_rows == len(explicit)


def many_ratings(folder: Path, users: int, items: int, last: str = "") -> Path:
    """Every user has rated every book."""
    pairs = [(user, item) for user in range(users) for item in range(items)]
    ratings = "User-ID,ISBN,Book-Rating\n" + "".join(f"{u},b{i},{(u + i) % 10 + 1}\n" for u, i in pairs)
    books = "ISBN,Book-Title,Book-Author,Year-Of-Publication,Book-Publisher\n"
    books += "".join(f"b{item},t,a,1999,p\n" for item in range(items))
    head = "User-ID,User-City,User-State,User-Country,User-Age\n"
    return write(folder, ratings + last, books, head + "0,c,s,l,9\n", official=False)


def test_the_order_is_random_and_seeded(tmp_path: Path) -> None:
    folder = many_ratings(tmp_path / "data", users=40, items=10)
    tables = load_from(folder)
    assert tables.interactions["timestamp"].to_pylist() == list(range(10)) * 40
    assert load_from(folder) == tables
    other = load_from(folder, order_seed=7)
    assert sorted(history(other)) == sorted(history(tables)) and history(other) != history(tables)
    item_UT = tables.interactions["item"].to_numpy().reshape(40, 10)
    assert len({tuple(row) for row in item_UT}) == 40, "every user has an order of their own"
    # A book's mean place is 4.5 with standard deviation 2.87 / sqrt(40) = 0.45.
    assert np.abs(np.argsort(item_UT, axis=1).mean(axis=0) - 4.5).max() < 4 * 0.46


def test_the_order_depends_on_no_other_row(tmp_path: Path) -> None:
    """Neither the file's order nor further users change a history."""
    want = history(load_from(many_ratings(tmp_path / "few", users=5, items=8)))
    folder = many_ratings(tmp_path / "many", users=9, items=8)
    path = folder / "BX-Ratings.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(lines)]))
    found = history(load_from(folder))
    assert [row for row in found if int(row[0]) < 5] == want


def test_the_core_is_iterated(tmp_path: Path) -> None:
    """User 90 falls since book b1 alone is left to them, once b9 with its one rater is gone."""
    folder = many_ratings(tmp_path / "data", users=5, items=5, last="90,b1,9\n90,b9,9\n91,b2,9\n")
    path = folder / "BX-Books.csv"
    path.write_text(path.read_text() + "b9,t,a,1999,p\n")
    tables = load_from(folder, min_interactions=2)
    assert (tables.num_users, tables.num_items, tables.interactions.num_rows) == (5, 5, 25)
    assert load_from(folder) == tables
    assert load_from(folder, min_interactions=0).num_users == 7
    with pytest.raises(
        UserError, match="data.min_interactions is 6, which leaves no interaction of BookCrossing: lower it"
    ):
        load_from(folder, min_interactions=6)


BAD_FILES = {
    "rating word": (
        OFFICIAL_RATINGS.replace('"9"', '"nine"'),
        r"data row 1: rating is 'nine', it must be a number",
    ),
    "rating empty": (OFFICIAL_RATINGS.replace('"9"', '""'), r"data row 1: rating is '', it must be a number"),
    "rating 11": (
        OFFICIAL_RATINGS.replace('"5"', '"11"'),
        r"data row 7: rating is 11, .* from 0 .* to 10: mend",
    ),
    "rating 7.5": (
        OFFICIAL_RATINGS.replace('"5"', '"7.5"'),
        r"data row 7: rating is 7.5, it must be a whole",
    ),
    "no explicit": ('"User-ID";"ISBN";"Book-Rating"\n"8";"0449003787";"0"\n', "no rating is from 1 to 10"),
    "no ratings": ('"User-ID";"ISBN";"Book-Rating"\n', "no rating is from 1 to 10"),
    "no user": (OFFICIAL_RATINGS.replace('"19"', '""'), "data row 6 has no User-ID: fill it or drop the row"),
    "columns": (
        OFFICIAL_RATINGS.replace("Book-Rating", "Rating"),
        "no column 'Book-Rating' .*did you mean 'Rating'",
    ),
    "commas": (
        "User-ID,ISBN,Book-Rating\n8,0449003787,9\n",
        "no column 'User-ID' .*the file has User-ID,ISBN",
    ),
    "empty": ("", "no column 'User-ID'"),
    "ragged": (
        OFFICIAL_RATINGS + '"1";"2"\n',
        "not in the format of BookCrossing .*Expected 3 columns, got 2",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_ratings_give_one_sentence(official: Path, case: str) -> None:
    text, message = BAD_FILES[case]
    (official / "BX-Book-Ratings.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as caught:
        load_from(official, min_interactions=0)
    assert "\n" not in str(caught.value) and "BX-Book-Ratings.csv" in str(caught.value)


def test_missing_folder_and_files(official: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="data.path is .*/gone, no such folder: set it to the folder with BX-Books.csv"
    ):
        load_from(tmp_path / "gone")
    (official / "BX-Users.csv").unlink()
    with pytest.raises(UserError, match="which lacks BX-Users.csv: put the files there"):
        load_from(official)
    (official / "BX-Book-Ratings.csv").unlink()
    with pytest.raises(UserError, match="lacks BX-Book-Ratings.csv or BX-Ratings.csv, BX-Users.csv: put"):
        load_from(official)


def test_books_of_another_dump(official: Path) -> None:
    path = official / "BX-Books.csv"
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b'\n"1";"t";"a";"1999";"p";"u"\n')
    with pytest.raises(UserError, match="BX-Books.csv: no rated ISBN has a row: take it from the same dump"):
        load_from(official)
    path.write_bytes(b'"ISBN";"Title"\n"1";"t"\n')
    with pytest.raises(UserError, match="BX-Books.csv: no column 'Book-Title' .*did you mean 'Title'"):
        load_from(official)


def test_home_folder_and_settings(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(official.parent))
    assert load_from(Path("~/dump"), min_interactions=0).num_users == 6
    with pytest.raises(ValidationError, match="path"):
        Settings.model_validate({})
    with pytest.raises(ValidationError, match="core"):
        Settings.model_validate({"path": "x", "core": 5})


def test_real_subset(shared_data: Path) -> None:
    """Counted by loops over the files: one ISBN has a lower-case x, its other spelling is listed as well."""
    folder = shared_data / "bookcrossing-subset"
    everything = load_from(folder, min_interactions=0)
    assert (everything.num_users, everything.num_items) == (48_299, 18_184)
    assert everything.interactions.num_rows == 204_164
    assert not [title for title in everything.titles if "\\" in title or "Ã?Â" in title]
    tables = load_from(folder)
    assert (tables.num_users, tables.num_items, tables.interactions.num_rows) == (6_564, 8_771, 110_504)
    assert sorted(history(tables)) == core_by_loops(folder)
    items = {row["item_key"]: row for row in tables.items.to_pylist()}
    assert items["0449003787"]["title"] == '"O" Is for Outlaw'
    assert items["3404118960"]["title"] == "Die Säulen der Erde. Roman."
    assert items["3404118960"]["publisher"] == "Lübbe"
    countries = tables.users["country"].to_pylist()
    assert [countries.count(country) for country in ("usa", "canada", "germany", "")] == [5100, 633, 69, 124]


def core_by_loops(folder: Path) -> list[tuple[str, str, float]]:
    """The 5-core by plain loops."""
    with open(folder / "BX-Ratings.csv", newline="") as file:
        rows = [(user, isbn.upper(), float(rating)) for user, isbn, rating in list(csv.reader(file))[1:]]
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        kept = [row for row in rows if users[row[0]] >= 5 and items[row[1]] >= 5]
        if len(kept) == len(rows):
            return sorted(rows)
        rows = kept


def test_card_of_the_real_subset(shared_data: Path) -> None:
    tables = load_from(shared_data / "bookcrossing-subset")
    card = format_card(dataset_card(tables, leave_one_out(tables, 7.0)))
    print(card)
    lines = [line.split() for line in card.splitlines()]
    assert lines[1:5] == [
        ["users", "6,564", "6,851"],
        ["items", "8,771", "9,085"],
        ["interactions", "110,504", "115,219"],
        ["density", "0.001919", "0.001851"],
    ]
    assert "user features       here   location, country, age\n" in card
    assert "paper  Title, Author, Year, Publisher\n" in card
    assert "Differs from Llama4Rec, Table 1: users 6,564 instead of 6,851" in card
