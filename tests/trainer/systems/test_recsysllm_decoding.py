"""Generation against training: the same tokens read the same, whatever is cached or batched.

Shapes: R questions, T tokens of a text, V words.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from blank_networks import (
    ABLATIONS,
    HIDDEN,
    IDS,
    PREFIX,
    RATE,
    WORDS,
    all_logits,
    answered,
    random_masked,
    row_of,
    small_network,
)

from recloom.data_shards.masking import Masked
from recloom.data_shards.spans import MaskSettings
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_build import trie_of
from recloom.trainer.systems.recsysllm.decoding import (
    Columns,
    Decoder,
    Filling,
    Question,
    fill_blanks,
    find_items,
)
from recloom.trainer.systems.recsysllm.network import BlankInfiller
from recloom.trainer.systems.recsysllm.positions import count_intra

all_masks = pytest.mark.parametrize(
    "mask", ABLATIONS, ids=lambda mask: f"{mask.units}-{mask.order}-{mask.positions}"
)
POOL_ENTITIES = [[3, 4, 5], [3, 4], [6, 7, 8, 9], [12, 13, 14]]
ITEMS = [[12], [13, 14], [13, 14, 15], [13, 16, 17, 18], [20, 21], [20, 22], [12, 23, 24, 25, 26], [20, 21]]
PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 3, 2, 2, 5, 11, 10]]


def trie(sequences: Sequence[Sequence[int]]) -> TokenTrie:
    return trie_of([list(tokens) for tokens in sequences], end_token=IDS.end, vocab_size=IDS.end + 1)


def entities_of(masked: Masked) -> list[list[int]]:
    """What fills part B, unit by unit: enough of a pool for its intra ids."""
    spans: list[list[int]] = []
    for id, intra in zip(
        masked.ids_T[masked.num_a :].tolist(), masked.intra_T[masked.num_a :].tolist(), strict=True
    ):
        if id == IDS.start:
            spans.append([])
        elif intra == 1:
            spans.append([id])
        else:
            spans[-1].append(id)
    return [span for span in spans if span] or [[WORDS - 1]]


def asked(mask: MaskSettings, count: int = 5) -> list[Question]:
    """Questions of different lengths, most with several blanks."""
    rng, drawn = np.random.default_rng(14), mask.model_copy(update={"entity_share": 0.4, "mean_span": 1.0})
    made = [random_masked(rng, 4 + 3 * n, drawn, "entity") for n in range(count)]
    return [Question.of(masked, mask) for masked in made]


def talkative() -> BlankInfiller:
    """A network that ends some spans at once and some not at all."""
    network = small_network("sdpa")
    end_H = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
    network.marks.weight.data[IDS.end - WORDS] = 0.9 * end_H / RATE
    return network


# --- positions and states are those of training -------------------------------------------------------


@all_masks
def test_columns_are_those_of_training(mask: MaskSettings) -> None:
    """A filling that is told the true tokens brings part B's tokens with part B's ids."""
    rng = np.random.default_rng(2)
    for level in ("entity", "entity", "document"):
        masked = random_masked(rng, 16, mask, level)  # type: ignore[arg-type]
        question = Question.of(masked, mask)
        filling = Filling(question, trie(entities_of(masked)))
        read = [filling.start(IDS)]
        read += [filling.take(token, IDS, 99) for token in masked.targets_T[masked.num_a :].tolist()]
        assert filling.is_done and len(filling.spans) == len(masked.spans) == len(question.blanks)
        for name, wanted_T in (("ids", masked.ids_T), ("inter", masked.inter_T), ("intra", masked.intra_T)):
            part_b = [value for columns in read for value in getattr(columns, name)]
            assert [*getattr(question, name), *part_b] == wanted_T.tolist(), name


def columns_of(masked: Masked, start: int, end: int) -> Columns:
    arrays = (masked.ids_T, masked.inter_T, masked.intra_T)
    return Columns(*(array[start:end].tolist() for array in arrays))


@pytest.mark.parametrize("use_cache", [True, False])
@all_masks
def test_a_text_in_passes_has_the_states_of_training(mask: MaskSettings, use_cache: bool) -> None:
    """Part A in one pass with some of part B, the rest in passes of random lengths."""
    rng = np.random.default_rng(4)
    texts = [random_masked(rng, 4 + 5 * n, mask) for n in range(4)]
    decoder, network = Decoder(small_network("sdpa"), use_cache), small_network()
    places = [masked.num_a + int(rng.integers(1, 3)) for masked in texts]
    rows = [columns_of(masked, 0, place) for masked, place in zip(texts, places, strict=True)]
    found: list[list[Tensor]] = [[] for _ in texts]
    num_a: list[int] | None = [masked.num_a for masked in texts]
    while any(row.ids for row in rows):
        hidden_RWH = decoder.forward(rows, num_a)
        num_a = None
        for n, row in enumerate(rows):
            found[n].append(decoder.network.logits(hidden_RWH[n, : len(row.ids)]))
        ends = [
            min(place + int(rng.integers(0, 4)), len(m.ids_T)) for place, m in zip(places, texts, strict=True)
        ]
        is_stuck = ends == places and any(end < len(m.ids_T) for end, m in zip(ends, texts, strict=True))
        ends = [min(end + is_stuck, len(m.ids_T)) for end, m in zip(ends, texts, strict=True)]
        rows = [columns_of(m, start, end) for m, start, end in zip(texts, places, ends, strict=True)]
        places = ends
    for masked, parts in zip(texts, found, strict=True):
        with torch.no_grad():
            wanted = all_logits(network, row_of([masked]))
        torch.testing.assert_close(torch.cat(parts), wanted, atol=1e-4, rtol=0)


def test_selected_rows_go_on_with_their_own_past() -> None:
    """In another order, one twice, one not at all."""
    rng = np.random.default_rng(6)
    texts = [random_masked(rng, 5 + 4 * n, level="document") for n in range(3)]
    decoder = Decoder(small_network("sdpa"))
    splits = [masked.num_a + 1 for masked in texts]
    first = [columns_of(masked, 0, split) for masked, split in zip(texts, splits, strict=True)]
    decoder.forward(first, [masked.num_a for masked in texts])
    chosen = [2, 0, 2]
    decoder.select(chosen)
    rows = [columns_of(texts[n], splits[n], len(texts[n].ids_T)) for n in chosen]
    hidden_RWH = decoder.forward(rows)
    for place, n in enumerate(chosen):
        with torch.no_grad():
            wanted = all_logits(small_network(), row_of([texts[n]]))[splits[n] :]
        found = decoder.network.logits(hidden_RWH[place, : len(wanted)])
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


# --- free answers -------------------------------------------------------------------------------------


def slow_fill(
    network: BlankInfiller, question: Question, pool: TokenTrie, max_tokens: int
) -> tuple[list[list[int]], float]:
    """All that stands there is read anew, as training reads it, for every token; the closest call, too."""
    spans: list[list[int]] = []
    margin = np.inf
    is_token = question.settings.units == "token"
    for _ in question.blanks:
        spans.append([])
        while len(spans[-1]) < max_tokens:
            ids, inter, intra = list(question.ids), list(question.inter), list(question.intra)
            for blank, span in zip(question.blanks, spans, strict=False):
                ids += [IDS.start, *span]
                inter += [blank] * (len(span) + 1)
                intra += range(1, len(span) + 2) if is_token else count_intra(pool, span)
            if question.settings.positions == "1d":
                inter, intra = list(range(len(ids))), [0] * len(ids)
            arrays = (np.array(ids), np.full(len(ids), -100), np.array(inter), np.array(intra))
            row = row_of([Masked(*arrays, num_a=len(question.ids), level="entity", spans=())])
            with torch.no_grad():
                best = all_logits(network, row)[-1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            if int(best.indices[0]) == IDS.end:
                break
            spans[-1].append(int(best.indices[0]))
    return spans, margin


@all_masks
def test_free_answers_are_the_slow_ones(mask: MaskSettings) -> None:
    """Several blanks a question: batched, one by one, with and without a cache."""
    network, pool, questions = talkative(), trie(POOL_ENTITIES), asked(mask)
    slow = small_network()
    slow.load_state_dict(network.state_dict())
    wanted, margins = zip(*(slow_fill(slow, question, pool, 5) for question in questions), strict=True)
    assert min(margins) > 1e-4, "no answer hangs on rounding"
    assert fill_blanks(network, questions, pool, IDS, 5) == list(wanted)
    assert fill_blanks(network, questions, pool, IDS, 5, use_cache=False) == list(wanted)
    assert [fill_blanks(network, [question], pool, IDS, 5)[0] for question in questions] == list(wanted)
    lengths = {len(span) for spans in wanted for span in spans}
    assert max(len(spans) for spans in wanted) > 2 and len(lengths) > 1 and max(lengths) == 5, "a real test"


def test_intra_ids_of_the_pool_change_answers() -> None:
    """With another pool the same question is answered otherwise: the ids do reach the model."""
    network, questions = talkative(), asked(MaskSettings())
    one = fill_blanks(network, questions, trie(POOL_ENTITIES), IDS, 5)
    pairs = [[a, b] for a in range(WORDS) for b in range(0, WORDS, 3)]
    assert fill_blanks(network, questions, trie(pairs), IDS, 5) != one


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_spans_end_at_max_tokens(max_tokens: int) -> None:
    network, pool, questions = talkative(), trie(POOL_ENTITIES), asked(MaskSettings())
    network.marks.weight.data[IDS.end - WORDS] = 0  # [END] does not win: all spans are as long as they may be
    for question, spans in zip(
        questions, fill_blanks(network, questions, pool, IDS, max_tokens), strict=True
    ):
        assert len(spans) == len(question.blanks) and {len(span) for span in spans} <= {0, max_tokens}


# --- items --------------------------------------------------------------------------------------------


def item_questions(mask: MaskSettings) -> list[Question]:
    return [Question.of(answered(prompt, ITEMS[0], mask), mask) for prompt in PROMPTS]


@torch.no_grad()
def slow_scores(network: BlankInfiller, prompt: list[int], mask: MaskSettings) -> list[float]:
    """Log-probability of each item's tokens and [END], as training computes it: among words and [END]."""
    scores = []
    for item in ITEMS:
        masked = answered(prompt, item, mask)
        logp = all_logits(network, row_of([masked])).log_softmax(1)[masked.num_a :]
        targets = torch.tensor([*item, IDS.end])[:, None]
        scores.append(float(logp.gather(1, targets).sum()))
    return scores


@all_masks
def test_the_search_ranks_as_scoring_every_item(mask: MaskSettings) -> None:
    """Two items of one title have one score and stand in the order of their ids."""
    k = len(ITEMS)
    found = find_items(small_network("sdpa"), item_questions(mask), trie(ITEMS), IDS, 2 * k, k)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        scores = slow_scores(small_network(), prompt, mask)
        assert answer.items == sorted(range(k), key=lambda item: (-scores[item], item))
        assert answer.scores == pytest.approx([scores[item] for item in answer.items], abs=1e-4)


def test_only_candidates_are_found() -> None:
    """With the scores that they have in the whole catalogue; one question has no candidates of its own."""
    mask = MaskSettings()
    allowed = [[7, 2, 3], None, [5]]
    found = find_items(small_network("sdpa"), item_questions(mask), trie(ITEMS), IDS, 8, 8, allowed)
    assert [sorted(answer.items) for answer in found] == [[2, 3, 7], list(range(8)), [5]]
    for prompt, answer in zip(PROMPTS, found, strict=True):
        scores = slow_scores(small_network(), prompt, mask)
        assert answer.scores == pytest.approx([scores[item] for item in answer.items], abs=1e-4)


def test_questions_in_a_batch_are_answered_as_alone() -> None:
    mask = MaskSettings()
    network, items, questions = small_network("sdpa"), trie(ITEMS), item_questions(mask)
    together = find_items(network, questions, items, IDS, 3, 3)
    for question, answer in zip(questions, together, strict=True):
        (alone,) = find_items(network, [question], items, IDS, 3, 3)
        assert alone.items == answer.items and alone.scores == pytest.approx(answer.scores, abs=1e-4)
        assert len(answer.items) == 3


# --- questions ----------------------------------------------------------------------------------------


def test_a_question_is_part_a() -> None:
    mask = MaskSettings()
    masked = answered([5, 6, 7], [12, 13], mask)
    question = Question.of(masked, mask)
    assert question == Question([PREFIX, 5, 6, 7, IDS.document], [0, 1, 2, 3, 4], [0] * 5, [4], mask)
    assert question.is_2d and not Question.of(masked, MaskSettings(positions="1d")).is_2d
    several = random_masked(np.random.default_rng(0), 20, mask, "entity")
    blanks = Question.of(several, mask).blanks
    assert [int(several.ids_T[blank]) for blank in blanks] == [IDS.entity] * len(several.spans)
    assert blanks == sorted(blanks)
