"""Prompt families: the exact texts, the switches, the parse, and what is wrong with a bad template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import Entity, Slot, sample_text
from recloom.data_shards.textualize import listwise, next_item, rating
from recloom.data_shards.textualize.listwise import (
    ListwiseContext,
    listwise_sample,
    parse_listwise,
)
from recloom.data_shards.textualize.next_item import (
    NextItemContext,
    cut_titles,
    genres_sample,
    next_item_sample,
    quoted,
)
from recloom.data_shards.textualize.rating import RatingContext, rating_sample
from recloom.data_shards.textualize.template import (
    Template,
    TextOptions,
    load_template,
    one_line,
    one_line_titles,
)

TITLES = ["Alien (1979)", "Heat (1995)", "Kolya (1996)", "Birds, The (1963)", "Heat (1995)", "Fargo (1996)"]
OPTIONS = TextOptions(TITLES, "movie")
LISTWISE = ListwiseContext(
    user=7, history=[0, 1], candidates=[5, 2, 3], similar_history=[4], prediction=[2, 5], answer=[3, 5]
)
RATING = RatingContext(
    user=7, history=[(0, 4.0), (1, 2.5)], item=5, similar_history=[(2, 3.0)], prediction=3.21, answer=3.0
)

NEXT_ITEM = NextItemContext(
    user=7, history=[0, 3], candidates=[5, 2, 4], user_row=12, soft_items="behind", answer=2
)


@pytest.fixture
def ranking() -> Template:
    return load_template("listwise", listwise.FAMILY)


@pytest.fixture
def rating_template() -> Template:
    return load_template("rating", rating.FAMILY)


def test_listwise_prompt(ranking: Template) -> None:
    sample = listwise_sample(ranking, LISTWISE, OPTIONS)
    assert sample_text(sample.prompt) == (
        "Rank the candidate movies for the user, best first.\n"
        "Interaction History:\nAlien (1979)\nHeat (1995)\n"
        "Candidate Items:\nFargo (1996)\nKolya (1996)\nBirds, The (1963)\n"
        "Similar User Interaction History:\nHeat (1995)\n"
        "Conventional Model Prediction:\nKolya (1996)\nFargo (1996)\n"
        "Output:\n"
    )
    assert sample_text(sample.answer) == "Birds, The (1963)\nFargo (1996)"
    assert sample.meta == {"task": "listwise", "user": 7, "items": [5, 2, 3], "answer": [3, 5]}
    entities = [segment.id for segment in sample.prompt + sample.answer if isinstance(segment, Entity)]
    assert entities == [0, 1, 5, 2, 3, 4, 2, 5, 3, 5]


def test_liked_and_disliked_replace_the_history(ranking: Template) -> None:
    context = replace(LISTWISE, liked=[0, 3], disliked=[1])
    text = sample_text(listwise_sample(ranking, context, OPTIONS).prompt)
    assert "Liked:\nAlien (1979)\nBirds, The (1963)\nDisliked:\nHeat (1995)\nCandidate Items:\n" in text
    assert "Interaction History:\nAlien" not in text
    text = sample_text(listwise_sample(ranking, replace(context, disliked=[]), OPTIONS).prompt)
    assert "Liked:\n" in text and "Disliked" not in text
    text = sample_text(listwise_sample(ranking, replace(context, liked=[], disliked=[]), OPTIONS).prompt)
    assert "Liked" not in text and "Interaction History:\nAlien (1979)\n" in text


def test_listwise_augmentations_switch_off(ranking: Template) -> None:
    context = replace(LISTWISE, similar_history=None, prediction=None, answer=None)
    sample = listwise_sample(ranking, context, OPTIONS)
    text = sample_text(sample.prompt)
    assert "Similar" not in text and "Conventional" not in text and "\n\n" not in text
    assert text.endswith("Birds, The (1963)\nOutput:\n")
    assert sample.answer == () and sample.meta["answer"] is None


def test_rating_prompt(rating_template: Template) -> None:
    sample = rating_sample(rating_template, RATING, OPTIONS)
    assert sample_text(sample.prompt) == (
        "Predict the user's rating of the candidate movie.\n"
        "Rating History:\nAlien (1979): 4\nHeat (1995): 2.5\n"
        "Candidate Item: Fargo (1996)\n"
        "Similar User Rating History:\nKolya (1996): 3\n"
        "Conventional Model Prediction: 3.2\n"
        "Output:\n"
    )
    assert sample_text(sample.answer) == "3"
    assert sample.meta == {"task": "rating", "user": 7, "items": [5], "answer": 3.0}


def test_rating_augmentations_switch_off(rating_template: Template) -> None:
    context = replace(RATING, similar_history=None, prediction=None, answer=None)
    text = sample_text(rating_sample(rating_template, context, replace(OPTIONS, noun="book")).prompt)
    assert text == (
        "Predict the user's rating of the candidate book.\nRating History:\nAlien (1979): 4\n"
        "Heat (1995): 2.5\nCandidate Item: Fargo (1996)\nOutput:\n"
    )


def next_item_text(context: NextItemContext) -> str:
    template = load_template("next_item", next_item.FAMILY)
    return sample_text(next_item_sample(template, context, OPTIONS, "watched").prompt)


WORDS_ONLY = (
    "This user has watched the following movies:\n"
    '"Alien (1979)"\n"Birds, The (1963)"\n'
    "Recommend one movie for this user out of the following set of movie titles:\n"
    '"Fargo (1996)"\n"Kolya (1996)"\n"Heat (1995)"\n'
    "The recommendation is\n"
)


def test_next_item_prompt() -> None:
    sample = next_item_sample(load_template("next_item", next_item.FAMILY), NEXT_ITEM, OPTIONS, "watched")
    assert sample_text(sample.prompt) == (
        "<user 12> is a user representation.\n"
        "This user has watched the following movies:\n"
        '"Alien (1979)"<history 0>\n"Birds, The (1963)"<history 3>\n'
        "Recommend one movie for this user out of the following set of movie titles:\n"
        '"Fargo (1996)"<candidate 5>\n"Kolya (1996)"<candidate 2>\n"Heat (1995)"<candidate 4>\n'
        "The recommendation is\n"
    )
    assert sample_text(sample.answer) == quoted(TITLES[2]) == '"Kolya (1996)"'
    assert sample.meta == {"task": "next_item", "user": 7, "items": [5, 2, 4], "answer": 2}
    entities = [(s.text, s.id) for s in sample.prompt + sample.answer if isinstance(s, Entity)]
    assert entities == [(TITLES[item], item) for item in (0, 3, 5, 2, 4, 2)], "without the quotes"
    assert sample.prompt[0] == Slot("user", 12) and not any(isinstance(s, Slot) for s in sample.answer)


def test_next_item_with_vectors_before_the_titles() -> None:
    assert next_item_text(replace(NEXT_ITEM, soft_items="before")) == (
        "<user 12> is a user representation.\n"
        "This user has watched the following movies:\n"
        '<history 0>"Alien (1979)"\n<history 3>"Birds, The (1963)"\n'
        "Recommend one movie for this user out of the following set of movie titles:\n"
        '<candidate 5>"Fargo (1996)"\n<candidate 2>"Kolya (1996)"\n<candidate 4>"Heat (1995)"\n'
        "The recommendation is\n"
    )


def test_next_item_without_vectors_is_words_alone() -> None:
    plain = replace(NEXT_ITEM, user_row=None, soft_items=None)
    assert next_item_text(plain) == WORDS_ONLY
    assert next_item_text(replace(plain, user_row=0)) == f"<user 0> is a user representation.\n{WORDS_ONLY}"
    assert next_item_text(replace(NEXT_ITEM, user_row=None)) == next_item_text(NEXT_ITEM).partition("\n")[2]


def test_next_item_at_inference_is_the_prompt_of_training() -> None:
    template = load_template("next_item", next_item.FAMILY)
    asked, trained = (
        next_item_sample(template, replace(NEXT_ITEM, answer=answer), OPTIONS, "watched")
        for answer in (None, 2)
    )
    assert asked.prompt == trained.prompt and asked.answer == () and asked.meta["answer"] is None
    with pytest.raises(AssertionError, match="the answer is a candidate"):
        next_item_text(replace(NEXT_ITEM, answer=0))


def test_genres_prompt() -> None:
    template = load_template("genres", next_item.GENRES)
    sample = genres_sample(template, NEXT_ITEM, OPTIONS, "watched")
    assert sample_text(sample.prompt) == (
        "<user 12> is a user representation.\n"
        "This user has watched the following movies:\n"
        '"Alien (1979)"<history 0>\n"Birds, The (1963)"<history 3>\n'
        "What genres of movies would this user enjoy? Name the genres.\n"
        "The user would enjoy these genres:\n"
    )
    assert sample.answer == () and sample.meta == {"task": "genres", "user": 7}
    plain = genres_sample(template, replace(NEXT_ITEM, user_row=None, soft_items=None), OPTIONS, "read")
    assert sample_text(plain.prompt).startswith(
        'This user has read the following movies:\n"Alien (1979)"\n"Birds'
    )


@settings(max_examples=100, derandomize=True)
@given(titles=st.lists(st.text()), words=st.integers(1, 4))
def test_cut_titles(titles: list[str], words: int) -> None:
    assert cut_titles(titles, None) == titles
    for title, cut in zip(titles, cut_titles(titles, words), strict=True):
        assert cut == one_line(cut) and one_line(title).startswith(cut)
        assert len(cut.split()) == min(words, len(title.split()))


def test_keys_name_the_content(ranking: Template) -> None:
    key = listwise_sample(ranking, LISTWISE, OPTIONS).key
    assert key == listwise_sample(ranking, replace(LISTWISE), OPTIONS).key
    others = [
        replace(LISTWISE, user=8),
        replace(LISTWISE, candidates=[2, 5, 3]),
        replace(LISTWISE, answer=[5, 3]),
    ]
    assert len({key, *(listwise_sample(ranking, other, OPTIONS).key for other in others)}) == 4


def test_parse_counts_what_is_no_candidate() -> None:
    text = " Kolya (1996)\n\nAlien (1979)\nKolya (1996)\nFargo  (1996)\nBirds, The"
    parse = parse_listwise(text, [5, 2, 3], TITLES)
    assert (parse.order, parse.invalid, parse.num_lines) == ([2, 5], 2, 5)
    assert parse_listwise("", [5, 2], TITLES).order == []


def test_parse_tells_shared_titles_apart_by_candidate_order() -> None:
    text = "Heat (1995)\nAlien (1979)\nHeat (1995)\nHeat (1995)"
    assert parse_listwise(text, [4, 0, 1], TITLES).order == [4, 0, 1]
    assert parse_listwise(text, [1, 0], TITLES).order == [1, 0]
    assert parse_listwise(text, [1, 0], TITLES).invalid == 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_parse_reads_back_every_answer(data: st.DataObject) -> None:
    raw = data.draw(
        st.lists(st.text(min_size=1).filter(lambda text: one_line(text) != ""), min_size=1, max_size=8)
    )
    titles = one_line_titles(raw)
    candidates = data.draw(st.permutations(range(len(titles))))
    answer = data.draw(st.permutations(candidates))
    context = ListwiseContext(user=0, history=[], candidates=candidates, answer=answer)
    sample = listwise_sample(load_template("listwise", listwise.FAMILY), context, TextOptions(titles, "item"))
    parse = parse_listwise(sample_text(sample.answer), candidates, titles)
    assert parse.invalid == 0 and sorted(parse.order) == sorted(candidates)
    assert [titles[item] for item in parse.order] == [titles[item] for item in answer]


def test_titles_become_one_line() -> None:
    assert one_line_titles([" a\n b\t\u2028c "]) == ["a b c"]
    with pytest.raises(UserError, match="item 1 has a blank title"):
        one_line_titles(["a", " \n"])


GOOD = 'blocks: ["History: {history}", "Items: {candidates}", "Output:\\n{answer}"]'


def load_text(tmp_path: Path, text: str) -> Template:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_template(path, listwise.FAMILY)


def test_a_users_template(tmp_path: Path) -> None:
    template = load_text(tmp_path, GOOD)
    context = ListwiseContext(user=1, history=[0], candidates=[1, 2])
    text = sample_text(listwise_sample(template, context, OPTIONS).prompt)
    assert text == "History: Alien (1979)\nItems: Heat (1995)\nKolya (1996)\nOutput:\n"
    with pytest.raises(UserError, match=r"content for \{prediction\} and no such placeholder"):
        listwise_sample(template, replace(context, prediction=[1]), OPTIONS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{candidates}", "none", r"placeholder \{candidates\} is missing"),
        ("{history}", "{hist}", r"unknown placeholder \{hist\}"),
        ("{answer}", "now", r"placeholder \{answer\} is missing"),
        ("Output:\\n{answer}", "Output: {answer}", "alone on the last line"),
        ("{answer}", "{answer} end", "alone on the last line"),
        ("Output:\\n{answer}", "Output {prediction}:\\n{answer}", "no other placeholder"),
        ("{history}", "{history}{answer}", "must stand once"),
        ("History:", "History:\\n\\n", "blank or has white space"),
        ("{history}", "{history} ", "blank or has white space"),
        ("{history}", "{history", "mend the braces"),
        ("{history}", "{history:>3}", "mend the braces"),
        ("blocks:", "block:", "one list of texts named `blocks`"),
        ("blocks: [", "blocks: [3, ", "one list of texts"),
        (GOOD, "blocks: [", "no valid YAML"),
    ],
)
def test_bad_templates_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=message):
        load_text(tmp_path, GOOD.replace(old, new))


def test_an_unknown_template_name_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="listwise, next_item, rating"):
        load_template("listwyse", listwise.FAMILY)
