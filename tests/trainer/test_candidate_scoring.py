"""Candidate scoring against asking each answer alone, and its greedy choice against decoding token by token.

Shapes: P tokens of a prompt, T tokens of prompt and answers, V vocabulary, H width of the LLM, N users,
I items, D and E widths of their vectors.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from recloom.data_shards.renderer import SlotPosition
from recloom.trainer.candidate_scoring import score_answers, score_next
from recloom.trainer.decoder_layers import spare_last_layer
from recloom.trainer.systems.a_llmrec.projection import ProjectedLM, Projection, Widths
from recloom.trainer.tree_attention import TREE

END = 2
PROMPT = np.random.default_rng(3).integers(3, 49000, 40).tolist()
# Shared starts, an answer twice, and an answer of one token.
ANSWERS = [[7, 8, 9, END], [7, 8, 30, 31, END], [12, END], [7, 8, 9, END], [40], [12, 13, 14, END]]
SLOTS: list[SlotPosition] = [(0, "user", 2), (9, "history", 5), (14, "history", 0), (21, "candidate", 5)]


@pytest.fixture(scope="module")
def tiny_opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_opt")
    save_opt(folder)
    return folder


def save_opt(folder: Path, **settings: Any) -> None:
    """A random two-layer OPT with as many tokens as SmolLM2, as a Hugging Face folder."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    given = {"word_embed_proj_dim": 32, "max_position_embeddings": 256, **shape, **ids, **settings}
    OPTForCausalLM(OPTConfig(vocab_size=49152, **given)).save_pretrained(folder)


def load(folder: Path, attention: str) -> Any:
    """In float32, with large weights so that answers differ clearly."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    torch.manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    if attention == TREE:
        spare_last_layer(model)  # as the scoring passes do
    return model.eval()


@pytest.fixture(scope="module", params=["llama-sdpa", "llama-eager", "opt-sdpa", "opt-eager"])
def model(request: pytest.FixtureRequest) -> Any:
    name, attention = request.param.split("-")
    return load(request.getfixturevalue(f"tiny_{name}"), attention)


@torch.no_grad()
def asked_alone(model: Any, inputs: dict[str, Tensor], answer: list[int]) -> Tensor:
    """Log-probabilities of an answer that stands at the end of the inputs."""
    logprobs_TV = model(**inputs).logits[0].float().log_softmax(-1)
    first = len(logprobs_TV) - len(answer) - 1
    return logprobs_TV[torch.arange(first, first + len(answer)), torch.tensor(answer)]


@torch.no_grad()
def soft_embeddings(model: ProjectedLM, ids: list[int], slots: list[SlotPosition]) -> Tensor:
    """The prompt's embeddings (1, T, H) by hand: a projected row wherever a slot stands."""
    embedded_TH = model.llm.get_input_embeddings().weight[torch.tensor(ids)].clone()  # type: ignore[operator]
    users_ND, items_IE = model.tables
    for position, kind, id in slots:
        assert id is not None
        embedded_TH[position] = (
            by_hand(model.projection, "user", users_ND[id])
            if kind == "user"
            else by_hand(model.projection, "item", items_IE[id])
        )
    return embedded_TH[None]


def by_hand(projection: Projection, network: str, vector_X: Tensor) -> Tensor:
    """F_U or F_I of one vector, (H,), from the weights alone."""
    own = {
        name.removeprefix(f"{network}."): weight
        for name, weight in projection.state_dict().items()
        if name.startswith(network)
    }
    inner = F.linear(vector_X, own["0.weight"], own["0.bias"])
    inner = F.layer_norm(inner, inner.shape, own["1.weight"], own["1.bias"])
    inner = F.leaky_relu(inner, 0.01) if network == "user" else F.gelu(inner)
    return F.linear(inner, own["3.weight"], own["3.bias"])


def with_vectors(llm: Any, user: bool, item: bool) -> ProjectedLM:
    torch.manual_seed(1)
    widths = Widths(5 if user else None, 6 if item else None, 12, llm.config.hidden_size)
    return ProjectedLM(llm, Projection(widths), torch.randn(3, 5), torch.randn(8, 6)).eval()


def test_scores_are_those_of_asking_one_by_one(model: Any) -> None:
    scored = score_answers(model, PROMPT, ANSWERS)
    assert scored.answers == [tuple(answer) for answer in ANSWERS]
    for k, answer in enumerate(ANSWERS):
        want = asked_alone(model, {"input_ids": torch.tensor([PROMPT + answer])}, answer)
        torch.testing.assert_close(torch.from_numpy(scored.tokens[k]), want, rtol=0, atol=1e-5)
        assert scored.totals_K[k] == pytest.approx(want.sum().item(), abs=1e-5)
    assert np.ptp(scored.totals_K) > 1, "the answers differ"


@pytest.mark.parametrize(("user", "item"), [(True, True), (False, True), (True, False)])
def test_scores_with_soft_tokens(model: Any, user: bool, item: bool) -> None:
    projected = with_vectors(model, user, item)
    slots = [slot for slot in SLOTS if (user if slot[1] == "user" else item)]
    scored = score_answers(projected, PROMPT, ANSWERS, slots)
    for k, answer in enumerate(ANSWERS):
        inputs = {"inputs_embeds": soft_embeddings(projected, PROMPT + answer, slots)}
        want = asked_alone(model, inputs, answer)
        torch.testing.assert_close(torch.from_numpy(scored.tokens[k]), want, rtol=0, atol=1e-5)
    plain = score_answers(model, PROMPT, ANSWERS)
    assert np.abs(plain.totals_K - scored.totals_K).max() > 1e-2, "the vectors matter"


def test_next_tokens_behind_branches(model: Any) -> None:
    branches, words = [[5], [7, 8, 9, 10], [7, 8]], [3, 40, 11]
    found_KW = score_next(model, PROMPT, branches, words)
    for k, branch in enumerate(branches):
        with torch.no_grad():
            logits_V = model(input_ids=torch.tensor([PROMPT + branch])).logits[0, -1]
        want_W = logits_V.log_softmax(0)[words]
        torch.testing.assert_close(torch.from_numpy(found_KW[k]), want_W, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "opt"])
@pytest.mark.parametrize("length", [1, 3, 140])
def test_tree_attention_is_the_dense_mask(name: str, length: int, request: pytest.FixtureRequest) -> None:
    """In one row: long prompts and short ones, answers of one token, soft tokens."""
    folder = request.getfixturevalue(f"tiny_{name}")
    dense, tree = load(folder, "sdpa"), load(folder, TREE)
    prompt, slots = (PROMPT * 4)[:length], [slot for slot in SLOTS if slot[0] < length]
    for answers in (ANSWERS, [[9]], [[4, 5, 6]], [[40], [41]]):
        want, found = (score_answers(model, prompt, answers) for model in (dense, tree))
        for pair in zip(found.tokens, want.tokens, strict=True):
            np.testing.assert_allclose(*pair, atol=1e-5)
        soft = [
            score_answers(with_vectors(model, True, True), prompt, answers, slots) for model in (tree, dense)
        ]
        np.testing.assert_allclose(soft[0].totals_K, soft[1].totals_K, atol=1e-5)
    want, found = (score_next(model, prompt, [[4], [5, 6, 7]], [1, 2]) for model in (dense, tree))
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_tree_attention_in_bfloat16_is_near(tiny_llama: Path) -> None:
    """Blocks of plain products, and queries that share keys."""
    exact, rounded = load(tiny_llama, "sdpa"), load(tiny_llama, TREE).bfloat16()
    gap = score_answers(exact, PROMPT, ANSWERS).totals_K - score_answers(rounded, PROMPT, ANSWERS).totals_K
    assert np.abs(gap).max() < 0.5 and np.abs(gap).max() > 0


def test_an_answers_score_does_not_depend_on_the_others(model: Any) -> None:
    together = score_answers(model, PROMPT, ANSWERS).totals_K
    turned = score_answers(model, PROMPT, ANSWERS[::-1]).totals_K[::-1]
    np.testing.assert_allclose(together, turned, atol=1e-5)
    alone = [score_answers(model, PROMPT, [answer]).totals_K[0] for answer in ANSWERS]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def decoded(next_logprobs: Any, answers: list[tuple[int, ...]]) -> int:
    """Greedy decoding that may only spell answers; the first answer that reads as what was spelt.

    next_logprobs(tokens) is the model behind the prompt and `tokens`. Of equally likely tokens that of the
    earlier answer is taken. It goes on as long as an answer does.
    """
    spelt: tuple[int, ...] = ()
    while True:
        goes_on = [a[len(spelt)] for a in answers if a[: len(spelt)] == spelt and len(a) > len(spelt)]
        if not goes_on:
            return answers.index(spelt)
        logprobs_V = next_logprobs(spelt)
        spelt = (*spelt, max(dict.fromkeys(goes_on), key=lambda token: logprobs_V[token]))


def test_greedy_is_constrained_decoding_of_the_model(model: Any) -> None:
    @torch.no_grad()
    def next_logprobs(spelt: tuple[int, ...]) -> Tensor:
        return model(input_ids=torch.tensor([[*prompt, *spelt]])).logits[0, -1].log_softmax(-1)

    rng = np.random.default_rng(0)
    chosen = []
    for _ in range(8):
        prompt = rng.integers(3, 49000, 12).tolist()
        answers = [tuple(rng.integers(3, 7, rng.integers(1, 5)).tolist()) + (END,) for _ in range(9)]
        scored = score_answers(model, prompt, answers)
        chosen.append(scored.greedy() == int(scored.totals_K.argmax()))
        assert scored.greedy() == decoded(next_logprobs, answers)
    assert not all(chosen), "greedy is not the most likely answer as a whole"


VOCABULARY = 4


class CountingModel(nn.Module):
    """A fake language model: the logits are small whole numbers drawn anew for every context.

    It reads only what the mask lets it see, and insists on a gapless context.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        self.nothing = nn.Parameter(torch.zeros(1))

    def logits_of(self, context: tuple[int, ...]) -> Tensor:
        drawn = np.random.default_rng([self.seed, len(context), *context]).integers(0, 3, VOCABULARY)
        return torch.from_numpy(drawn).float()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        logits_to_keep: Tensor,
        use_cache: bool,
    ) -> Any:
        mask_TT = attention_mask[0, 0]
        seen_TT = mask_TT if mask_TT.dtype == torch.bool else mask_TT >= 0
        rows = []
        for row in logits_to_keep.tolist():
            order = position_ids[0, seen_TT[row]].argsort()
            assert position_ids[0, seen_TT[row]][order].tolist() == list(range(int(position_ids[0, row]) + 1))
            rows.append(self.logits_of(tuple(input_ids[0, seen_TT[row]][order].tolist())))
        return SimpleNamespace(logits=torch.stack(rows)[None])


TOKENS = st.integers(0, VOCABULARY - 1)
SPELLINGS = st.lists(TOKENS, min_size=1, max_size=4)


@settings(max_examples=300, derandomize=True)
@given(
    prompt=st.lists(TOKENS, min_size=1, max_size=4),
    answers=st.lists(SPELLINGS, min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_any_answers(prompt: list[int], answers: list[list[int]], seed: int) -> None:
    """Among them the same answer twice, and answers that are the start of others; logits are often equal."""
    fake = CountingModel(seed)
    scored = score_answers(fake, prompt, answers)
    for answer, tokens in zip(answers, scored.tokens, strict=True):
        behind = [fake.logits_of((*prompt, *answer[:n])).log_softmax(0) for n in range(len(answer))]
        want = [float(logprobs_V[token]) for logprobs_V, token in zip(behind, answer, strict=True)]
        np.testing.assert_allclose(tokens, want, atol=1e-5)
    spelt = [tuple(answer) for answer in answers]
    # The reference compares the logits: what is equal there is equal to the last bit.
    assert scored.greedy() == decoded(lambda spelt: fake.logits_of((*prompt, *spelt)), spelt)
