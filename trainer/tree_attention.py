"""Attention over a prompt with branches behind it: each branch sees the prompt and itself.

A dense mask would compute the scores of all branches against each other; here a branch costs the prompt and
its own length, by plain matrix products. Importing this module registers the function with transformers under
the name `tree`; lengths reach it as a keyword of the model's forward.

Shapes: B = 1 row, H heads of queries, K heads of keys and values (H a multiple of K), G = H / K, T tokens of
the row, N branches, L tokens of the longest branch, R tokens of all branches, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from recloom.trainer.block_attention import Sample, block_attention, pays
from recloom.trainer.packed_attention import no_mask

TREE = "tree"


@dataclass(frozen=True)
class Tree:
    """A row of a prompt and its branches, as indices.

    prompt: how many tokens it has. place_NL: where in the row a branch's tokens are, the last one repeated
    up to the longest (an empty branch has what stands before it). hidden_LL: what a causal mask hides inside
    a branch. taken_R: which of the N * L places are a branch's own, in the row's order.
    """

    prompt: int
    place_NL: Tensor
    hidden_LL: Tensor
    taken_R: Tensor

    @classmethod
    def of(cls, prompt: int, lengths: Sequence[int], device: torch.device) -> Tree:
        length_N1 = torch.tensor(lengths)[:, None]
        start_N1 = prompt + length_N1.cumsum(0) - length_N1
        step_L = torch.arange(max([*lengths, 1]))
        place_NL = torch.minimum(start_N1 + step_L, start_N1 + length_N1 - 1)
        taken_R = (step_L < length_N1).flatten().nonzero()[:, 0]
        hidden_LL = torch.ones(len(step_L), len(step_L), dtype=torch.bool).triu(1)
        return cls(prompt, place_NL.to(device), hidden_LL.to(device), taken_R.to(device))


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
    """The output (B, T, H, D) and no weights, as transformers expects."""
    if attention_mask is not None or dropout:
        raise ValueError("tree attention takes a tree, no mask, and has no dropout")
    end = tree.prompt
    prompt, key, value = query_BHTD[:, :, :end], key_BKTD[:, :, :end], value_BKTD[:, :, :end]
    samples = [Sample(0, end)]
    if pays(prompt, samples, dropout):
        first = block_attention(prompt, key, value, samples, scaling).transpose(1, 2)
    else:
        groups = query_BHTD.shape[1] != key_BKTD.shape[1]
        first = scaled_dot_product_attention(
            prompt, key, value, is_causal=True, scale=scaling, enable_gqa=groups
        )
    scale = 1 / math.sqrt(query_BHTD.shape[3]) if scaling is None else scaling
    rest = branches(query_BHTD[0] * scale, key_BKTD[0], value_BKTD[0], tree)
    return torch.cat([first, rest[None]], dim=2).transpose(1, 2).contiguous(), None


def branches(query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, tree: Tree) -> Tensor:
    """What the branches' tokens get (H, R, D); the queries are scaled."""
    heads, groups, width = len(query_HTD), len(key_KTD), query_HTD.shape[2]
    count, longest = tree.place_NL.shape
    own = (groups * count, longest, width)
    key, value = (both[:, tree.place_NL.flatten()].reshape(own) for both in (key_KTD, value_KTD))
    query_KGND = query_HTD[:, tree.place_NL.flatten()].reshape(groups, -1, width)
    to_prompt = torch.bmm(query_KGND, key_KTD[:, : tree.prompt].transpose(1, 2))
    by_branch = query_KGND.view(groups, -1, count, longest, width).transpose(1, 2)
    to_own = torch.bmm(by_branch.reshape(groups * count, -1, width), key.transpose(1, 2))
    to_own = to_own.view(groups, count, -1, longest, longest).masked_fill(tree.hidden_LL, -torch.inf)
    to_own = to_own.transpose(1, 2).reshape(groups, -1, longest)
    shares = torch.softmax(torch.cat([to_prompt, to_own], dim=2), dim=2)
    out = torch.bmm(shares[..., : tree.prompt], value_KTD[:, : tree.prompt])
    own_shares = shares[..., tree.prompt :].view(groups, -1, count, longest, longest).transpose(1, 2)
    added = torch.bmm(own_shares.reshape(groups * count, -1, longest), value)
    added = added.view(groups, count, -1, longest, width).transpose(1, 2)
    return (out.view_as(added) + added).reshape(heads, -1, width)[:, tree.taken_R]


def register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(TREE, tree_attention)
    AttentionMaskInterface.register(TREE, no_mask)


register()
