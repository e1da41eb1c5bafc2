"""What the corpus and the questions show of a shop whose every text says which row it is of."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from recsysllm_tables import NOTE, NUM_ITEMS, TITLE, Row, shop_run, tables_of, user_rows

from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import Sample, sample_text
from recloom.data_shards.shards import ShardReader
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize.template import FOLDER
from recloom.data_shards.textualize.template_sets import load_set, seen_templates
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.corpus import (
    asked_world,
    families_of,
    make_world,
    question_samples,
    question_template,
    run_corpus,
    run_questions,
    training_samples,
    validation_samples,
)
from recloom.trainer.systems.recsysllm.families import (
    WORK,
    World,
    feedable,
    item_attributes,
    training_candidates,
)
from recloom.trainer.systems.recsysllm.lesson import Joined
from recloom.trainer.systems.recsysllm.settings import FAMILIES, FamilyName, RecSysLLMConfig

SHOP = user_rows()
RATED: tuple[FamilyName, ...] = ("rating", "explanation", "review")
Record = dict[str, Any]


@pytest.fixture(scope="module")
def run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Run[RecSysLLMConfig]:
    """A shop with its corpus and its questions."""
    run = shop_run(tmp_path_factory.mktemp("shop"), tiny_llama, tables_of(SHOP))
    run_corpus(run)
    run_questions(run)
    return run


def small_world(folder: Path, **corpus: Any) -> World:
    return make_world(shop_run(folder, "none", tables_of(SHOP), corpus=corpus))


def records(run: Run[RecSysLLMConfig], folder: str) -> list[Record]:
    """The samples of a folder as a person reads them."""
    reader = ShardReader(run.path(folder))
    return [reader.record(index) for index in range(len(reader))]


def learned(world: World, family: FamilyName) -> list[Sample]:
    return list(training_samples(world, family, seen_templates(load_set("recsysllm", WORK[family].family))))


def items_of(user: int, places: Iterable[int]) -> list[int]:
    return [int(SHOP[user][place]["item_key"][1:]) for place in places]


def training_places(user: int) -> range:
    """All rows of a user with fewer than three, else all but the last two."""
    return range(len(SHOP[user]) if len(SHOP[user]) < 3 else len(SHOP[user]) - 2)


def place_in(user: int, item: int) -> int:
    return items_of(user, range(len(SHOP[user]))).index(item)


def asked_place(record: Record) -> int | None:
    """The row that a sample is about; None for a question about an item that the user has no row of."""
    meta, user = record["meta"], record["meta"]["user"]
    if meta["task"] in ("rating", "explanation", "review"):
        return place_in(user, meta["items"][0])
    if meta["form"] == "yes_no":
        return place_in(user, meta["items"][0]) if meta["answer"] else None
    return place_in(user, meta["answer"])


def notes_in(record: Record) -> set[tuple[int, int]]:
    return {(int(user), int(place)) for user, place in NOTE.findall(record["text"])}


def check_shown(record: Record, before: Sequence[int]) -> None:
    """A sample about a row shows items of earlier rows, the words of its own row alone, and no other title
    but those it asks about."""
    meta, user, place = record["meta"], record["meta"]["user"], asked_place(record)
    known = items_of(user, (p for p in before if place is None or p < place))
    assert set(meta["history"]) <= set(known) and len(set(meta["history"])) == len(meta["history"])
    places = [place_in(user, item) for item in meta["history"]]
    assert places == sorted(places), "oldest first"
    assert notes_in(record) <= {(user, place)}
    target = [] if place is None else items_of(user, [place])
    titles = {int(number) for number in TITLE.findall(record["text"])}
    assert titles <= {*meta["history"], *meta["items"], *target}


# --- no leak ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_training_samples_are_of_training_rows_before_them(
    run: Run[RecSysLLMConfig], family: FamilyName
) -> None:
    found = records(run, f"corpus/{family}_train")
    for record in found:
        user, place = record["meta"]["user"], asked_place(record)
        assert place is None or place in training_places(user)
        check_shown(record, training_places(user))
    rows = [(user, place) for user in range(len(SHOP)) for place in training_places(user)]
    if family in ("rating", "direct"):
        assert len(found) == len(rows), "one sample a row"
    if family == "sequential":
        assert len(found) == sum(place > 0 for _, place in rows), "with something behind it"
    if family == "rating":
        assert Counter((r["meta"]["user"], asked_place(r)) for r in found) == Counter(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_validation_samples_are_of_validation_rows(run: Run[RecSysLLMConfig], family: FamilyName) -> None:
    found = records(run, f"corpus/{family}_valid")
    for record in found:
        user, place = record["meta"]["user"], asked_place(record)
        assert place in (None, len(SHOP[user]) - 2)
        check_shown(record, training_places(user))
    assert len(found) > 8 and len({record["meta"]["template_id"] for record in found}) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_are_of_test_rows_and_show_validation_rows(
    run: Run[RecSysLLMConfig], family: FamilyName
) -> None:
    found = records(run, f"asked/{family}_seen")
    users = [record["meta"]["user"] for record in found]
    assert len(set(users)) == len(users) and 5 not in users, "one row a user; one has too few"
    for record in found:
        user, last = record["meta"]["user"], len(SHOP[record["meta"]["user"]]) - 1
        assert asked_place(record) == last
        check_shown(record, range(last))
        assert record["meta"]["history"] == items_of(user, range(last)), "shorter than the limit: all of it"
    if family in ("rating", "sequential", "direct"):
        assert len(found) == len(SHOP) - 1


def shuffled(tables: Tables, positive_rating: float | None) -> Tables:
    """Other items, words and, where they decide about no split, ratings and times for the test rows."""
    splits, rows = leave_one_out(tables, positive_rating), tables.interactions
    tests = np.union1d(splits.topk.test.order_N, splits.rating.test.order_N)
    order_N = np.arange(rows.num_rows)
    order_N[tests] = np.roll(tests, 3)
    columns = ["item", "review", "summary", *(["rating"] if positive_rating is None else [])]
    for name in columns:
        place = rows.column_names.index(name)
        rows = rows.set_column(place, name, rows[name].take(order_N).combine_chunks())
    if positive_rating is None:
        times_N = rows["timestamp"].to_numpy().copy()
        times_N[tests] += 999
        rows = rows.set_column(rows.column_names.index("timestamp"), "timestamp", [times_N])
    assert not rows.equals(tables.interactions)
    return Tables(tables.name, rows, tables.items, tables.users)


def contents(run: Run[RecSysLLMConfig], pattern: str) -> dict[str, bytes]:
    files = sorted(run.path("corpus").glob(f"{pattern}/*"))
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


def test_other_test_rows_leave_the_corpus_byte_for_byte(
    run: Run[RecSysLLMConfig], tiny_llama: Path, tmp_path: Path
) -> None:
    other = shop_run(tmp_path, tiny_llama, shuffled(tables_of(SHOP), None))
    run_corpus(other)
    assert len(contents(run, "*")) == 5 * 2 * 4 and contents(other, "*") == contents(run, "*")
    run_questions(other)
    files = [path / "asked/sequential_seen/shard-00000.tar" for path in (run.folder, other.folder)]
    assert files[0].read_bytes() != files[1].read_bytes(), "the questions are others"


def test_other_test_rows_leave_what_is_learned_where_tasks_split_otherwise(tmp_path: Path) -> None:
    """With a least rating for top-k a row may be one task's test and, but for that, the other's training."""
    tables = tables_of(SHOP)
    found = []
    for name, used in (("one", tables), ("other", shuffled(tables, 4.0))):
        world = make_world(shop_run(tmp_path / name, "none", used, positive_rating=4.0))
        found.append([sample.to_json() for family in FAMILIES for sample in learned(world, family)])
    assert found[0] == found[1] and len(found[0]) > 100
    splits = leave_one_out(tables, 4.0)
    assert set(splits.topk.test.order_N) - set(splits.rating.test.order_N), "the tasks do split otherwise"


# --- templates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_held_out_is_learned_nowhere(run: Run[RecSysLLMConfig], family: FamilyName) -> None:
    templates = load_set("recsysllm", WORK[family].family)
    seen = {named.id for named in seen_templates(templates)}
    (unseen,) = {named.id for named in templates} - seen
    found = [
        r["meta"]["template_id"]
        for part in ("train", "valid")
        for r in records(run, f"corpus/{family}_{part}")
    ]
    assert unseen not in found and set(found) <= seen
    if family in ("rating", "sequential", "direct"):
        assert set(found) == seen, "every other one is learned"
    assert {r["meta"]["template_id"] for r in records(run, f"asked/{family}_unseen")} == {unseen}
    (asked,) = {r["meta"]["template_id"] for r in records(run, f"asked/{family}_seen")}
    first = next(named.id for named in templates if named.form == WORK[family].form)
    assert asked == first and asked in seen


@pytest.mark.parametrize("family", FAMILIES)
def test_both_prompts_ask_the_same_in_the_same_order(run: Run[RecSysLLMConfig], family: FamilyName) -> None:
    one, two = (records(run, f"asked/{family}_{prompt}") for prompt in ("seen", "unseen"))
    names = ("task", "form", "user", "items", "history", "answer")
    assert [[r["meta"][name] for name in names] for r in one] == [
        [r["meta"][name] for name in names] for r in two
    ]
    assert all(a["text"] != b["text"] for a, b in zip(one, two, strict=True))


def test_fewer_users_asked_are_the_head_of_all(run: Run[RecSysLLMConfig], tmp_path: Path) -> None:
    few = shop_run(tmp_path, "none", tables_of(SHOP), ask={"users": 4})
    world = asked_world(make_world(few))
    for family in FAMILIES:
        template = question_template(few.config.corpus, family, "seen")
        found = [sample.meta for sample in question_samples(few, world, family, template)]
        assert found == [record["meta"] for record in records(run, f"asked/{family}_seen")][:4]


def test_a_set_without_the_asked_template_is_one_sentence(tmp_path: Path) -> None:
    """Nothing is held out; or no prompt asks for a title."""
    raw = yaml.safe_load((FOLDER / "recsysllm/direct.yaml").read_text())["templates"]
    templates = [{key: value for key, value in one.items() if key != "unseen"} for one in raw]
    kept = [one for one in templates if one.get("form") != "title"]
    for name, entries, prompt in (("all", templates, "unseen"), ("yes_no", kept, "seen")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "direct.yaml").write_text(yaml.safe_dump({"templates": entries}))
        run = shop_run(tmp_path / "run", "none", tables_of(SHOP), corpus={"templates": str(folder)})
        with pytest.raises(UserError) as caught:
            question_template(run.config.corpus, "direct", prompt)  # type: ignore[arg-type]
        text = str(caught.value)
        assert text.startswith(f"corpus.templates = '{folder}': direct has no {prompt} template ")
        assert text.endswith(f"of the form title: add one, or take {prompt} out of ask.prompts.")


# --- what is drawn ------------------------------------------------------------------------------------


def test_the_number_of_samples(tmp_path: Path) -> None:
    """A smaller number is the head of a larger one; both are the same every time."""
    small, large = (small_world(tmp_path / str(n), samples=n) for n in (5, 12))
    for family in FAMILIES:
        one, two = learned(small, family), learned(large, family)
        assert (len(one), len(two)) == (5, 12) and two[:5] == one == learned(small, family)
        assert len({sample.key for sample in two}) == 12
    again = learned(small_world(tmp_path / "seed", samples=5, seed=9), "rating")
    assert again != learned(small, "rating")


def test_the_number_of_validation_samples(tmp_path: Path) -> None:
    world = small_world(tmp_path, valid_samples=4)
    templates = seen_templates(load_set("recsysllm", WORK["sequential"].family))
    found = [sample.meta["template_id"] for sample in validation_samples(world, "sequential", templates)]
    assert found == [named.id for named in templates[:4]], "in turn"


def test_a_long_history_is_sampled_before_its_row(tmp_path: Path) -> None:
    """At most so many, by periods; where no more are there, all."""
    world = small_world(tmp_path, history_items=3, periods={"short_days": 30, "medium_days": 120})
    histories = [(sample.meta["user"], sample.meta) for sample in learned(world, "rating")]
    lengths = set()
    for user, meta in histories:
        place = place_in(user, meta["items"][0])
        lengths.add(len(meta["history"]))
        assert len(meta["history"]) == min(place, 3) and set(meta["history"]) <= set(
            items_of(user, range(place))
        )
    assert lengths == {0, 1, 2, 3}
    latest = [m["history"] == items_of(u, range(place_in(u, m["items"][0])))[-3:] for u, m in histories]
    assert not all(latest), "not the latest only"


def test_noise_is_on_learned_ratings_alone(run: Run[RecSysLLMConfig], tmp_path: Path) -> None:
    """It stays about its rating and on the scale; validation and test have the ratings as they are."""

    def pairs(metas: Iterable[Any]) -> list[tuple[float, float]]:
        asked = [meta for meta in metas if meta["task"] == "rating"]
        return [(m["answer"], SHOP[m["user"]][place_in(m["user"], m["items"][0])]["rating"]) for m in asked]

    metas = {part: [r["meta"] for r in records(run, f"corpus/rating_{part}")] for part in ("train", "valid")}
    noisy = pairs(meta for meta in metas["train"] if meta["form"] == "rating")
    assert all(true - 0.5 <= answer <= true + 0.4 and 1 <= answer <= 5 for answer, true in noisy)
    assert sum(answer != true for answer, true in noisy) > len(noisy) / 2
    exact = pairs(meta for meta in metas["train"] if meta["form"] == "choice")
    for found in (metas["valid"], [r["meta"] for r in records(run, "asked/rating_unseen")]):
        exact += pairs(found)
    exact += pairs(sample.meta for sample in learned(small_world(tmp_path, jitter=False), "rating"))
    assert len(exact) > 100 and all(answer == true for answer, true in exact)


@pytest.mark.parametrize("part", ["train", "valid"])
def test_candidates_to_learn_from(run: Run[RecSysLLMConfig], part: str) -> None:
    """The target among items that the user has no training row of, at any place; else one item, yes or no."""
    places, answers = set(), set()
    for record in records(run, f"corpus/direct_{part}"):
        meta = record["meta"]
        bought = items_of(meta["user"], training_places(meta["user"]))
        if meta["form"] == "title":
            others = set(meta["items"]) - {meta["answer"]}
            places.add(meta["items"].index(meta["answer"]))
            assert len(meta["items"]) == len(others) + 1 == 7
        else:
            answers.add(meta["answer"])
            others = set() if meta["answer"] else set(meta["items"])
            assert len(meta["items"]) == 1
        assert not others & set(bought)
    assert len(places) > 3 and answers == {True, False}


def test_candidates_asked_about(run: Run[RecSysLLMConfig]) -> None:
    """The target among items that the user never touched."""
    for record in records(run, "asked/direct_seen"):
        meta = record["meta"]
        touched = items_of(meta["user"], range(len(SHOP[meta["user"]])))
        assert len(set(meta["items"])) == 7 and set(meta["items"]) & set(touched) == {meta["answer"]}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**32))
def test_candidates_of_any_catalogue(data: st.DataObject, num_items: int, count: int, seed: int) -> None:
    items = st.integers(0, num_items - 1)
    own, target = data.draw(st.lists(items, max_size=14)), data.draw(items)
    found = training_candidates(np.array(own, int), target, num_items, count, np.random.default_rng(seed))
    free = set(range(num_items)) - set(own) - {target}
    assert len(found) == len(set(found)) == 1 + min(count, len(free))
    assert set(found) - {target} <= free and target in found


def test_several_families_are_one_source(run: Run[RecSysLLMConfig]) -> None:
    """What is learned from: every sample of every folder once, in order."""
    readers = [ShardReader(run.path(f"corpus/{family}_valid")) for family in FAMILIES]
    source, places = Joined(readers), [(reader, n) for reader in readers for n in range(len(reader))]
    assert len(source.lengths_N) == len(source.num_prompt_N) == len(places) > 40 and not source.has_slots
    for index, (reader, place) in enumerate(places):
        assert np.array_equal(source.ids(index), reader.ids(place))
        assert source.record(index) == reader.record(place)
        assert source.lengths_N[index] == len(source.ids(index)) == reader.lengths_N[place]
        assert source.num_prompt_N[index] == source.record(index)["num_prompt"]


# --- what the data can feed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "able"),
    [
        ((), FAMILIES),
        (("rating",), ("sequential", "explanation", "direct")),
        (("summary",), ("rating", "sequential", "direct")),
        (("review",), ("rating", "sequential", "explanation", "direct")),
        (("rating", "review", "summary"), ("sequential", "direct")),
    ],
)
def test_families_that_the_data_feed(
    without: tuple[str, ...], able: tuple[FamilyName, ...], tmp_path: Path
) -> None:
    tables = tables_of(SHOP, without=without)
    assert feedable(tables) == list(able)
    run = shop_run(tmp_path, "none", tables)
    assert families_of(run.config, tables) == able
    world = make_world(run)
    assert all(learned(world, family) for family in able), "and they do"
    for family in set(FAMILIES) - set(able):
        asked = shop_run(tmp_path, "none", tables, corpus={"families": ["sequential", family]})
        with pytest.raises(UserError) as caught:
            families_of(asked.config, tables)
        assert str(caught.value) == (
            f"corpus.families: {family} needs ratings, reviews or summaries that shop does not have: "
            f"choose from {', '.join(able)}."
        )


def test_families_stand_in_their_own_order(tmp_path: Path) -> None:
    tables = tables_of(SHOP)
    run = shop_run(tmp_path, "none", tables, corpus={"families": ["review", "rating"]})
    assert families_of(run.config, tables) == ("rating", "review")


def test_attributes_that_are_shown(tmp_path: Path) -> None:
    tables = tables_of(SHOP)
    assert item_attributes(tables, None)[1] == {"category": "Brushs|Home"}, "descriptions are too long"
    assert item_attributes(tables, ["description"])[1] == {"description": "described 1"}
    assert item_attributes(tables, []) == []
    with pytest.raises(UserError, match="^corpus.details: colour named, no attribute of shop: choose from "):
        item_attributes(tables, ["category", "colour"])
    texts = [sample_text(sample.prompt) for sample in learned(small_world(tmp_path), "rating")]
    assert any("category: Brushs / Home" in text for text in texts) and any(
        "age: 23" in text for text in texts
    )


def test_rows_lack_a_review_or_a_summary() -> None:
    """Else the tests above would not meet them."""
    rows: list[Row] = [row for rows in SHOP for row in rows]
    assert any(row["review"] is None for row in rows) and any(row["summary"] is None for row in rows)
    assert len({row["item_key"] for row in rows}) == NUM_ITEMS, "ids are the numbers of titles"
