"""The five tasks of RecSysLLM: exact texts, every shipped template, entities, no leaks, reading answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.samples import Entity, Sample, sample_text
from recloom.data_shards.sources import amazon2014
from recloom.data_shards.textualize import (
    direct_task,
    explanation_task,
    rating_task,
    review_task,
    sequential_task,
)
from recloom.data_shards.textualize.behaviour import Person, TaskOptions
from recloom.data_shards.textualize.direct_task import (
    DirectContext,
    direct_sample,
    parse_title,
    parse_yes_no,
)
from recloom.data_shards.textualize.explanation_task import (
    Explanation,
    ExplanationContext,
    explanation_of,
    explanation_sample,
    has_hints,
)
from recloom.data_shards.textualize.rating_task import (
    RatingContext,
    jitter_rating,
    parse_choice,
    parse_rating,
    rating_sample,
)
from recloom.data_shards.textualize.review_task import ReviewContext, review_sample
from recloom.data_shards.textualize.sequential_task import SequentialContext, sequential_sample
from recloom.data_shards.textualize.template_sets import NamedTemplate, load_set, read_answers

TITLES = ["Red Lacquer", "Nail File", "Rose Soap", "Hand Cream", "Nail File"]
DETAILS = [{"brand": "OPI", "category": "Beauty|Nails"}, {}, {"brand": None}, {"brand": "Zoe"}, {}]
OPTIONS = TaskOptions(TITLES, "item", details=DETAILS)
FULL = Person(7, {"age": "24", "job": "writer"}, history=[2, 1], ratings=[5.0, 3.0])
BARE = Person(7)


class Task(NamedTuple):
    make: Callable[[NamedTemplate, Any, TaskOptions], Sample]
    templates: dict[str, NamedTemplate]
    full: Any
    minimal: Any


def task(
    module: Any, make: Callable[[NamedTemplate, Any, TaskOptions], Sample], full: Any, minimal: Any
) -> Task:
    return Task(make, {named.id: named for named in load_set("recsysllm", module.FAMILY)}, full, minimal)


TASKS = {
    "rating": task(rating_task, rating_sample, RatingContext(FULL, 0, 4.0), RatingContext(BARE, 0)),
    "sequential": task(
        sequential_task,
        sequential_sample,
        SequentialContext(FULL, 0),
        SequentialContext(replace(BARE, history=[2])),
    ),
    "explanation": task(
        explanation_task,
        explanation_sample,
        ExplanationContext(FULL, 0, "Nails", 4.0, "My nails shine."),
        ExplanationContext(BARE, 0),
    ),
    "review": task(
        review_task,
        review_sample,
        ReviewContext(FULL, 0, "It dries\nfast. It is red.", "Quick red", 4.0),
        ReviewContext(BARE, 0, "It is red."),
    ),
    "direct": task(direct_task, direct_sample, DirectContext(FULL, [3, 0], 0), DirectContext(BARE, [3, 0])),
}
EVERY = [(name, id) for name, one in TASKS.items() for id in one.templates]


def make(name: str, id: str, context: Any, options: TaskOptions = OPTIONS) -> Sample:
    """A sample; a yes/no question is about the last of the candidates."""
    one = TASKS[name]
    if one.templates[id].form == "yes_no":
        context = replace(context, candidates=context.candidates[-1:])
    return one.make(one.templates[id], context, options)


EXACT = {
    "rating-01": "Estimate the rating this user would give the item below. The scale is 1 to 5.\n"
    "User: age: 24, job: writer\nRatings so far, oldest first:\nRose Soap (rated 5)\nNail File (rated 3)\n"
    "To be rated: Red Lacquer\nRating:\n=> 4",
    "rating-10": "User profile: age: 24, job: writer\nEverything bought so far: Rose Soap | Nail File\n"
    "Item on offer: Red Lacquer\nItem profile: brand: OPI, category: Beauty / Nails\nLike or dislike?\n"
    "=> like",
    "sequential-01": "Name the item that comes next for this user.\nUser: age: 24, job: writer\n"
    "Sequence, oldest first:\nRose Soap\nNail File\nNext:\n=> Red Lacquer",
    "explanation-10": "Notes for a comment by a user\n- about: Red Lacquer\n- aspect: Nails\n- score: 4\n"
    "The comment:\n=> My nails shine.",
    "review-01": "Shorten the review to a headline.\nReview: It dries fast. It is red.\nHeadline:\n"
    "=> Quick red",
    "review-07": "Read the review and recover its number of stars, on the scale 1 to 5.\n"
    "Review: It dries fast. It is red.\nStars:\n=> 4",
    "direct-01": "Pick the item that suits this user best.\nUser: age: 24, job: writer\n"
    "History, oldest first:\nRose Soap\nNail File\nChoices:\nHand Cream\nRed Lacquer\nBest choice:\n"
    "=> Red Lacquer",
    "direct-06": "Does the item suit the user? Answer yes or no.\nUser: age: 24, job: writer\n"
    "History:\nRose Soap\nNail File\nitem: Red Lacquer\nAnswer:\n=> yes",
}


@pytest.mark.parametrize("id", EXACT)
def test_exact_texts(id: str) -> None:
    name = id.partition("-")[0]
    sample = make(name, id, TASKS[name].full)
    assert f"{sample_text(sample.prompt)}=> {sample_text(sample.answer)}" == EXACT[id]


@pytest.mark.parametrize(("name", "id"), EVERY)
def test_every_template_with_full_and_with_minimal_contexts(name: str, id: str) -> None:
    full, minimal = make(name, id, TASKS[name].full), make(name, id, TASKS[name].minimal)
    assert full.answer and not minimal.answer and minimal.meta["answer"] is None
    for sample in (full, minimal):
        text = sample_text(sample.prompt)
        assert text.endswith("\n") and "\n\n" not in text and "{" not in text and " \n" not in text
        assert sample.meta["task"] == name and sample.meta["template_id"] == id and sample.meta["user"] == 7
        assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample
    assert full.meta["history"] == [2, 1] and full.key != minimal.key
    fields = TASKS[name].templates[id].template.fields
    for part, shown in {"features": "writer", "details": "OPI", "feature": "Nails"}.items():
        assert (shown in sample_text(full.prompt)) >= (part in fields)


@pytest.mark.parametrize(
    ("name", "id"), [(name, id) for name, id in EVERY if name in ("sequential", "direct")]
)
def test_a_recommendation_shows_the_history_without_ratings_too(name: str, id: str) -> None:
    sample = make(name, id, replace(TASKS[name].full, person=replace(FULL, ratings=None)))
    assert all(TITLES[item] in sample_text(sample.prompt) for item in FULL.history)


@pytest.mark.parametrize(("name", "id"), EVERY)
def test_entities_are_exactly_titles_and_attribute_values(name: str, id: str) -> None:
    sample = make(name, id, TASKS[name].full)
    entities = [s for s in sample.prompt + sample.answer if isinstance(s, Entity)]
    assert all(s.text == TITLES[s.id] for s in entities if s.kind == "item" and s.id is not None)
    assert {s.id for s in entities if s.kind == "item"} <= {0, 1, 2, 3}
    values = {s.text for s in entities if s.kind == "attribute"}
    assert values <= {"24", "writer", "OPI", "Beauty", "Nails"}
    literal = "".join(s.text for s in sample.prompt if not isinstance(s, Entity) and hasattr(s, "text"))
    assert not any(title in literal for title in TITLES), "a title is never literal text"


def test_metas() -> None:
    metas = {id: make(id.partition("-")[0], id, TASKS[id.partition("-")[0]].full).meta for id in EXACT}
    answers = {id: (meta["form"], meta["items"], meta["answer"]) for id, meta in metas.items()}
    assert answers == {
        "rating-01": ("rating", [0], 4.0),
        "rating-10": ("choice", [0], 4.0),
        "sequential-01": ("title", [], 0),
        "explanation-10": ("explanation", [0], "My nails shine."),
        "review-01": ("summary", [0], "Quick red"),
        "review-07": ("rating", [0], 4.0),
        "direct-01": ("title", [3, 0], 0),
        "direct-06": ("yes_no", [0], True),
    }


@pytest.mark.parametrize(("name", "id"), EVERY)
def test_prompts_at_inference_are_those_of_training(name: str, id: str) -> None:
    nothing: dict[str, Any] = {"answer": None}
    if name == "review":
        nothing = {"summary": None, "rating": None}
    if name == "direct":
        nothing = {"target": None}
    context = TASKS[name].full
    asked, trained = make(name, id, replace(context, **nothing)), make(name, id, context)
    assert asked.prompt == trained.prompt and asked.answer == ()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_target_leaks_into_a_prompt(data: st.DataObject) -> None:
    """A prompt is the same whatever the answer is, and a target outside of the history is nowhere in it."""
    ids = data.draw(st.permutations(range(12)))
    options = TaskOptions([f"title{item:02d}" for item in range(12)], "item")
    size = data.draw(st.integers(1, 8))
    ratings = data.draw(st.lists(st.integers(1, 5), min_size=size, max_size=size))
    person = Person(3, {"age": "9"}, ids[:size], [float(rating) for rating in ratings])
    item, other = ids[size], ids[size + 1]
    pairs: dict[str, tuple[Any, Any]] = {
        "rating": (RatingContext(person, item, 1.0), RatingContext(person, item, 5.0)),
        "sequential": (SequentialContext(person, item), SequentialContext(person, other)),
        "explanation": (
            ExplanationContext(person, item, answer="It is secret."),
            ExplanationContext(person, item, answer="It is hidden."),
        ),
        "review": (
            ReviewContext(person, item, "text", "secret", 1.0),
            ReviewContext(person, item, "text", "hidden", 5.0),
        ),
        "direct": (DirectContext(person, [other, item], item), DirectContext(person, [other, item], other)),
    }
    for name, id in EVERY:
        one, two = (make(name, id, context, options) for context in pairs[name])
        assert one.prompt == two.prompt and one.answer != two.answer
        text = sample_text(one.prompt)
        assert "secret" not in text and (name != "sequential" or options.titles[item] not in text)
        shown = [s.id for s in one.prompt if isinstance(s, Entity) and s.kind == "item"]
        assert shown.count(item) <= 1 and set(shown) <= {*ids[:size], *one.meta["items"]}


def test_numpy_numbers_become_json() -> None:
    item, rating = np.arange(4, dtype=np.int32), np.ones(1, np.float32)[0] * 3
    person = Person(item[1], history=list(item[1:3]), ratings=[rating, rating])
    contexts = {
        "rating": RatingContext(person, item[0], rating),
        "sequential": SequentialContext(person, item[0]),
        "direct": DirectContext(person, [item[3], item[0]], item[0]),
        "review": ReviewContext(person, item[0], "text", "short", rating),
        "explanation": ExplanationContext(person, item[0], "nails", rating, "It is."),
    }
    for name, id in EVERY:
        sample = make(name, id, contexts[name])
        assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample


def test_a_yes_no_question_about_another_item() -> None:
    sample = make("direct", "direct-06", DirectContext(FULL, [3], 0))
    assert sample_text(sample.answer) == "no" and sample.meta["answer"] is False
    with pytest.raises(AssertionError, match="one candidate"):
        direct_sample(TASKS["direct"].templates["direct-06"], DirectContext(FULL, [3, 0], 0), OPTIONS)
    with pytest.raises(AssertionError, match="the target is a candidate"):
        make("direct", "direct-01", DirectContext(FULL, [3], 0))


def test_long_reviews_are_cut() -> None:
    context = ReviewContext(FULL, 0, "one two three four", "few", 2.0)
    text = sample_text(make("review", "review-01", context, replace(OPTIONS, review_words=2)).prompt)
    assert "Review: one two\n" in text
    with pytest.raises(AssertionError, match="have text"):
        make("review", "review-01", replace(context, review=" "))


def test_hints() -> None:
    templates = TASKS["explanation"].templates
    assert [id for id, one in templates.items() if not has_hints(one)] == [
        f"explanation-0{k}" for k in range(1, 6)
    ]
    sample = make("explanation", "explanation-09", replace(TASKS["explanation"].full, rating=2.0))
    assert "In one word: dislike\n" in sample_text(sample.prompt)


def test_the_rule_of_explanations() -> None:
    attributes = ["Musical Instruments|Guitar Strings", "D'Addario", None]
    review = "Well, what shall I say?  I use the string\non my bass. These guitars like it!"
    assert explanation_of(review, "Good", attributes) == Explanation("I use the string on my bass.", "string")
    assert explanation_of("All for the best.", " So\ngood ", ["for the best ones"]) == Explanation(
        "All for the best.", "best"
    )
    assert explanation_of("It is fine.", " So\ngood ", attributes) == Explanation("So good", None)
    assert explanation_of("", " ", attributes) is None


def test_ratings_are_read() -> None:
    texts = ["4", "I say 3.5 of 5", "0", "5.1", "-3", "none", "v2 is 2", ""]
    read = read_answers(texts, lambda text: parse_rating(text, OPTIONS))
    assert read.values == [4.0, 3.5, None, None, None, None, 2.0, None] and read.unread == 5
    assert [parse_choice(text) for text in (" Like!", "dislike", "likely", "I like")] == [
        "like",
        "dislike",
        None,
        None,
    ]


def test_yes_no_and_titles_are_read() -> None:
    assert [parse_yes_no(text) for text in ("Yes", "no.", "nope", "")] == [True, False, None, None]
    assert parse_title(" \n Nail  File \nRed Lacquer", [0, 4, 1], TITLES) == 4
    assert parse_title("Nail", [0, 4, 1], TITLES) is None and parse_title("", [0], TITLES) is None


def test_jittered_ratings() -> None:
    """As in P5: about the middle of what rounds to the rating, on the scale, with one decimal."""
    generator = np.random.default_rng(0)
    for rating, middle, deviation in ((1.0, 1.2, 0.1), (3.0, 2.95, 0.225), (5.0, 4.75, 0.125)):
        drawn = np.array([jitter_rating(rating, generator, OPTIONS) for _ in range(2000)])
        assert abs(drawn.mean() - middle) < 0.03 and abs(drawn.std() - deviation) < 0.04
        assert drawn.min() >= 1 and drawn.max() <= 5 and np.allclose(drawn, drawn.round(1))


def test_genuine_reviews(shared_data: Path, tmp_path: Path) -> None:
    """Musical Instruments of 2014: every review gives an explanation that stands in it, or its summary."""
    dump = shared_data / "amazon2014-musical-instruments" / "reviews_Musical_Instruments_5.json.gz"
    rows = amazon2014.load(amazon2014.Settings(reviews=str(dump)), tmp_path).interactions
    columns = zip(rows["review"].to_pylist(), rows["summary"].to_pylist(), strict=True)
    found = [
        (explanation_of(review, summary, ["Guitar Strings"]), review, summary) for review, summary in columns
    ]
    named = [(one, review) for one, review, _ in found if one is not None and one.feature is not None]
    assert all(one.text in " ".join(review.split()) and one.feature in one.text for one, review in named)
    assert 0.3 < len(named) / len(found) < 0.6, "about as many speak of guitars or strings"
    assert all(one.text == " ".join(summary.split()) for one, _, summary in found if one and not one.feature)
