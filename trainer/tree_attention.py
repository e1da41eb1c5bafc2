"""Attention over a prompt with branches behind it: each branch sees the prompt and itself.

A dense mask would compute the scores of all branches against each other. Here branches that follow each other
are taken together, few enough tokens that what they must not see of each other costs little: such a bunch
sees the prompt and itself, by plain matrix products. Importing this module registers the function with
transformers under the name `tree`; the tree reaches it as a keyword of the model's forward.

Shapes: B = 1 row, H heads of queries, K heads of keys and values (H a multiple of K), G = H / K, T tokens of
the row, P tokens of the prompt, N tokens of a bunch, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from recloom.kernels.seen_softmax import SeenKeys, softmax_where_seen_
from recloom.trainer.block_attention import Sample, block_attention, pays
from recloom.trainer.packed_attention import no_mask

TREE = "tree"
CPU_BUNCH, GPU_BUNCH = 64, 1024  # tokens; a GPU would rather compute more than start more kernels


@dataclass(frozen=True)
class Bunch:
    """The tokens `start:end` of whole branches. seen: which keys each of them sees, of the prompt's and the
    bunch's."""

    start: int
    end: int
    seen: SeenKeys

    @classmethod
    def of(cls, prompt: int, start: int, lengths: Sequence[int], device: torch.device) -> Bunch:
        before_N = torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths])  # in its branch
        key_N = torch.arange(prompt, prompt + len(before_N), dtype=torch.int32)
        prompt_N = torch.full_like(key_N, prompt)
        seen = SeenKeys(prompt_N, key_N - before_N, key_N + 1, prompt + len(key_N), device)
        return cls(start, start + len(key_N), seen)


@dataclass(frozen=True)
class Tree:
    """A row of a prompt and its branches. prompt: how many tokens it has."""

    prompt: int
    bunches: list[Bunch]

    @classmethod
    def of(cls, prompt: int, lengths: Sequence[int], device: torch.device) -> Tree:
        """lengths: tokens of each branch, in the order of the row."""
        most = CPU_BUNCH if device.type == "cpu" else GPU_BUNCH
        bunches, taken, start = [], list[int](), prompt
        for length in lengths:
            if taken and sum(taken) + length > most:
                bunches.append(Bunch.of(prompt, start, taken, device))
                start, taken = bunches[-1].end, []
            taken.append(length)
        if sum(taken):
            bunches.append(Bunch.of(prompt, start, taken, device))
        return cls(prompt, bunches)


def tree_attention(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    tree: Tree,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """The output (B, T, H, D) and no weights, as transformers expects. It is not for training."""
    if attention_mask is not None or dropout:
        raise ValueError("tree attention takes a tree, no mask, and has no dropout")
    scale = 1 / math.sqrt(query_BHTD.shape[3]) if scaling is None else scaling
    out_BTHD = query_BHTD.new_empty(query_BHTD.transpose(1, 2).shape)
    prompt = [tensor[:, :, : tree.prompt] for tensor in (query_BHTD, key_BKTD, value_BKTD)]
    out_BTHD[:, : tree.prompt] = prompt_attention(prompt[0], prompt[1], prompt[2], scale)
    for bunch in tree.bunches:
        out_BTHD[0, bunch.start : bunch.end] = bunch_attention(
            query_BHTD[0, :, bunch.start : bunch.end] * scale, key_BKTD[0], value_BKTD[0], tree.prompt, bunch
        )
    return out_BTHD, None


def prompt_attention(query_BHPD: Tensor, key_BKPD: Tensor, value_BKPD: Tensor, scale: float) -> Tensor:
    """Causal attention of the prompt (B, P, H, D)."""
    samples = [Sample(0, query_BHPD.shape[2])]
    if pays(query_BHPD, samples, 0.0):
        return block_attention(query_BHPD, key_BKPD, value_BKPD, samples, scale)
    groups = query_BHPD.shape[1] != key_BKPD.shape[1]
    out_BHPD = scaled_dot_product_attention(
        query_BHPD, key_BKPD, value_BKPD, is_causal=True, scale=scale, enable_gqa=groups
    )
    return out_BHPD.transpose(1, 2)


def bunch_attention(
    query_HND: Tensor, key_KTD: Tensor, value_KTD: Tensor, prompt: int, bunch: Bunch
) -> Tensor:
    """What a bunch's tokens get (N, H, D); the queries are scaled."""
    heads, length, width = query_HND.shape
    groups = len(key_KTD)
    key, value = (
        torch.cat([both[:, :prompt], both[:, bunch.start : bunch.end]], dim=1)
        for both in (key_KTD, value_KTD)
    )
    query = query_HND.reshape(groups, -1, width)  # heads that share keys together, token by token in each
    scores = torch.bmm(query, key.transpose(1, 2)).view(heads, length, 1, -1)
    shares = softmax_where_seen_(scores, bunch.seen).view(groups, heads // groups * length, -1)
    return torch.bmm(shares, value).view(heads, length, width).transpose(0, 1)


def register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(TREE, tree_attention)
    AttentionMaskInterface.register(TREE, no_mask)


register()
