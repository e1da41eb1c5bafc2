"""The renderer composes cached lines into exactly the ids of the whole text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer, fingerprint
from recloom.data_shards.samples import (
    Entity,
    Literal,
    Sample,
    Segment,
    Slot,
    merge_literals,
    sample_text,
)
from recloom.data_shards.textualize.template import one_line

ODD_ENDS = [
    "",
    "(",
    ")",
    "'",
    '"',
    "/",
    "-",
    "...",
    ",",
    "[",
    "]",
    "<s>",
    "</s>",
    "<|im_end|>",
    "\u0301",
    "\u200b",
    "🎬",
]
WORDS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab Z19(),'’éÊ東京Жש▁ĊĠ\t")),
    min_size=1,
    max_size=12,
)
TITLES = st.builds(
    lambda start, words, end: one_line(start + " ".join(words) + end),
    st.sampled_from(ODD_ENDS),
    st.lists(WORDS, min_size=1, max_size=4),
    st.sampled_from(ODD_ENDS),
).filter(bool)
# Literals with blank lines, indentation and white space before a newline
GLUE = st.sampled_from(["\n", "\n\n", "\n\n\n", " \n", "\n  ", ": 4\n", "\n\t", "; ", "\r\n", "\nHistory:\n"])
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Any:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def llama2(shared_data: Path) -> Any:
    return load_tokenizer(shared_data / "llama2-tokenizer")


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=["smol", "llama2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


def whole_ids(tokenizer: Any, text: str) -> list[int]:
    """What the tokenizer itself gives for the whole text, which holds no control tokens."""
    return list(tokenizer(text, split_special_tokens=True).input_ids)


def list_segments(titles: list[str]) -> list[Segment]:
    segments: list[Segment] = [Literal("Candidate Items:\n")]
    for item, title in enumerate(titles):
        segments += [Entity(title, "item", item), Literal("\n")]
    return [*segments, Literal("Output:\n")]


@SETTINGS
@given(titles=st.lists(TITLES, min_size=1, max_size=8))
def test_lines_compose_to_the_whole_text(renderer: Renderer, tokenizer: Any, titles: list[str]) -> None:
    segments = list_segments(titles)
    assert renderer.render_prompt(segments) == whole_ids(tokenizer, sample_text(segments))


@SETTINGS
@given(parts=st.lists(st.tuples(TITLES, GLUE), min_size=1, max_size=6))
def test_any_white_space_composes_to_the_whole_text(
    renderer: Renderer, tokenizer: Any, parts: list[tuple[str, str]]
) -> None:
    segments = [Literal(text) for part in parts for text in part]
    assert renderer.render_prompt(segments) == whole_ids(tokenizer, sample_text(segments))


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = LLAMA3.replace(r"+[\r\n]*|", r"+[\r\n/]*|")


def splitter(name: str) -> Any:
    """How other families of byte-level tokenizers split text before merging."""
    from tokenizers import Regex, pre_tokenizers

    if name == "prefix space":
        return pre_tokenizers.ByteLevel(add_prefix_space=True)
    split = pre_tokenizers.Split(Regex({"llama3": LLAMA3, "o200k": O200K}[name]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.mark.parametrize("name", ["prefix space", "llama3", "o200k"])
def test_other_splitters_compose_to_the_whole_text(smollm2: Path, name: str) -> None:
    tokenizer = load_tokenizer(smollm2)
    tokenizer.backend_tokenizer.pre_tokenizer = splitter(name)
    renderer = Renderer(tokenizer)
    pieces = [*"ab Z1(),'/.:-é\t\n", "\n", "\n", "\n ", "\r\n", " \n", "\u0301", ")\n/"]
    rng = random.Random(0)
    for _ in range(1000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 30)))
        assert renderer.render_prompt([Literal(text)]) == whole_ids(tokenizer, text)


@SETTINGS
@given(titles=st.lists(TITLES, min_size=1, max_size=5), answers=st.lists(TITLES, min_size=1, max_size=3))
def test_a_training_sequence_is_prompt_answer_end(
    renderer: Renderer, tokenizer: Any, titles: list[str], answers: list[str]
) -> None:
    answer = Literal("\n".join(answers))
    sample = Sample("k", tuple(list_segments(titles)), (answer,), {})
    rendered = renderer.render(sample)
    prompt = renderer.render_prompt(sample.prompt)
    assert rendered.ids_T[: rendered.num_prompt].tolist() == prompt
    assert rendered.ids_T[-1] == tokenizer.eos_token_id
    assert rendered.ids_T[rendered.num_prompt : -1].tolist() == renderer.answer_ids(answer.text)
    whole = whole_ids(tokenizer, sample_text(sample.prompt) + answer.text)
    assert rendered.ids_T.tolist() == [*whole, tokenizer.eos_token_id]


def test_all_real_titles_compose(renderer: Renderer, tokenizer: Any, shared_data: Path) -> None:
    rows = (shared_data / "ml-100k" / "u.item").read_text(encoding="latin-1").splitlines()
    titles = [one_line(row.split("|")[1]) for row in rows]
    assert len(titles) == 1682
    segments = list_segments(titles)
    assert renderer.render_prompt(segments) == whole_ids(tokenizer, sample_text(segments))


@SETTINGS
@given(titles=st.lists(TITLES, min_size=1, max_size=6))
def test_entity_spans_are_the_tokens_over_their_text(
    renderer: Renderer, tokenizer: Any, titles: list[str]
) -> None:
    sample = Sample("k", tuple(list_segments(titles)), (Literal("x"),), {})
    text = sample_text(sample.prompt)
    encoding = tokenizer(text, split_special_tokens=True, return_offsets_mapping=True)
    want, position = [], len("Candidate Items:\n")
    for title in titles:
        over = [
            k
            for k, (start, end) in enumerate(encoding.offset_mapping)
            if start < position + len(title) and end > position
        ]
        want.append((over[0], over[-1] + 1) if over else None)  # SmolLM2 drops bytes it has no token for
        position += len(title) + 1
    spans = renderer.render(sample).entity_spans
    assert [span[2:] for span in spans] == [("item", k) for k in range(len(titles))]
    assert [(start, end) if start < end else None for start, end, _, _ in spans] == want


def test_spans_are_tight(renderer: Renderer, tokenizer: Any) -> None:
    segments = (
        Literal("History:\n"),
        Entity("Heat (1995)", "item", 7),
        Literal("\nX: "),
        Entity("Drama", "attribute", None),
    )
    rendered = renderer.render(Sample("k", segments, (Literal("4"),), {}))
    texts = [
        tokenizer.decode(rendered.ids_T[start:end].tolist()).strip()
        for start, end, _, _ in rendered.entity_spans
    ]
    assert texts == ["Heat (1995)", "Drama"]
    assert [span[2:] for span in rendered.entity_spans] == [("item", 7), ("attribute", None)]


def test_each_distinct_line_is_tokenised_once(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer)
    before = renderer._piece.cache_info().misses
    for _ in range(3):
        renderer.render_prompt(list_segments(["Heat (1995)", "Alien (1979)"] * 5))
    assert renderer._piece.cache_info().misses - before == 4  # header, two titles, "Output:"


def test_slots_take_one_position_each(renderer: Renderer, tokenizer: Any) -> None:
    title = Entity("Heat (1995)", "item", 7)
    prompt = (
        Slot("user", 3),
        Literal(" likes\n"),
        title,
        Slot("history", 7),
        Slot("suffix", 0),
        Literal("\nOutput:\n"),
    )
    rendered = renderer.render(Sample("k", prompt, (Literal("yes"),), {}))
    assert [slot[1:] for slot in rendered.slots] == [("user", 3), ("history", 7), ("suffix", 0)]
    positions = [slot[0] for slot in rendered.slots]
    assert all(rendered.ids_T[position] == renderer.pad_id for position in positions)
    assert positions[0] == len(renderer.prefix_ids) and positions[2] == positions[1] + 1
    assert rendered.entity_spans == [
        (positions[1] - rendered_length(renderer, title), positions[1], "item", 7)
    ]
    text = tokenizer.decode(rendered.ids_T[positions[2] + 1 : rendered.num_prompt].tolist())
    assert text == "\nOutput:\n"


def rendered_length(renderer: Renderer, entity: Entity) -> int:
    """Tokens of an entity alone on a line that is not the first."""
    line = [Literal("a\n"), entity]
    return len(renderer.render_prompt(line)) - len(renderer.render_prompt(line[:1]))


def test_a_title_is_never_a_control_token(renderer: Renderer, tokenizer: Any) -> None:
    end = tokenizer.decode([tokenizer.eos_token_id])
    ids = renderer.render_prompt(list_segments([end, f"a {end} b"]))
    assert tokenizer.eos_token_id not in ids


def test_start_and_end_tokens(smol: Any, llama2: Any) -> None:
    sample = Sample("k", (Literal("Output:\n"),), (Literal("4"),), {})
    assert Renderer(smol).prefix_ids == [] and Renderer(llama2).prefix_ids == [llama2.bos_token_id]
    rendered = Renderer(llama2).render(sample)
    assert rendered.ids_T.tolist().count(llama2.bos_token_id) == 1
    assert rendered.ids_T.tolist().count(llama2.eos_token_id) == 1
    with pytest.raises(ValueError, match="no answer"):
        Renderer(llama2).render(Sample("k", sample.prompt, (), {}))


def test_a_start_token_in_any_case(smol: Any, llama2: Any) -> None:
    """A vector at the head of a prompt stands behind it; shards of the two kinds are told apart."""
    headed, native = Renderer(smol, start=True), Renderer(llama2, start=True)
    ids, slots = headed.render_slots([Slot("user", 3), Literal(" likes\n")])
    assert ids[0] == smol.bos_token_id and slots == [(1, "user", 3)]
    assert ids[1:] == Renderer(smol).render_prompt([Slot("user", 3), Literal(" likes\n")])
    assert headed.fingerprint() != Renderer(smol).fingerprint()
    assert (
        native.prefix_ids == [llama2.bos_token_id] and native.fingerprint() == Renderer(llama2).fingerprint()
    )


def test_a_start_token_by_name(smol: Any, llama2: Any) -> None:
    """SmolLM2 was pretrained with another token between documents than the one that starts a chat."""
    named = Renderer(smol, start="<|endoftext|>")
    assert named.prefix_ids == smol.convert_tokens_to_ids(["<|endoftext|>"]) != [smol.bos_token_id]
    assert len({one.fingerprint() for one in (named, Renderer(smol), Renderer(smol, start=True))}) == 3
    assert Renderer(llama2, start="<unk>").prefix_ids == [llama2.bos_token_id]  # it begins texts by itself
    with pytest.raises(UserError, match="start token 'the': .* no such control token: choose from .*endof"):
        Renderer(smol, start="the")


def test_fingerprint_tells_tokenizers_apart(smol: Any, llama2: Any, smollm2: Path, tmp_path: Path) -> None:
    assert fingerprint(smol) != fingerprint(llama2)
    smol.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    again(["a", "a b c"], padding=True, truncation=True, max_length=2)  # leaves settings in the backend
    assert fingerprint(again) == fingerprint(smol) == Renderer(again).fingerprint()
    again.add_tokens(["<new>"])
    assert fingerprint(again) != fingerprint(smol)


def make_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], **special: str) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_tokens_that_cross_lines_are_refused() -> None:
    vocab = {token: k for k, token in enumerate(["?", "a", "b", "\n", "\na"])}
    with pytest.raises(UserError, match="cross line ends"):
        Renderer(make_tokenizer(vocab, [("\n", "a")], eos_token="?"))
    with pytest.raises(UserError, match="no end token"):
        Renderer(make_tokenizer(vocab, [("\n", "a")]))


def test_sample_json_round_trip() -> None:
    prompt = (Literal("a\n"), Entity("Heat", "item", 3), Slot("user", 2), Entity("Drama", "attribute", None))
    sample = Sample("k-1", prompt, (Literal("4"),), {"task": "rating", "user": 2, "items": [3]})
    assert Sample.from_json(sample.to_json()) == sample
    assert sample_text(prompt) == "a\nHeat<user 2>Drama"
    assert merge_literals([Literal("a"), Literal(""), Literal("b"), prompt[1], Literal("c")]) == (
        Literal("ab"),
        prompt[1],
        Literal("c"),
    )
