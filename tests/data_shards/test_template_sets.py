"""Sets of templates: what is shipped, a user's own, and what is wrong with a bad one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from recloom.data_shards.errors import UserError
from recloom.data_shards.textualize.template import FOLDER, Field
from recloom.data_shards.textualize.template_sets import (
    NamedTemplate,
    TaskFamily,
    load_set,
    parse_word,
    read_answers,
    seen_templates,
    set_path,
    unseen_template,
)

NAMES = ("rating", "sequential", "explanation", "review", "direct")
FAMILIES = {
    name: importlib.import_module(f"recloom.data_shards.textualize.{name}_task").FAMILY for name in NAMES
}


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_sets(name: str) -> None:
    templates = load_set("recsysllm", FAMILIES[name])
    assert len(templates) >= 10
    assert [named.unseen for named in templates].count(True) == 1
    assert len({named.id for named in templates}) == len(templates)
    assert all(named.id.startswith(f"{name}-") for named in templates)
    texts = [" ".join(words(named).casefold().split()) for named in templates]
    assert len(set(texts)) == len(texts), "no two templates say the same"
    assert {named.form for named in seen_templates(templates)} == set(FAMILIES[name].forms)


def words(named: NamedTemplate) -> str:
    """A template's text without its blocks' places."""
    parts = [part for block in named.template.blocks for part in block]
    return "".join(f"{{{part.name}}}" if isinstance(part, Field) else part.text for part in parts)


def test_the_shipped_sets_vary() -> None:
    """What the tasks are to vary in: users with and without features, lists and running text, hints."""
    fields = {name: [t.template.fields for t in load_set("recsysllm", FAMILIES[name])] for name in NAMES}
    for name in NAMES:
        assert 0 < sum("features" in shown for shown in fields[name]) < len(fields[name])
    for name in ("rating", "sequential", "direct"):
        used = frozenset().union(*fields[name])
        assert used >= {"history", "history_text", "rated_history"}
    hints = [shown & {"feature", "rating", "opinion"} for shown in fields["explanation"]]
    assert not all(hints) and {"feature"} in hints and {"rating"} in hints and {"opinion"} in hints


GOOD = """
templates:
  - {id: a, blocks: ["Review: {review}", "Short:\\n{answer}"]}
  - {id: b, form: rating, unseen: true, blocks: ["{review}", "Stars:\\n{answer}"]}
"""


def load_text(
    tmp_path: Path, text: str, family: TaskFamily = FAMILIES["review"]
) -> tuple[NamedTemplate, ...]:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_set(path, family)


def test_a_users_set(tmp_path: Path) -> None:
    templates = load_text(tmp_path, GOOD)
    assert [(t.id, t.form, t.unseen) for t in templates] == [("a", "summary", False), ("b", "rating", True)]
    assert seen_templates(templates) == templates[:1] and unseen_template(templates) == templates[1]
    templates = load_text(tmp_path, GOOD.replace("true", "false"))
    assert seen_templates(templates) == templates and unseen_template(templates) is None


BAD = [
    ("templates:", "template:", "a set is one list named `templates`"),
    (GOOD, "templates: []", "a set is one list named `templates`"),
    (GOOD, "templates: [", "no valid YAML"),
    (GOOD, "templates: [3]", "number 1: a template has an `id`"),
    ("id: b, ", "", "number 2: a template has an `id`"),
    ("id: b", "id: b, name: c", "number 2: a template has an `id`"),
    ('["{review}", ', "[3, ", "number 2: a template has an `id`"),
    ("id: b", "id: 2", "id is 2: use letters"),
    ("id: b", "id: b c", "id is 'b c': use letters"),
    ("id: b", "id: a", "id a is there twice"),
    ("form: rating", "form: stars", "mine.yaml, b: form is 'stars': review has summary, rating"),
    ("form: rating", "form: [rating]", "form is"),
    ("unseen: true", "unseen: maybe", "unseen is 'maybe': it must be true or false"),
    ("id: a", "id: a, unseen: true", "2 of 2 templates are unseen"),
    ("{review}", "{revue}", r"mine.yaml, a: unknown placeholder \{revue\}"),
    ("Review: {review}", "Review", r"mine.yaml, a: placeholder \{review\} is missing"),
    ("Short:\\n{answer}", "Short: {answer}", "mine.yaml, a: .*alone on the last line"),
    ("Review: {review}", "Review: {review} ", "blank or has white space"),
    ("Review: {review}", "Review: {review", "mend the braces"),
    ("form: rating, unseen: true", "unseen: false", None),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_bad_sets_are_refused_in_one_sentence(
    tmp_path: Path, old: str, new: str, message: str | None
) -> None:
    assert old in GOOD
    if message is None:
        assert len(load_text(tmp_path, GOOD.replace(old, new))) == 2
        return
    with pytest.raises(UserError, match=message) as caught:
        load_text(tmp_path, GOOD.replace(old, new))
    assert "\n" not in str(caught.value) and "mine.yaml" in str(caught.value)


def test_equal_templates_are_refused(tmp_path: Path) -> None:
    text = GOOD + '  - {id: c, blocks: ["Review: {review}", "Short:\\n{answer}"]}\n'
    with pytest.raises(UserError, match="a and c are equal"):
        load_text(tmp_path, text)


def test_placeholders_of_a_form_and_of_lists(tmp_path: Path) -> None:
    direct = 'templates: [{id: a, form: title, blocks: ["{candidate}", "X:\\n{answer}"]}]'
    with pytest.raises(UserError, match=r"unknown placeholder \{candidate\}"):
        load_text(tmp_path, direct, FAMILIES["direct"])
    with pytest.raises(UserError, match=r"placeholder \{candidate\} is missing"):
        load_text(
            tmp_path, direct.replace("{candidate}", "Well?").replace("title", "yes_no"), FAMILIES["direct"]
        )
    nothing = 'templates: [{id: a, blocks: ["{features}", "Next:\\n{answer}"]}]'
    with pytest.raises(UserError, match=r"one of the placeholders \{history\}, \{history_text\}"):
        load_text(tmp_path, nothing, FAMILIES["sequential"])


def test_a_missing_set_names_the_shipped_one() -> None:
    with pytest.raises(UserError, match="no such file: name recsysllm, or the path"):
        load_set("recsysllama", FAMILIES["rating"])


def test_answers_that_cannot_be_read_are_counted() -> None:
    read = read_answers(["Yes.", "no way", "perhaps yes", ""], lambda text: parse_word(text, ("yes", "no")))
    assert read.values == ["yes", "no", None, None] and read.unread == 2


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    """A path of a folder holds a file a task, as the shipped folder does."""
    shipped = FOLDER / "recsysllm" / "rating.yaml"
    (tmp_path / "rating.yaml").write_text(shipped.read_text())
    assert set_path(tmp_path, "rating") == tmp_path / "rating.yaml"
    assert set_path("recsysllm", "rating") == shipped
    assert set_path("mine.yaml", "rating") == Path("mine.yaml")
