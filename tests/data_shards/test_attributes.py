"""Prompts and answers of item attributes by in-context learning."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from recloom.data_shards.samples import sample_text
from recloom.data_shards.textualize.attributes import (
    FAMILY,
    AttributesContext,
    attributes_sample,
    example_text,
    parse_attributes,
)
from recloom.data_shards.textualize.template import TextOptions, load_template

NAMES = ("director", "star")
EXAMPLE = {"title": "Fargo (1996)", "director": "Joel Coen", "star": "Frances McDormand"}


def test_the_prompt_shows_examples_in_the_form_of_the_answer() -> None:
    context = AttributesContext(1, NAMES, [EXAMPLE])
    options = TextOptions(["A", "Heat (1995)"], "movie")
    sample = attributes_sample(load_template("attributes", FAMILY), context, options)
    assert sample_text(sample.prompt) == (
        "Write down the director and star of each movie.\n"
        "Title: Fargo (1996)\nAttributes:\ndirector: Joel Coen\nstar: Frances McDormand\n"
        "Title: Heat (1995)\nAttributes:\n"
    )
    assert not sample.answer and sample.meta["items"] == [1]


line = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).filter(
    lambda text: text.lower() not in {"unknown", "none", "n/a", "-"}
)


@given(director=line, star=line)
def test_what_is_written_as_an_example_is_read_back(director: str, star: str) -> None:
    example = {"title": "X", "director": director, "star": star}
    answer = example_text(NAMES, example).split("Attributes:\n", 1)[1]
    assert parse_attributes(answer, NAMES) == {"director": director, "star": star}


def test_odd_answers() -> None:
    assert parse_attributes("", NAMES) is None
    assert parse_attributes("I don't know: sorry", NAMES) is None
    assert parse_attributes("Director:  Ang   Lee \nstar: unknown", NAMES) == {"director": "Ang Lee"}
    assert parse_attributes("star: A\nstar: B\nTitle: C\ndirector: D", NAMES) == {"star": "A"}
