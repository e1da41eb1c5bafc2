"""Small language models that fill blanks, and random masked texts for them.

Shapes: T tokens of a text, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recloom.data_shards.blank_rows import BlankRow, behind_prefix
from recloom.data_shards.masking import Masked, MaskIds, blank, mask
from recloom.data_shards.spans import Level, MaskSettings, TokenSpan
from recloom.data_shards.stream import PackedRow
from recloom.trainer.systems.recsysllm.attention import BLANKS
from recloom.trainer.systems.recsysllm.network import BlankInfiller, Sizes, mask_ids

WORDS, HIDDEN, RATE = 40, 16, 4.0
IDS: MaskIds = mask_ids(WORDS)
PREFIX = 1  # the start token before every text
CHOICES = (("entity", "token"), ("chronological", "permuted"), ("2d", "1d"))
ABLATIONS = [
    MaskSettings(units=units, order=order, positions=positions)  # type: ignore[arg-type]
    for units, order, positions in product(*CHOICES)
]


def small_llm(attention: str, **changes: Any) -> LlamaForCausalLM:
    """Two layers, grouped-query heads; its weights are large enough that one token more shows."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    config = LlamaConfig(**(sizes | changes), attn_implementation=attention)
    return LlamaForCausalLM(config).eval()


def small_network(attention: str = BLANKS, learned: bool = True) -> BlankInfiller:
    """learned: the tables have moved away from where they start."""
    llm = small_llm(attention)
    network = BlankInfiller(llm, Sizes(WORDS, HIDDEN, 64, RATE))
    words = llm.get_input_embeddings().weight.detach()
    network.start_marks(words.mean(0), words[2], float(words.std()), seed=0)
    if learned:
        generator = torch.Generator().manual_seed(1)
        for table in (network.intra, network.marks):
            noise = torch.randn(table.weight.shape, generator=generator) * 0.5 / RATE
            table.weight.data += noise
    return network.eval()


def random_text(rng: np.random.Generator, num_units: int) -> tuple[np.ndarray, list[TokenSpan]]:
    """Plain tokens (2 to 11), and entities of tokens that nothing else in the text has."""
    ids: list[int] = []
    spans: list[TokenSpan] = []
    fresh = iter(rng.permutation(np.arange(12, WORDS)).tolist())
    for _ in range(num_units):
        length = int(rng.integers(1, 5)) if rng.random() < 0.4 else 0
        entity = [token for token, _ in zip(fresh, range(length), strict=False)]
        if entity:
            spans.append((len(ids), len(ids) + len(entity)))
        ids += entity or [int(rng.integers(2, 12))]
    return np.array(ids, dtype=np.int64), spans


def random_masked(
    rng: np.random.Generator,
    num_units: int = 12,
    settings: MaskSettings | None = None,
    level: Level | None = None,
) -> Masked:
    """A masked text behind its start token."""
    ids_T, spans = random_text(rng, num_units)
    drawn = mask(ids_T, spans, [(0, len(ids_T))], settings or MaskSettings(), IDS, rng, level)
    return behind_prefix(drawn, [PREFIX])


def answered(prompt: Sequence[int], item: Sequence[int], settings: MaskSettings) -> Masked:
    """A prompt whose one blank is an item, an entity, behind the start token."""
    ids_T, answer = np.array([*prompt, *item]), (len(prompt), len(prompt) + len(item))
    return behind_prefix(blank(ids_T, [answer], [answer], settings, IDS, "document"), [PREFIX])


def row_of(masked: Sequence[Masked]) -> BlankRow:
    """Texts laid end to end."""

    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(text, name) for text in masked]))

    return BlankRow(
        ids_T=joined("ids_T"),
        position_ids_T=joined("inter_T"),
        labels_T=joined("targets_T"),
        sample_indices=list(range(len(masked))),
        boundaries=torch.tensor(np.cumsum([0, *(len(text.ids_T) for text in masked)]), dtype=torch.int32),
        intra_T=joined("intra_T"),
        num_a_S=torch.tensor([text.num_a for text in masked]),
    )


def all_logits(network: BlankInfiller, row: PackedRow) -> torch.Tensor:
    """Logits (T, V + 5) at every place of a row, as training computes them."""
    assert isinstance(row, BlankRow)
    logits_TV: torch.Tensor = network(
        input_ids=row.ids_T[None],
        intra_ids=row.intra_T[None],
        position_ids=row.position_ids_T[None],
        logits_to_keep=torch.arange(len(row.ids_T)),
        boundaries=row.boundaries.tolist(),
        num_a=row.num_a_S.tolist(),
    )
    return logits_TV
