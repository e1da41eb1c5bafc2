"""The five best of real titles from a real model: our beam search against transformers' constrained one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from kernel_ops.case import Case
from kernel_ops.titles import read_titles
from transformers import AutoModelForCausalLM, AutoTokenizer

from recloom.data_shards.artifacts import cache_dir
from recloom.kernels.beam_search import Generated, search_items
from recloom.kernels.generate import ModelScorer, generate_items
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_build import trie_of
from recloom.trainer.models import smollm2_folder

BEAMS = 5
USERS = 2


def cases(device: str, data: Path) -> Iterator[Case]:
    folder = smollm2_folder(cache_dir())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = model.to(device).eval()
    titles = read_titles(data)
    ids = tokenizer(titles, add_special_tokens=False)["input_ids"]
    trie = trie_of(ids, end_token=tokenizer.eos_token_id, vocab_size=len(tokenizer))
    prompts = [
        tokenizer("I liked:\n" + "\n".join(titles[8 * n : 8 * n + 8]) + "\nNext I will like:\n")["input_ids"]
        for n in range(USERS)
    ]
    mine, theirs = ours(model, trie, prompts), hugging_face(model, trie, prompts)

    def check() -> None:
        for one, other in zip(mine(), theirs(), strict=True):
            assert one.items == other.items[: len(one.items)], (one, other)
            torch.testing.assert_close(
                torch.tensor(one.scores), torch.tensor(other.scores[: len(one.scores)]), atol=1e-3, rtol=0
            )

    labels = {
        "passes": str(passes(model, trie, prompts)),
        "token_by_token": str(passes(model, token_by_token(trie), prompts)),
    }
    shape = f"users={USERS} M={BEAMS} items={len(titles)} SmolLM2-135M"
    yield Case("generate_items", "Hugging Face", shape, "float32", mine, theirs, check, 0, labels)


def ours(model: Any, trie: TokenTrie, prompts: list[list[int]]) -> Callable[[], list[Generated]]:
    return lambda: generate_items(model, prompts, trie, BEAMS, BEAMS)


def passes(model: Any, trie: TokenTrie, prompts: list[list[int]]) -> int:
    scorer = ModelScorer(model, trie, 2 * BEAMS, None, renormalise=False)
    search_items(scorer, prompts, trie, BEAMS, BEAMS)
    return scorer.num_passes


class TokenByToken(TokenTrie):
    """The same trie, no run of which goes through the model at once."""

    def forced_run(self, state: int) -> list[tuple[int, int]]:
        return []


def token_by_token(trie: TokenTrie) -> TokenTrie:
    return TokenByToken(**{field.name: getattr(trie, field.name) for field in fields(TokenTrie)})


def hugging_face(model: Any, trie: TokenTrie, prompts: list[list[int]]) -> Callable[[], list[Generated]]:
    """One prompt a call: prompts of different lengths would need padding, which shifts scores."""
    end = trie.end_token
    assert end is not None

    def one(prompt: list[int]) -> Generated:
        def allowed(_: int, ids_T: torch.Tensor) -> list[int]:
            spelled = ids_T[len(prompt) :].tolist()
            return [end] if end in spelled else trie.children(trie.walk(spelled))[0].tolist()

        ids_BT = torch.tensor([prompt], device=model.device)
        out = model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), num_beams=BEAMS, num_return_sequences=BEAMS,
            max_new_tokens=trie.longest, length_penalty=0.0, do_sample=False, pad_token_id=end,
            prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        items: list[int] = []
        scores: list[float] = []
        for sequence, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
            spelled = sequence[len(prompt) :]
            found = trie.items_at(trie.walk(spelled[: spelled.index(end) + 1])).tolist()
            items, scores = items + found, scores + [score] * len(found)
        return Generated(items, scores)

    return lambda: [one(prompt) for prompt in prompts]
