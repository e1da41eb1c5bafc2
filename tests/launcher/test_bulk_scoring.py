"""Scoring passes by one forward pass a group: the groups, the numbers, and a killed pass."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from killed_pass import Chunks, Killer, assert_chunks_were_kept, chunks

from recloom.data_shards.artifacts import file_sha256
from recloom.launcher import bulk_supervisor
from recloom.launcher.bulk import engine_for, run_pass
from recloom.launcher.bulk_scoring import MAX_TOKENS, Scorer, beginning, groups
from recloom.launcher.bulk_store import BulkStore, in_one_pass
from recloom.trainer.requests import BulkSettings, Request, SoftPrompt, read_answers

PLAIN = BulkSettings(dtype="float32", max_model_len=256, kv_cache_gb=0.25, threads=1, chunk_size=8)
SETTINGS = PLAIN.model_copy(update={"scoring": "one_pass"})
FAULTY = [
    Request((), 1, score_ids=(3,)),
    Request((5, 49152), 1, score_ids=(3,)),
    Request((3,), 1, score_ids=(49152,)),
    Request((3,) * 256, 1, score_ids=(3,)),
]

tokens = st.integers(3, 5)
prompts = st.lists(st.lists(tokens, min_size=1, max_size=8).map(tuple), min_size=1, max_size=12)


def scoring_requests() -> list[Request]:
    """Users whose candidates differ behind a long beginning, 1 to 6 ids; and a prompt of one token."""
    draw = random.Random(0)
    made = [Request((7,), 1, score_ids=(1, 2))]
    for user in range(8):
        shared = [draw.randrange(3, 49152) for _ in range(40 + 5 * user)]
        for item in range(6):
            own = [draw.randrange(3, 49152) for _ in range(1 + item % 4)]
            made.append(
                Request((*shared, *own), 1, score_ids=tuple(range(9, 10 + user % 6)), meta={"n": item})
            )
    return made


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    made = scoring_requests()
    return [*FAULTY, *made, made[0]]


@pytest.fixture(scope="module")
def reference(tiny_llama: Path, requests: list[Request], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted pass."""
    out = tmp_path_factory.mktemp("bulk") / "reference"
    assert len(run_pass(SETTINGS, tiny_llama, requests, out)) == len(requests)
    return out


@given(prompts)
def test_groups_keep_the_order_and_share_half(asked: list[tuple[int, ...]]) -> None:
    made = [Request(ids, 1, score_ids=(3,)) for ids in asked]
    found = list(groups(made))
    assert list(itertools.chain(*found)) == made
    for group in found:
        ids = [list(request.prompt_ids) for request in group]
        shortest = min(map(len, ids))
        same = max(n for n in range(shortest + 1) if len({tuple(one[:n]) for one in ids}) == 1)
        assert beginning(group) == min(same, shortest - 1)
        assert len(group) == 1 or all(2 * beginning(group) >= len(one) for one in ids)
    for group, following in itertools.pairwise(found):
        joined = [*group, following[0]]
        assert any(2 * beginning(joined) < len(request.prompt_ids) for request in joined)


def test_a_group_has_no_more_tokens_than_the_attention_should_bear() -> None:
    made = [Request((*range(1500), *range(n, n + 1000)), 1, score_ids=(3,)) for n in range(4)]
    assert [len(group) for group in groups(made)] == [2, 2]
    assert 1500 + 2 * 1000 <= MAX_TOKENS < 1500 + 3 * 1000


def test_what_is_a_scoring_pass(tmp_path: Path, tiny_llama: Path) -> None:
    score = Request((3, 4), 1, score_ids=(5,))
    soft = Request((3, 4), 1, score_ids=(5,), soft=SoftPrompt("rows", "0", (0,), (0,)))
    asked = ([score], [score, Request((3,), 4)], [score, soft])
    assert [in_one_pass(SETTINGS, requests) for requests in asked] == [True, False, False]
    assert not in_one_pass(PLAIN, [score])
    store = BulkStore.describe(tmp_path / "out", tiny_llama, SETTINGS, [score])
    assert isinstance(engine_for(store, [score]), Scorer)


def test_scores_equal_hugging_face(tiny_llama: Path, reference: Path, requests: list[Request]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    answers = read_answers(reference)
    for request, answer in zip(requests[len(FAULTY) :], answers[len(FAULTY) :], strict=True):
        with torch.no_grad():
            logits_V = model(torch.tensor([request.prompt_ids])).logits[0, -1]
        want = logits_V.log_softmax(-1)[list(request.score_ids)]
        torch.testing.assert_close(torch.tensor(answer.scores), want, atol=1e-4, rtol=0)
        assert (answer.meta, answer.text, answer.token_ids) == (request.meta, "", ())
    for answer, reason in zip(answers, ["empty", "vocabulary", "vocabulary", "256 tokens"], strict=False):
        assert answer.finish_reason == "refused" and reason in str(answer.error)


def test_scores_equal_vllm_on_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    asked = [request for request in scoring_requests() if len(request.prompt_ids) > 1][:12]
    by_vllm, by_one_pass = (
        run_pass(settings, smollm2, asked, tmp_path / settings.scoring) for settings in (PLAIN, SETTINGS)
    )
    for one, other in zip(by_vllm, by_one_pass, strict=True):
        assert other.scores == pytest.approx(one.scores, abs=2e-3)
        assert (one.key, one.finish_reason, one.meta) == (other.key, other.finish_reason, other.meta)


def test_the_other_way_of_scoring_drops_the_answers(
    tiny_llama: Path, reference: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They round differently; under the same way a finished pass starts no worker."""
    assert not BulkStore.describe(reference, tiny_llama, PLAIN, requests).is_saved()
    texts = [BulkStore.describe(reference, tiny_llama, how, [Request((3,), 4)]) for how in (PLAIN, SETTINGS)]
    assert texts[0].identity == texts[1].identity  # vLLM writes them either way
    monkeypatch.setattr(bulk_supervisor, "supervise", None)
    assert run_pass(SETTINGS, tiny_llama, requests, reference) == read_answers(reference)


def test_a_killed_pass_keeps_its_chunks(
    tiny_llama: Path, reference: Path, requests: list[Request], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    killer = Killer(out)
    killer.start()
    answers = run_pass(SETTINGS, tiny_llama, requests, out)
    killer.join()
    after: Chunks = chunks(out)
    assert_chunks_were_kept(killer.before, after)
    assert answers == read_answers(reference)
    assert [sha for _, sha in after.values()] == [file_sha256(path) for path in sorted(chunks(reference))]
