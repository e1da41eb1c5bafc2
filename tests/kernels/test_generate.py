"""Beam search over the catalogue against Hugging Face's constrained beams, and by brute force."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Glm4Config, Glm4ForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from recloom.kernels import generate
from recloom.kernels.beam_search import Level, Run, search_items
from recloom.kernels.generate import ModelScorer, generate_items
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_build import trie_of
from recloom.kernels.trie_restrictions import restrict

sys.path.insert(0, str(Path(__file__).parent))
from catalogues import END, VOCAB, build, sequences

WORDS = 60


def sharpened(model: Any) -> Any:
    """A random model whose next tokens differ clearly in probability."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model.eval()


def llama(words: int = WORDS) -> Any:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = LlamaConfig(vocab_size=words, num_key_value_heads=1, bos_token_id=0, eos_token_id=END, **sizes)
    return sharpened(LlamaForCausalLM(config))


def opt() -> Any:
    torch.manual_seed(1)
    config = OPTConfig(
        vocab_size=WORDS, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, bos_token_id=0, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    return sharpened(OPTForCausalLM(config))


def glm4() -> Any:
    torch.manual_seed(2)
    config = Glm4Config(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, bos_token_id=0, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    return sharpened(Glm4ForCausalLM(config))


def titles(count: int, seed: int = 0) -> list[list[int]]:
    """Titles that share beginnings and then run on alone; some equal, some the beginning of another."""
    random = np.random.default_rng(seed)
    found = [
        [*random.integers(2, 12, random.integers(1, 3)), *random.integers(2, WORDS, random.integers(0, 7))]
        for _ in range(count)
    ]
    return [list(map(int, title)) for title in [*found, found[0], found[1][:1], [*found[2], 5]]]


def prompts(count: int = 5) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(2, WORDS, random.integers(1, 9)).tolist() for _ in range(count)]


def hugging_face(
    model: Any, prompt: list[int], trie: TokenTrie, beams: int, allow: Callable[[list[int]], list[int]]
) -> list[tuple[list[int], float]]:
    """(items, score) of each returned beam."""
    ids_BT = torch.tensor([prompt])
    out = model.generate(
        ids_BT, attention_mask=torch.ones_like(ids_BT), num_beams=beams, num_return_sequences=beams,
        max_new_tokens=20, length_penalty=0.0, do_sample=False, pad_token_id=0,
        prefix_allowed_tokens_fn=lambda _, ids: allow(ids[len(prompt) :].tolist()),
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = []
    for sequence, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
        spelled = sequence[len(prompt) :]
        if END in spelled:
            state = trie.walk(spelled[: spelled.index(END) + 1])
            found.append((trie.items_at(state).tolist(), score))
    return found


@pytest.mark.parametrize("make", [llama, opt, glm4])
@pytest.mark.parametrize("beams", [2, 3, 8])
def test_beams_and_scores_equal_hugging_face(make: Callable[[], Any], beams: int) -> None:
    model, trie = make(), trie_of(titles(300), end_token=END, vocab_size=WORDS)
    ours = generate_items(model, prompts(), trie, beams, beams)

    def allow(spelled: list[int]) -> list[int]:
        return [END] if END in spelled else trie.children(trie.walk(spelled))[0].tolist()

    for prompt, found in zip(prompts(), ours, strict=True):
        wanted = [
            (item, score)
            for items, score in hugging_face(model, prompt, trie, beams, allow)
            for item in items
        ]
        assert found.items == [item for item, _ in wanted][:beams]
        assert found.scores == pytest.approx([score for _, score in wanted][:beams], abs=1e-5)


def test_few_candidates_are_all_found_with_their_exact_scores() -> None:
    """As many beams as candidates: a full ranking, each score the sum of a plain forward pass."""
    model, catalogue = llama(), titles(60)
    trie = trie_of(catalogue, end_token=END, vocab_size=WORDS)
    candidates = [[1, 5, 9, 60, 0], [2, 62, 7], [3], [4, 61, 8, 10], [11, 12]]
    ours = generate_items(model, prompts(), trie, 8, 8, allowed=candidates)
    for prompt, items, found in zip(prompts(), candidates, ours, strict=True):
        scores = {item: sequence_score(model, prompt, [*catalogue[item], END]) for item in items}
        assert found.items == sorted(items, key=lambda item: (-scores[item], item))
        assert found.scores == pytest.approx([scores[item] for item in found.items], abs=1e-5)


@torch.no_grad()
def sequence_score(model: Any, prompt: list[int], target: list[int]) -> float:
    logits_TV = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].double()
    return float(logits_TV.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)].sum())


def test_excluded_items_never_come() -> None:
    model, trie = llama(), trie_of(titles(40), end_token=END, vocab_size=WORDS)
    first = generate_items(model, prompts(), trie, 6, 6)
    again = generate_items(model, prompts(), trie, 6, 6, excluded=[found.items for found in first])
    for one, other in zip(first, again, strict=True):
        assert len(other.items) == 6 and not set(one.items) & set(other.items)


def test_batches_do_not_change_the_result() -> None:
    model, trie = llama(), trie_of(titles(200), end_token=END, vocab_size=WORDS)
    allowed = [None, list(range(30)), None, [7, 8, 9, 10, 11, 12], None]
    together = generate_items(model, prompts(), trie, 4, 3, allowed=allowed)
    apart = generate_items(model, prompts(), trie, 4, 3, allowed=allowed, batch_size=2)
    for one, other in zip(together, apart, strict=True):
        assert one.items == other.items and one.scores == pytest.approx(other.scores, abs=1e-5)


def test_renormalised_scores_sum_to_one_over_all_items() -> None:
    model, trie = llama(), build([[3, 4], [3, 5], [6], [6, 7]])
    found = generate_items(model, [[2, 3]], trie, 8, 8, renormalise=True)[0]
    assert sorted(found.items) == [0, 1, 2, 3]
    assert sum(np.exp(found.scores)) == pytest.approx(1, abs=1e-5)


def test_forced_runs_save_at_least_half_of_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Titles of 8 to 10 tokens, of which the first three tell them apart."""
    random = np.random.default_rng(0)
    catalogue = [random.integers(2, WORDS, random.integers(8, 11)).tolist() for _ in range(300)]
    trie = trie_of(catalogue, end_token=END, vocab_size=WORDS)
    scorers: list[ModelScorer] = []
    plain_init = ModelScorer.__init__

    def remembered(self: ModelScorer, *arguments: Any) -> None:
        plain_init(self, *arguments)
        scorers.append(self)

    monkeypatch.setattr(ModelScorer, "__init__", remembered)
    generate_items(llama(), prompts(), trie, 5, 5)
    assert len(scorers) == 1
    assert scorers[0].num_passes * 2 <= 10 + 1  # the longest title and its end token


class TableScorer:
    """A language model whose next-token probabilities are a random table of (state, token)."""

    def __init__(self, trie: TokenTrie, keep: int, seed: int) -> None:
        self.trie, self.keep = trie, keep
        self.logp = np.log(np.random.default_rng(seed).dirichlet(np.ones(VOCAB), trie.num_states)).astype(
            "f4"
        )

    def score(self, runs: Any) -> list[list[Level]]:
        return [[self.level(state) for state in run.states] for run in runs]

    def level(self, state: int) -> Level:
        tokens, states = self.trie.children(state)
        order = np.argsort(-self.logp[state, tokens], kind="stable")[: self.keep]
        return Level(self.logp[state, tokens][order], tokens[order], states[order])


@settings(max_examples=2000, deadline=None)
@given(sequences, st.integers(1, 6), st.integers(0, 10**6))
def test_all_answers_are_items_of_any_catalogue(items: list[list[int]], beams: int, seed: int) -> None:
    trie = build(items)
    scorer = TableScorer(trie, 2 * beams, seed)
    (found,) = search_items(scorer, [[3]], trie, beams, beams)
    assert found.items and len(set(found.items)) == len(found.items)
    assert found.scores == sorted(found.scores, reverse=True)
    for item, score in zip(found.items, found.scores, strict=True):
        states = [trie.walk([*items[item], END][:depth]) for depth in range(len(items[item]) + 1)]
        exact = sum(scorer.logp[s, t] for s, t in zip(states, [*items[item], END], strict=True))
        assert score == pytest.approx(float(exact), abs=1e-4)


@settings(max_examples=300, deadline=None)
@given(sequences, st.integers(0, 10**6))
def test_enough_beams_find_the_best_items(items: list[list[int]], seed: int) -> None:
    trie = build(items)
    beams = len(items)
    scorer = TableScorer(trie, 2 * beams, seed)
    (found,) = search_items(scorer, [[3]], trie, beams, beams)
    assert sorted(found.items) == list(range(len(items)))


def test_requests_that_make_no_sense() -> None:
    model, trie = llama(), build([[3, 4], [5]])
    with pytest.raises(ValueError, match=r"k is 3: it must be 1 to num_beams \(2\)"):
        generate_items(model, [[3]], trie, 2, 3)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate_items(model, [[3], []], trie, 2, 2)
    with pytest.raises(ValueError, match="prompt 0 holds a token id outside 0 to 59"):
        generate_items(model, [[60]], trie, 2, 2)
    with pytest.raises(ValueError, match="2 entries for 1 prompts"):
        generate_items(model, [[3]], trie, 2, 2, allowed=[None, None])
    with pytest.raises(ValueError, match="give one each"):
        search_items(TableScorer(trie, 4, 0), [[3]], trie, 2, 2, restrict(trie, allowed=[[0], [1]]))
    with pytest.raises(ValueError, match="10 words, the trie 12"):
        generate_items(llama(words=10), [[3]], trie, 2, 2)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    model = llama()
    plain = model.forward

    def capped(*arguments: Any, **named: Any) -> Any:
        out = plain(*arguments, **named)
        out.logits = torch.tanh(out.logits)
        return out

    model.forward = capped
    with pytest.raises(ValueError, match="not its head times its last hidden state"):
        generate_items(model, [[3]], build([[3, 4], [5]]), 2, 2)


def test_training_mode_and_cached_rows_are_left_alone() -> None:
    model = llama().train()
    generate_items(model, [[3]], build([[3, 4], [5]]), 2, 2)
    assert model.training


def test_wanted_columns() -> None:
    assert list(generate.wanted(Run(0, 0, (), (3, 4, 5), (0, 7)))) == [1, 2]
    assert list(generate.wanted(Run(0, 0, (3,)))) == []
