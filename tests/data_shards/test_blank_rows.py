"""Rows of masked samples: the same masks at every rank and after every stop, the start token left alone.

Shapes: N samples, S samples of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.blank_rows import BlankRow, BlankRows, behind_prefix, body_text, joined_spans
from recloom.data_shards.masking import Masked, MaskIds, blank, unmask
from recloom.data_shards.renderer import SlotPosition
from recloom.data_shards.spans import LEVELS, Level, MaskSettings, TokenSpan
from recloom.data_shards.stream import IGNORE, PackedRow, PackedStream

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
END, WORDS = 2, 500
PREFIX = [1]
IDS = MaskIds(entity=WORDS, sentence=WORDS + 1, document=WORDS + 2, start=WORDS + 3, end=WORDS + 4)
TEXTS = ["\n" if id % 11 == 0 else f" w{id}" for id in range(WORDS)]  # a line ends at every eleventh id
FIELDS = ("ids_T", "position_ids_T", "labels_T", "intra_T", "num_a_S", "boundaries")
ONLY: dict[Level, tuple[float, float, float]] = {
    "entity": (1.0, 0.0, 0.0),
    "sentence": (0.0, 1.0, 0.0),
    "document": (0.0, 0.0, 1.0),
}


@dataclass
class Samples:
    """Samples in memory, as shards hold them: start token, prompt, answer, end token."""

    bodies: list[np.ndarray]
    entities: list[list[TokenSpan]]  # counted in the body
    answers: list[TokenSpan]
    prefix: list[int]
    has_slots: bool = False

    def __post_init__(self) -> None:
        self.lengths_N = np.array([len(body) + len(self.prefix) + 1 for body in self.bodies])
        self.num_prompt_N = np.array([start + len(self.prefix) for start, _ in self.answers])

    def ids(self, index: int) -> np.ndarray:
        return np.array([*self.prefix, *self.bodies[index], END], dtype=np.int32)

    def record(self, index: int) -> dict[str, Any]:
        count = len(self.prefix)
        spans = [[start + count, end + count, "item", 7] for start, end in self.entities[index]]
        return {"num_prompt": int(self.num_prompt_N[index]), "entity_spans": spans, "key": str(index)}

    def slots(self, index: int) -> list[SlotPosition]:
        return []


def random_samples(count: int, seed: int = 0, prefix: list[int] | None = None) -> Samples:
    """About a third of the units are entities of 1 to 5 tokens; answers are the last 1 to 4 units."""
    rng = np.random.default_rng(seed)
    bodies, entities, answers = [], [], []
    for _ in range(count):
        bounds = [0]
        spans = []
        for _ in range(int(rng.integers(5, 30))):
            if rng.random() < 0.35:
                spans.append((bounds[-1], bounds[-1] + int(rng.integers(1, 6))))
            bounds.append(spans[-1][1] if spans and spans[-1][0] == bounds[-1] else bounds[-1] + 1)
        bodies.append(rng.integers(3, WORDS, bounds[-1]))
        entities.append(spans)
        answers.append((bounds[-1 - int(rng.integers(1, 5))], bounds[-1]))
    return Samples(bodies, entities, answers, PREFIX if prefix is None else prefix)


def make_rows(samples: Samples, answer_share: float = 0.5, seed: int = 3, **masks: Any) -> BlankRows:
    return BlankRows(samples, MaskSettings(**masks), answer_share, IDS, TEXTS, samples.prefix, seed)


def same(one: PackedRow, other: PackedRow) -> bool:
    return one.sample_indices == other.sample_indices and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS
    )


def text_of(samples: Samples, index: int) -> list[int]:
    """What a sample's masks are drawn over, behind its start token."""
    return [*samples.prefix, *samples.bodies[index].tolist()]


# --- one sample ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("prefix", [[], [1], [1, 7]])
def test_nothing_is_lost_and_the_prefix_stays(level: Level, prefix: list[int]) -> None:
    samples, count = random_samples(40, prefix=prefix), len(prefix)
    rows = make_rows(samples, 0.0, mixture=ONLY[level], document_min=1.0)
    for index in range(40):
        masked = rows.masked(0, index)
        assert masked.level == level
        assert unmask(masked, IDS).tolist() == text_of(samples, index), "the end token is not in it"
        assert masked.ids_T[:count].tolist() == prefix and masked.inter_T[:count].tolist() == [*range(count)]
        assert not masked.intra_T[:count].any() and (masked.targets_T[:count] == IGNORE).all()
        assert min(chain.from_iterable(masked.spans)) >= count
        if level == "document":
            assert masked.ids_T[: masked.num_a].tolist() == [*prefix, IDS.document]


@SETTINGS
@given(seed=st.integers(0, 9999), level=st.sampled_from(LEVELS))
def test_entities_are_masked_whole(seed: int, level: Level) -> None:
    samples = random_samples(1, seed)
    masked = make_rows(samples, 0.0, seed, mixture=ONLY[level]).masked(0, 0)
    cuts = {place - len(PREFIX) for place in chain.from_iterable(masked.spans)}
    assert not any(start < cut < end for start, end in samples.entities[0] for cut in cuts)


def test_the_answer_is_the_blank() -> None:
    samples = random_samples(30)
    rows = make_rows(samples, 1.0)
    for index in range(30):
        masked, body = rows.masked(0, index), samples.bodies[index].tolist()
        start, end = samples.answers[index]
        assert masked.level == "document" and masked.spans == ((start + 1, end + 1),)
        assert masked.ids_T[: masked.num_a].tolist() == [*PREFIX, *body[:start], IDS.document]
        assert masked.ids_T[masked.num_a :].tolist() == [IDS.start, *body[start:]]
        assert masked.targets_T[masked.num_a :].tolist() == [*body[start:], IDS.end]
        assert (masked.inter_T[masked.num_a :] == masked.num_a - 1).all()


def test_the_share_of_answers() -> None:
    """Else the mixture masks the text: here single entities and words."""
    samples = random_samples(1500)
    rows = make_rows(samples, 0.3, mixture=ONLY["entity"])
    levels = [rows.masked(0, index).level for index in range(1500)]
    assert levels.count("document") / 1500 == pytest.approx(0.3, abs=0.04)


def test_sentences_end_at_line_ends() -> None:
    samples = random_samples(60, seed=1)
    rows = make_rows(samples, 0.0, mixture=ONLY["sentence"])
    for index in range(60):
        text = text_of(samples, index)
        inside = {place for start, end in samples.entities[index] for place in range(start + 1, end)}
        for place in chain.from_iterable(rows.masked(0, index).spans):
            before = text[place - 1]
            assert place in (1, len(text)) or before % 11 == 0 and place - 1 not in inside


def test_masks_depend_on_seed_epoch_and_sample_alone() -> None:
    samples = random_samples(60)

    def inputs(rows: BlankRows, epoch: int) -> list[list[int]]:
        return [rows.masked(epoch, index).ids_T.tolist() for index in range(60)]

    wanted = inputs(make_rows(samples), 0)
    assert inputs(make_rows(samples), 0) == wanted
    shuffled, other = make_rows(samples), make_rows(samples, seed=4)
    order = np.random.default_rng(0).permutation(60).tolist()
    assert {index: shuffled.masked(0, index).ids_T.tolist() for index in order} == dict(enumerate(wanted))
    for changed in (inputs(make_rows(samples), 1), inputs(other, 0)):
        assert sum(one != two for one, two in zip(wanted, changed, strict=True)) > 40


def test_a_bare_text_and_the_prefix() -> None:
    """`behind_prefix` is the masked text of the prefix and the text, but for what an entity level draws."""
    ids_T = np.arange(10, 18)
    bare = blank(ids_T, [(2, 4)], [(2, 4), (6, 7)], MaskSettings(), IDS, "entity")
    shown, whole = behind_prefix(bare, [1, 9]), np.concatenate([[1, 9], ids_T])
    wanted = blank(whole, [(4, 6)], [(4, 6), (8, 9)], MaskSettings(), IDS, "entity")
    for name, value in vars(wanted).items():
        assert np.array_equal(getattr(shown, name), value), name


# --- entities that share a token ----------------------------------------------------------------------


SPANS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=8)


@SETTINGS
@given(pairs=SPANS)
def test_entities_that_share_a_token_are_one_unit(pairs: list[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in pairs]
    joined = joined_spans(spans)
    assert all(one[1] <= two[0] for one, two in zip(joined, joined[1:], strict=False)), "disjoint, in order"
    for start, end in spans:
        assert sum(first <= start and end <= last for first, last in joined) == 1
    tokens = set(chain.from_iterable(range(*span) for span in spans))
    assert set(chain.from_iterable(range(*span) for span in joined)) == tokens
    apart = {n for n in range(30) if n - 1 in tokens and n in tokens}
    bound = {n for n in apart if any(start < n < end for start, end in spans)}
    assert {end for _, end in joined} & apart == apart - bound, "side by side they stay two"


def test_a_sample_whose_entities_overlap_is_masked() -> None:
    samples = Samples([np.arange(10, 20)], [[(1, 4), (3, 6)]], [(7, 10)], PREFIX)
    assert body_text(samples, 0, 1).entity_spans == [(1, 6)]
    rows = make_rows(samples, 0.0)
    for epoch in range(40):
        cuts = {place - 1 for place in chain.from_iterable(rows.masked(epoch, 0).spans)}
        assert not cuts & set(range(2, 6))


# --- rows ---------------------------------------------------------------------------------------------


def test_a_row_is_its_samples_end_to_end() -> None:
    rows = make_rows(random_samples(20))
    row = rows(2, [7, 3, 11])
    texts = [rows.masked(2, index) for index in (7, 3, 11)]
    assert row.sample_indices == [7, 3, 11] and row.num_a_S.tolist() == [text.num_a for text in texts]
    bounds = row.boundaries.tolist()
    assert row.boundaries.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(row.ids_T)
    names = {"ids_T": "ids_T", "position_ids_T": "inter_T", "labels_T": "targets_T", "intra_T": "intra_T"}
    for text, start, end in zip(texts, bounds, bounds[1:], strict=False):
        for name, source in names.items():
            assert getattr(row, name)[start:end].tolist() == getattr(text, source).tolist()
            assert getattr(row, name).dtype == torch.int64


def test_no_samples_are_one_token_without_a_loss() -> None:
    row = make_rows(random_samples(1))(0, [])
    assert (len(row.ids_T), row.sample_indices, row.num_a_S.tolist()) == (1, [], [1])
    assert row.labels_T.tolist() == [IGNORE] and row.boundaries.tolist() == [0, 1]


def make_stream(samples: Samples, rank: int = 0, world_size: int = 1) -> PackedStream:
    return PackedStream(samples, 120, 4, 32, 3, rank, world_size, make_rows(samples))


def epoch_rows(stream: PackedStream) -> list[list[PackedRow]]:
    return [batch.rows for batch in stream]


def test_a_resumed_epoch_goes_on_with_the_same_masks() -> None:
    samples = random_samples(90)
    whole = make_stream(samples)
    wanted = [*epoch_rows(whole), *epoch_rows(whole)]
    num_steps = len(wanted) // 2
    for stop in (1, num_steps - 1, num_steps + 2):
        first = make_stream(samples)
        for _ in range(stop):
            next(iter(first))
        again = make_stream(samples)
        again.load_state(first.state())
        rest = epoch_rows(again)
        while again.epoch < 2:
            rest += epoch_rows(again)
        assert len(rest) == len(wanted) - stop
        for step, other in zip(rest, wanted[stop:], strict=True):
            assert all(same(one, two) for one, two in zip(step, other, strict=True))


def test_two_ranks_together_read_what_one_does() -> None:
    samples = random_samples(90)
    alone = epoch_rows(make_stream(samples))
    pairs = zip(epoch_rows(make_stream(samples, 0, 2)), epoch_rows(make_stream(samples, 1, 2)), strict=True)
    for step, (one, two) in zip(alone, pairs, strict=True):
        together = list(chain.from_iterable(zip(one, two, strict=True)))
        assert all(same(row, other) for row, other in zip(step, together, strict=True))
        assert len(together) == 4


def test_every_epoch_masks_every_sample_anew() -> None:
    samples = random_samples(90)
    stream = make_stream(samples)
    epochs: list[dict[int, Masked | list[int]]] = []
    for _ in range(2):
        seen: dict[int, Any] = {}
        for row in chain.from_iterable(epoch_rows(stream)):
            assert isinstance(row, BlankRow)
            parts = row.ids_T.split(np.diff(row.boundaries.numpy()).tolist())
            seen |= {index: part.tolist() for index, part in zip(row.sample_indices, parts, strict=False)}
        epochs.append(seen)
    assert set(epochs[0]) == set(epochs[1]) == set(range(90))
    assert sum(epochs[0][index] != epochs[1][index] for index in range(90)) > 60
