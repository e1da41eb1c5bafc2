"""Blank infilling: the paper's example by hand, nothing lost, no entity cut, positions as an oracle says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recloom.data_shards.masking import (
    Masked,
    MaskIds,
    attention_mask,
    blank,
    mask,
    mask_rng,
    packed_attention_mask,
    unmask,
)
from recloom.data_shards.spans import (
    LEVELS,
    Level,
    MaskSettings,
    TokenSpan,
    sentence_spans,
    token_texts,
)
from recloom.data_shards.stream import IGNORE

SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)
IDS = MaskIds(entity=1, sentence=2, document=3, start=4, end=5)
M, S, E = IDS.entity, IDS.start, IDS.end
X = np.array([0, 11, 12, 13, 14, 15, 16, 17], dtype=np.int32)  # x1 is X[1]
PAPER_ENTITIES = [(0, 3), (5, 7)]
PAPER_SPANS = [(0, 3), (4, 5)]  # e1 and x5


@dataclass(frozen=True)
class Text:
    ids_T: np.ndarray
    entities: list[TokenSpan]
    sentences: list[TokenSpan]


@st.composite
def texts(draw: st.DrawFn, min_units: int = 1) -> Text:
    """A text of entities (of one token and more) and plain tokens; sentences are runs of whole units."""
    parts = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=min_units, max_size=40))
    bounds, entities = [0], []
    for is_entity, length in parts:
        end = bounds[-1] + (length if is_entity else 1)
        if is_entity:
            entities.append((bounds[-1], end))
        bounds.append(end)
    cuts = draw(st.sets(st.sampled_from(bounds), max_size=6)) | {0, bounds[-1]}
    return Text(np.arange(100, 100 + bounds[-1], dtype=np.int32), entities, list(pairwise(sorted(cuts))))


SPANS_AND_ORDERS: Any = {
    "units": st.sampled_from(["entity", "token"]),
    "order": st.sampled_from(["chronological", "permuted"]),
    "positions": st.sampled_from(["2d", "1d"]),
    "entity_share": st.floats(0.01, 0.4),
    "sentence_share": st.floats(0.01, 1),
    "mean_span": st.floats(1, 8),
    "max_span_tokens": st.integers(1, 40),
}
MASK_SETTINGS = st.builds(MaskSettings, **SPANS_AND_ORDERS)
SEEDS = st.integers(0, 2**40)
ANY_LEVEL = st.sampled_from([*LEVELS, None])


def draw_mask(text: Text, options: MaskSettings, seed: int, level: Level | None = None) -> Masked:
    return mask(text.ids_T, text.entities, text.sentences, options, IDS, mask_rng(seed, 0, 0), level)


def long_text(num_tokens: int, seed: int = 0) -> Text:
    """About half plain tokens, half entities of 2 to 9 tokens; a sentence has some 20 tokens."""
    rng = np.random.default_rng(seed)
    bounds, entities = [0], []
    while bounds[-1] < num_tokens:
        if rng.random() < 0.15:
            entities.append((bounds[-1], bounds[-1] + int(rng.integers(2, 10))))
            bounds.append(entities[-1][1])
        else:
            bounds.append(bounds[-1] + 1)
    cuts = sorted({0, bounds[-1], *bounds[:: max(1, len(bounds) * 20 // bounds[-1])]})
    return Text(np.arange(100, 100 + bounds[-1], dtype=np.int32), entities, list(pairwise(cuts)))


def num_masked(masked: Masked) -> int:
    return sum(end - start for start, end in masked.spans)


# --- the paper's example ------------------------------------------------------------------------------


def test_the_papers_example_by_hand() -> None:
    masked = blank(X[1:], PAPER_ENTITIES, PAPER_SPANS, MaskSettings(), IDS, "entity")
    part_a = [M, 14, M, 16, 17]
    assert masked.num_a == 5 and masked.level == "entity" and masked.spans == tuple(PAPER_SPANS)
    assert masked.ids_T.tolist() == [*part_a, S, 11, 12, 13, S, 15]
    assert masked.targets_T.tolist() == [IGNORE] * 5 + [11, 12, 13, E, 15, E]
    assert masked.inter_T.tolist() == [0, 1, 2, 3, 4] + [0, 0, 0, 0] + [2, 2]
    assert masked.intra_T.tolist() == [0, 0, 0, 1, 2] + [1, 2, 3, 4] + [1, 2]
    assert unmask(masked, IDS).tolist() == X[1:].tolist()
    arrays = (masked.ids_T, masked.targets_T, masked.inter_T, masked.intra_T)
    assert {(array.dtype, len(array)) for array in arrays} == {(np.dtype(np.int64), 11)}


def test_the_papers_example_permuted() -> None:
    masked = blank(X[1:], PAPER_ENTITIES, PAPER_SPANS[::-1], MaskSettings(), IDS, "entity")
    assert masked.ids_T.tolist() == [M, 14, M, 16, 17, S, 15, S, 11, 12, 13]
    assert masked.inter_T.tolist() == [0, 1, 2, 3, 4, 2, 2, 0, 0, 0, 0]
    assert unmask(masked, IDS).tolist() == X[1:].tolist()


def test_a_span_of_several_units_restarts() -> None:
    """e1 x4 x5 e2 as one span: [START] is the head of e1 alone."""
    masked = blank(X[1:], PAPER_ENTITIES, [(0, 7)], MaskSettings(), IDS, "document")
    assert masked.ids_T.tolist() == [IDS.document, S, 11, 12, 13, 14, 15, 16, 17]
    assert masked.intra_T.tolist() == [0] + [1, 2, 3, 4] + [1] + [1] + [1, 2]
    assert masked.inter_T.tolist() == [0] * 9


def test_ablations_by_hand() -> None:
    """Without entities as in GLM: a span counts through and may cut e1; 1d counts on through part B."""
    glm = MaskSettings(units="token")
    masked = blank(X[1:], PAPER_ENTITIES, [(1, 5)], glm, IDS, "entity")
    assert masked.ids_T.tolist() == [11, M, 16, 17, S, 12, 13, 14, 15]
    assert masked.intra_T.tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5]
    flat = blank(X[1:], PAPER_ENTITIES, PAPER_SPANS, MaskSettings(positions="1d"), IDS, "entity")
    assert flat.inter_T.tolist() == list(range(11)) and not flat.intra_T.any()
    assert unmask(flat, IDS).tolist() == X[1:].tolist()


# --- any text -----------------------------------------------------------------------------------------


@SETTINGS
@given(text=texts(), options=MASK_SETTINGS, seed=SEEDS, level=ANY_LEVEL)
def test_reassembling_gives_the_text(
    text: Text, options: MaskSettings, seed: int, level: Level | None
) -> None:
    masked = draw_mask(text, options, seed, level)
    assert masked.spans and unmask(masked, IDS).tolist() == text.ids_T.tolist()
    assert len(masked.ids_T) == len(text.ids_T) + 2 * len(masked.spans)
    assert (masked.ids_T[: masked.num_a] == IDS.of(masked.level)).sum() == len(masked.spans)
    num_units = len(text.ids_T) - sum(end - start - 1 for start, end in text.entities)
    if level in ("sentence", "document") or (level == "entity" and num_units > 1):
        assert masked.level == level


@SETTINGS
@given(text=texts(), options=MASK_SETTINGS, seed=SEEDS, level=ANY_LEVEL)
def test_loss_is_on_part_b_only(text: Text, options: MaskSettings, seed: int, level: Level | None) -> None:
    """Part B's targets are the input one step on, and [END] where the next span or nothing follows."""
    masked = draw_mask(text, options, seed, level)
    num_a = masked.num_a
    assert (masked.targets_T[:num_a] == IGNORE).all() and (masked.targets_T[num_a:] != IGNORE).all()
    following = [*masked.ids_T[num_a + 1 :].tolist(), S]
    want = [E if token == S else token for token in following]
    assert masked.targets_T[num_a:].tolist() == want


@SETTINGS
@given(text=texts(), options=MASK_SETTINGS, seed=SEEDS, level=ANY_LEVEL)
def test_spans_keep_units_whole_and_apart(
    text: Text, options: MaskSettings, seed: int, level: Level | None
) -> None:
    masked = draw_mask(text, options, seed, level)
    spans = sorted(masked.spans)
    assert all(0 <= start < end <= len(text.ids_T) for start, end in spans)
    assert all(one[1] <= two[0] for one, two in pairwise(spans))
    if options.order == "chronological":
        assert list(masked.spans) == spans
    if options.units == "entity":
        cuts = set(chain.from_iterable(spans))
        assert not any(start < cut < end for start, end in text.entities for cut in cuts)
    if masked.level == "entity":
        assert num_masked(masked) < len(text.ids_T)
        assert all(one[1] < two[0] for one, two in pairwise(spans)), "masks stand side by side"
    if masked.level == "sentence":
        assert set(spans) <= set(text.sentences)
    if masked.level == "document":
        assert len(spans) == 1 and 2 * num_masked(masked) >= len(text.ids_T)


@SETTINGS
@given(text=texts(min_units=2), seed=SEEDS, limit=st.integers(1, 12))
def test_span_limit(text: Text, seed: int, limit: int) -> None:
    """Above the limit a span is one entity."""
    options = MaskSettings(max_span_tokens=limit, mean_span=8, entity_share=0.4)
    for start, end in draw_mask(text, options, seed, "entity").spans:
        assert end - start <= limit or (start, end) in text.entities


def slow_positions(text: Text, masked: Masked, options: MaskSettings) -> tuple[list[int], list[int]]:
    """Inter and intra ids, token by token from the paper's words."""
    entities = text.entities if options.units == "entity" else []
    unit_of = {t: entity for entity in entities for t in range(*entity)}
    inter: list[int] = []
    intra: list[int] = []
    place_of_span: dict[TokenSpan, int] = {}
    t = 0
    while t < len(text.ids_T):
        span = next((span for span in masked.spans if span[0] == t), None)
        if span is not None:
            place_of_span[span] = len(inter)
        intra.append(t - unit_of[t][0] + 1 if span is None and t in unit_of else 0)
        inter.append(len(inter))
        t = t + 1 if span is None else span[1]
    for span in masked.spans:
        count = 1
        inter.append(place_of_span[span])
        intra.append(count)
        for t in range(*span):
            same_unit = t == span[0] or options.units == "token" or unit_of.get(t) == unit_of.get(t - 1, t)
            count = count + 1 if same_unit else 1
            inter.append(place_of_span[span])
            intra.append(count)
    if options.positions == "1d":
        return list(range(len(inter))), [0] * len(inter)
    return inter, intra


@SETTINGS
@given(text=texts(), options=MASK_SETTINGS, seed=SEEDS, level=ANY_LEVEL)
def test_positions_are_the_slow_ones(
    text: Text, options: MaskSettings, seed: int, level: Level | None
) -> None:
    masked = draw_mask(text, options, seed, level)
    inter, intra = slow_positions(text, masked, options)
    assert masked.inter_T.tolist() == inter
    assert masked.intra_T.tolist() == intra


@SETTINGS
@given(text=texts(), seed=SEEDS)
def test_permuted_is_a_permutation(text: Text, seed: int) -> None:
    """The same spans as in chronological order, in another one."""
    ordered = draw_mask(text, MaskSettings(sentence_share=1), seed, "sentence")
    shuffled = draw_mask(text, MaskSettings(sentence_share=1, order="permuted"), seed, "sentence")
    assert sorted(shuffled.spans) == list(ordered.spans)


def test_all_orders_occur() -> None:
    text = Text(np.arange(100, 103), [], [(0, 1), (1, 2), (2, 3)])
    options = MaskSettings(sentence_share=1, order="permuted")
    orders = Counter(draw_mask(text, options, seed, "sentence").spans for seed in range(600))
    assert len(orders) == 6 and min(orders.values()) > 60


# --- frequencies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["entity", "sentence"])
@pytest.mark.parametrize("units", ["entity", "token"])
@pytest.mark.parametrize("share", [0.15, 0.3])
def test_share_of_masked_tokens(level: Level, units: Any, share: float) -> None:
    text = long_text(400)
    options = MaskSettings(units=units, entity_share=share, sentence_share=share)
    shares = [num_masked(draw_mask(text, options, k, level)) / len(text.ids_T) for k in range(600)]
    assert np.mean(shares) == pytest.approx(share, abs=4 * np.std(shares) / 600**0.5 + 1e-3)
    assert np.std(shares) < 0.05


def test_every_unit_is_masked_alike() -> None:
    """Entities and plain tokens, at the edges and inside: none is left out and none is favoured much."""
    text = long_text(120)
    counts_T = np.zeros(len(text.ids_T))
    for k in range(2000):
        for start, end in draw_mask(text, MaskSettings(), k, "entity").spans:
            counts_T[start:end] += 1
    assert counts_T.min() / 2000 > 0.07 and counts_T.max() / 2000 < 0.23


def test_span_lengths_are_poisson() -> None:
    """Plain tokens: the mean of a Poisson(3) given that it is not 0 (budget and text end trim a few)."""
    text = Text(np.arange(100, 1100), [], [(0, 1000)])
    spans = [span for k in range(60) for span in draw_mask(text, MaskSettings(), k, "entity").spans]
    mean = np.mean([end - start for start, end in spans])
    assert mean == pytest.approx(3 / (1 - np.exp(-3)), abs=0.15)


def test_mixture() -> None:
    text = long_text(60)
    levels = Counter(draw_mask(text, MaskSettings(), k).level for k in range(3000))
    for level, share in zip(LEVELS, (0.5, 0.2, 0.3), strict=True):
        assert levels[level] / 3000 == pytest.approx(share, abs=0.04)
    alone = MaskSettings(mixture=(0.0, 1.0, 0.0))
    assert {draw_mask(text, alone, k).level for k in range(50)} == {"sentence"}


def test_document_lengths_are_uniform() -> None:
    text = Text(np.arange(100, 200), [], [(0, 100)])
    spans = [draw_mask(text, MaskSettings(), k, "document").spans[0] for k in range(2000)]
    lengths = np.array([end - start for start, end in spans])
    assert lengths.min() == 50 and lengths.max() == 100
    assert lengths.mean() == pytest.approx(75, abs=1.5)
    assert np.histogram(lengths, bins=5)[0].min() > 300
    bounded = MaskSettings(document_min=0.2, document_max=0.4)
    spans = [draw_mask(text, bounded, k, "document").spans[0] for k in range(500)]
    assert {20, 40} <= {end - start for start, end in spans} <= set(range(20, 41))


# --- small and bad texts ------------------------------------------------------------------------------


@pytest.mark.parametrize("entities", [[], [(0, 1)]])
@pytest.mark.parametrize("level", LEVELS)
def test_a_text_of_one_token(entities: list[TokenSpan], level: Level) -> None:
    text = Text(np.array([100]), entities, [(0, 1)])
    masked = draw_mask(text, MaskSettings(), 0, level)
    assert masked.level == ("sentence" if level == "sentence" else "document")
    assert masked.ids_T.tolist() == [IDS.of(masked.level), S, 100]
    assert masked.targets_T.tolist() == [IGNORE, 100, E] and masked.intra_T.tolist() == [0, 1, 2]


def test_a_text_of_one_entity() -> None:
    text = Text(np.arange(100, 106), [(0, 6)], [(0, 6)])
    for seed in range(20):
        masked = draw_mask(text, MaskSettings(), seed)
        assert masked.level in ("sentence", "document") and masked.spans == ((0, 6),)
    cut = draw_mask(text, MaskSettings(units="token"), 0, "entity")
    assert cut.level == "entity" and num_masked(cut) < 6


@pytest.mark.parametrize("entity, plain", [((0, 29), (29, 30)), ((1, 30), (0, 1))])
def test_two_units_leave_one(entity: TokenSpan, plain: TokenSpan) -> None:
    """Even where one block could hold both and the share has room for a part of the second."""
    text = Text(np.arange(100, 130), [entity], [(0, 30)])
    options = MaskSettings(entity_share=0.4)
    spans = {draw_mask(text, options, k, "entity").spans for k in range(100)}
    assert spans == {(entity,), (plain,)}


BAD_SPANS: list[tuple[list[TokenSpan], str]] = [
    ([(0, 2), (1, 3)], "overlap"),
    ([(3, 5), (0, 2)], "order"),
    ([(2, 2)], "hold a token"),
    ([(3, 2)], "hold a token"),
    ([(-1, 2)], "-1"),
    ([(5, 8)], "7 tokens"),
]


@pytest.mark.parametrize("spans, word", BAD_SPANS)
@pytest.mark.parametrize("units", ["entity", "token"])
def test_bad_spans(spans: list[TokenSpan], word: str, units: Any) -> None:
    options = MaskSettings(units=units)
    with pytest.raises(ValueError, match=f"entity span.*{word}"):
        mask(X[1:], spans, [], options, IDS, mask_rng(0, 0, 0), "entity")
    with pytest.raises(ValueError, match=f"sentence.*{word}"):
        mask(X[1:], [], spans, options, IDS, mask_rng(0, 0, 0), "entity")
    if spans[0] != (3, 5):  # part B may have any order
        with pytest.raises(ValueError, match=f"span.*{word}"):
            blank(X[1:], [], spans, options, IDS, "entity")


def test_what_cannot_be_masked() -> None:
    rng = mask_rng(0, 0, 0)
    with pytest.raises(ValueError, match="without tokens"):
        mask(np.empty(0, dtype=np.int32), [], [], MaskSettings(), IDS, rng)
    with pytest.raises(ValueError, match=r"sentence \(0, 2\) cuts an entity"):
        mask(X[1:], PAPER_ENTITIES, [(0, 2), (2, 7)], MaskSettings(), IDS, rng, "entity")
    with pytest.raises(ValueError, match="needs the text's sentences"):
        mask(X[1:], [], [], MaskSettings(), IDS, rng, "sentence")
    with pytest.raises(ValueError, match=r"span \(1, 4\) cuts an entity"):
        blank(X[1:], PAPER_ENTITIES, [(1, 4)], MaskSettings(), IDS, "entity")
    with pytest.raises(ValueError, match="no span"):
        blank(X[1:], PAPER_ENTITIES, [], MaskSettings(), IDS, "entity")


def test_unmask_refuses_other_ids() -> None:
    masked = blank(X[1:], PAPER_ENTITIES, PAPER_SPANS, MaskSettings(), IDS, "entity")
    for other in (replace(IDS, entity=9), replace(IDS, start=9)):
        with pytest.raises(ValueError, match="other ids"):
            unmask(masked, other)


@pytest.mark.parametrize(
    "values",
    [
        {"mixture": (0.5, 0.2, 0.2)},
        {"mixture": (1.5, -0.5, 0)},
        {"document_min": 0.9, "document_max": 0.6},
        {"entity_share": 0.0},
        {"mean_span": 0.0},
        {"units": "word"},
        {"blanks": 1},
    ],
)
def test_bad_settings(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MaskSettings(**values)


# --- reproducibility ----------------------------------------------------------------------------------


def draw_at(text: Text, seed: int, epoch: int, index: int) -> list[int]:
    rng = mask_rng(seed, epoch, index)
    masked = mask(text.ids_T, text.entities, text.sentences, MaskSettings(), IDS, rng)
    return masked.ids_T.tolist()


def test_masks_come_back() -> None:
    text = long_text(200)
    first = draw_at(text, 3, 1, 5)
    assert first == draw_at(text, 3, 1, 5)
    assert first not in (draw_at(text, 4, 1, 5), draw_at(text, 3, 2, 5), draw_at(text, 3, 1, 6))


def test_masks_are_no_draws_of_the_stream() -> None:
    """numpy seeds [3, 1] and [3, 1, 0] alike, so a sample could share its numbers with the epoch's order."""
    assert mask_rng(3, 1, 0).random() != np.random.default_rng([3, 1]).random()
    assert mask_rng(3, 1, 4).random() != np.random.default_rng([3, 1, 4]).random()


# --- attention ----------------------------------------------------------------------------------------


def slow_attention(samples: list[tuple[int, int]]) -> list[list[bool]]:
    """Who sees whom, from (num_a, length) of each sample, pair by pair."""
    places = [(s, t, t < num_a) for s, (num_a, length) in enumerate(samples) for t in range(length)]
    return [
        [s == r and (in_a or (not q_in_a and t <= q)) for s, t, in_a in places] for r, q, q_in_a in places
    ]


SAMPLES = st.lists(
    st.tuples(st.integers(1, 8), st.integers(0, 8)).map(lambda parts: (parts[0], sum(parts))),
    min_size=1,
    max_size=5,
)


@SETTINGS
@given(samples=SAMPLES)
def test_attention_is_the_double_loop(samples: list[tuple[int, int]]) -> None:
    num_a, length = samples[0]
    seen = attention_mask(num_a, length)
    assert seen.dtype == torch.bool and seen.tolist() == slow_attention(samples[:1])
    assert seen[:, :num_a].all() and not seen[:num_a, num_a:].any()


@SETTINGS
@given(samples=SAMPLES, padding=st.integers(0, 4))
def test_packed_attention_has_no_cross_talk(samples: list[tuple[int, int]], padding: int) -> None:
    boundaries = np.cumsum([0, *(length for _, length in samples)])
    num_a_S = torch.tensor([num_a for num_a, _ in samples])
    num_tokens = int(boundaries[-1]) + padding
    seen = packed_attention_mask(torch.tensor(boundaries, dtype=torch.int32), num_a_S, num_tokens)
    padded = [*samples, (0, padding)] if padding else samples
    assert seen.tolist() == slow_attention(padded)
    for (start, end), (num_a, length) in zip(pairwise(boundaries.tolist()), samples, strict=True):
        assert torch.equal(seen[start:end, start:end], attention_mask(num_a, length))
        assert not seen[start:end, :start].any() and not seen[start:end, end:].any()
    assert seen.any(dim=1).all()


# --- sentences ----------------------------------------------------------------------------------------


def sentences_of(texts: list[str], entities: list[TokenSpan] | None = None) -> list[str]:
    spans = sentence_spans(texts, entities or [])
    return ["".join(texts[start:end]) for start, end in spans]


@pytest.mark.parametrize(
    "pieces, want",
    [
        ("I| saw| it|.| Good|!", ["I saw it.", " Good!"]),
        ("A|\n|B", ["A\n", "B"]),
        ("A|.|\n\n|  |B|?|\n", ["A.\n\n  ", "B?\n"]),
        ("\n|A| 4|.|5| B", ["\nA 4.5 B"]),
        ("He|!?| Oh|...| no", ["He!?", " Oh...", " no"]),
        ("A|. B| c", ["A. B c"]),
        ("A|.\n|B", ["A.\n", "B"]),
        ("no end", ["no end"]),
    ],
)
def test_sentences_by_hand(pieces: str, want: list[str]) -> None:
    assert sentences_of(pieces.split("|")) == want


def test_sentences_never_end_inside_an_entity() -> None:
    texts = ["Saw", " Dr", ".", " No", ".", " Then", " Help", "!", " more"]
    assert sentences_of(texts) == ["Saw Dr.", " No.", " Then Help!", " more"]
    assert sentences_of(texts, [(1, 4), (6, 9)]) == ["Saw Dr. No.", " Then Help! more"]


@SETTINGS
@given(pieces=st.lists(st.text("ab.! \n", max_size=3), max_size=30))
def test_sentences_cover_the_text(pieces: list[str]) -> None:
    spans = sentence_spans(pieces, [])
    assert [t for span in spans for t in range(*span)] == list(range(len(pieces)))
    visible = ["".join(pieces[start:end]).strip() for start, end in spans]
    assert all(visible) or len(spans) == 1


def test_a_real_tokenizers_sentences(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    from recloom.data_shards.renderer import Renderer
    from recloom.data_shards.samples import Entity, Literal, Sample

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    title = Entity("What? No! (1995)", "item", 1)
    segments = (Literal("The user likes "), title, Literal(". They are 30.\nNext: "), title)
    rendered = Renderer(tokenizer).render_text(Sample("k", segments, (), {}))
    texts = token_texts(tokenizer.convert_ids_to_tokens(rendered.ids_T.tolist()))
    assert "".join(texts) == "".join(segment.text for segment in segments)
    spans = sentence_spans(texts, rendered.entity_spans)
    want = ["The user likes What? No! (1995).", " They are 30.\n", "Next: What? No! (1995)"]
    assert ["".join(texts[start:end]) for start, end in spans] == want
    for level in LEVELS:
        rng = mask_rng(0, 0, 0)
        masked = mask(rendered.ids_T, rendered.entity_spans, spans, MaskSettings(), IDS, rng, level)
        assert masked.level == level and unmask(masked, IDS).tolist() == rendered.ids_T.tolist()


def test_sentencepiece_spellings() -> None:
    assert token_texts(["▁A", ".", "<0x0A>", "▁▁B"]) == [" A", ".", "\n", "  B"]
