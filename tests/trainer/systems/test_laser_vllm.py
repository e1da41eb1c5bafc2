"""Laser asked by vLLM's pooling: its prompts against Bi-Tuning's own forward through Hugging Face, the stage
around the passes, the rule. What vLLM makes of such prompts is in tests/launcher/test_bulk_embed.py.

Shapes: S users, N items, D width of the recommender, H width of the LLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recloom.data_shards.artifacts import file_sha256, write_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.stream import build_row
from recloom.launcher.bulk import find_fault
from recloom.launcher.bulk_soft import SoftRows, fault_of_soft, mixed_prompt
from recloom.trainer.config_io import ConfigError, build_config
from recloom.trainer.requests import (
    REQUESTS,
    Answer,
    Request,
    chunk_text,
    pack_vector,
    write_requests,
)
from recloom.trainer.stages import Run, Stage, stage_digests
from recloom.trainer.systems.laser import rank, vllm_rank
from recloom.trainer.systems.laser.embedding import read_vectors
from recloom.trainer.systems.laser.methods import METHODS, Method
from recloom.trainer.systems.laser.network import make_network, save_weights
from recloom.trainer.systems.laser.objective import RowReader
from recloom.trainer.systems.laser.parameters import empty_llm
from recloom.trainer.systems.laser.recipe import stages
from recloom.trainer.systems.laser.settings import LaserConfig, MethodName

KEYS: tuple[MethodName, ...] = ("laser", "no_mformer", "no_prefix", "hard_eos")
USERS, D, H, END = 7, 5, 64, 2
LENGTHS = (4, 9, 1, 30, 12, 2, 6)


def read_laser(**changes: Any) -> LaserConfig:
    raw: dict[str, Any] = {
        "name": "try",
        "system": "laser",
        "methods": list(KEYS),
        "data": {"source": "movielens", "variant": "100k"},
        "model": {"path": "smollm2-135m-instruct", "dtype": "float32", "attention": "sdpa"},
        "backbones": {"sequential": {"model": "bert4rec"}},
        "bitune": {"mformer": {"experts": 3, "tokens": 2, "blocks": 2, "hidden": 16, "heads": 2}},
        "rank": {"engine": "vllm"},
    }
    config = build_config(raw | changes, "test")
    assert isinstance(config, LaserConfig)
    return config


class Texts:
    """What RowReader asks a ShardReader for."""

    has_slots = False
    lengths_N = num_prompt_N = np.array(LENGTHS)

    def __len__(self) -> int:
        return USERS

    def ids(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(300, 49152, LENGTHS[index])

    def record(self, index: int) -> dict[str, Any]:
        return {"meta": {"history": list(range(1 + index % 3))}}


class HistoryStates:
    width = D

    def of(self, histories: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        real_SN = torch.arange(3) < torch.tensor([len(history) for history in histories])[:, None]
        drawn = [torch.randn(3, D, generator=torch.Generator().manual_seed(len(h))) for h in histories]
        return torch.stack(drawn) * real_SN[:, :, None], real_SN


def states_of(run: Any, method: Method) -> Any:
    return HistoryStates() if method.prefix == "mformer" else None


def reader_of(run: Any, states: Any) -> RowReader:
    return RowReader(Texts(), states, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run[LaserConfig]:
    """A run whose methods are trained, to random weights; three users' prefixes are computed at once."""
    model = {"path": str(tiny_llama), "dtype": "float32", "attention": "sdpa"}
    made = Run(read_laser(model=model), tmp_path / "run", tmp_path / "cache")
    for n, key in enumerate(KEYS):
        save_random_weights(made, METHODS[key], n)
    task = SimpleNamespace(test=[SimpleNamespace(user=100 + n) for n in range(USERS)])
    renderer = SimpleNamespace(eos_id=END, prefix_ids=[300])
    for module, names in (
        (rank, {"make_renderer": lambda run: renderer}),
        (vllm_rank, {"load_task": lambda run: task, "test_reader": reader_of, "CHUNK": 3}),
        (vllm_rank, {"method_states": states_of}),
    ):
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)
    return made


def save_random_weights(run: Run[LaserConfig], method: Method, seed: int) -> None:
    torch.manual_seed(seed)
    llm = empty_llm(run.config.model.path).base_model
    network = make_network(llm, method, run.config.bitune, D, 1.0, torch.randn(H), END)
    folder = rank.final_folder(run, method)
    save_weights({name: p for name, p in network.named_parameters() if p.requires_grad}, folder)
    write_manifest(folder)


def made_passes(run: Run[LaserConfig]) -> Iterator[tuple[Method, list[Request]]]:
    passes = vllm_rank.passes(run)
    assert [(one.name, str(one.model)) for one in passes] == [
        (f"rank_{key}", run.config.model.path) for key in KEYS
    ]
    return ((METHODS[key], list(one.requests)) for key, one in zip(KEYS, passes, strict=True))


@torch.no_grad()
def read_prompt(llm: Any, request: Request) -> Tensor:
    """The last state of what the engine is given (H,): soft rows beside the table's rows."""
    assert request.soft is not None
    mixed = mixed_prompt(request, request.soft, SoftRows(H, torch.float32))
    table_LH = llm.get_input_embeddings()(torch.tensor(mixed["prompt_token_ids"]))
    is_token_L1 = torch.tensor(mixed["is_token_ids"])[:, None]
    embeds_LH = torch.where(is_token_L1, table_LH, mixed["prompt_embeds"])
    state_H: Tensor = llm(inputs_embeds=embeds_LH[None]).last_hidden_state[0, -1]
    return state_H


def test_prompts_read_as_bituning_reads_its_samples(run: Run[LaserConfig]) -> None:
    for method, requests in made_passes(run):
        states = states_of(run, method)
        network = rank.load_network(run, method, states)
        row = build_row(Texts(), range(USERS))  # type: ignore[arg-type]
        with torch.no_grad():
            want_SH = reader_of(run, states).read(network, row).states_SH
        got_SH = torch.stack([read_prompt(network.llm, request) for request in requests])
        torch.testing.assert_close(got_SH, want_SH, atol=1e-4, rtol=1e-4)
        assert [request.meta for request in requests] == [{"user": 100 + n} for n in range(USERS)]
        assert torch.cdist(want_SH, want_SH).add(torch.eye(USERS) * 9).min() > 1e-2  # all differ


def test_the_engine_may_see_every_prompt(run: Run[LaserConfig]) -> None:
    added = {"laser": 3, "no_mformer": 3, "no_prefix": 1, "hard_eos": 3}
    for method, requests in made_passes(run):
        rows = SoftRows(H, torch.bfloat16)
        for request, length in zip(requests, LENGTHS, strict=True):
            assert request.soft is not None and len(request.prompt_ids) == length + added[method.key]
            assert fault_of_soft(request.soft, len(request.prompt_ids), rows) is None
            assert find_fault(request, 49152, len(request.prompt_ids)) is None
            hard = request.prompt_ids[-1] == END and len(request.soft.rows) == 2
            assert hard == (method.key == "hard_eos")


def test_trained_parts_come_without_the_llm(run: Run[LaserConfig]) -> None:
    for key in KEYS:
        method = METHODS[key]
        states = states_of(run, method)
        parts, whole = rank.load_parts(run, method, states), rank.load_network(run, method, states)
        assert all(p.is_meta for p in parts.llm.parameters())
        assert not any(p.is_meta for p in whole.parameters()) and not parts.training
        for name, parameter in parts.named_parameters():
            if parameter.requires_grad:
                assert torch.equal(parameter, whole.get_parameter(name))


def test_an_interrupted_pass_finds_its_rows_again(run: Run[LaserConfig]) -> None:
    first = list(made_passes(run))
    for path in run.path("rank").glob("*.rows.safetensors"):
        path.chmod(0o400)
        before = path.stat().st_mtime_ns, file_sha256(path)
        assert list(made_passes(run)) == first
        assert before == (path.stat().st_mtime_ns, file_sha256(path))


def write_answers(run: Run[LaserConfig], requests: Sequence[Request], answers: Sequence[Answer]) -> None:
    for key in KEYS:
        folder = run.path(f"bulk/rank_{key}")
        write_requests(folder / REQUESTS, requests)
        (folder / "chunk-00000.jsonl").write_text(chunk_text(answers))
        write_manifest(folder)


def answer_to(request: Request, vector_H: Tensor | None, error: str | None = None) -> Answer:
    vector = None if vector_H is None else pack_vector(vector_H.numpy())
    return Answer(request.key, "", (), 0.0, (), "stop", error, request.meta, vector=vector)


def test_answers_become_vectors_and_rankings(run: Run[LaserConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    ranked: list[str] = []
    monkeypatch.setattr(vllm_rank, "keep_ranking", lambda run, task, method: ranked.append(method.key))
    requests = [Request((1, n), 0, meta={"user": n}, embed=True) for n in range(3)]
    want_SH = torch.randn(3, H, generator=torch.Generator().manual_seed(2))
    answers = [answer_to(*pair) for pair in zip(requests, want_SH, strict=True)]
    write_answers(run, requests, answers[::-1])  # chunks are in the order of prefixes
    vllm_rank.run_vllm_rank(run)
    assert ranked == list(KEYS)
    assert all(torch.equal(read_vectors(run.path(f"rank/{key}")), want_SH) for key in KEYS)
    refused = answer_to(requests[1], None, "the prompt has 9 tokens")
    write_answers(run, requests, [answers[0], refused, answers[2]])
    with pytest.raises(UserError, match=r"user 1: no vector \(the prompt has 9 tokens\)"):
        vllm_rank.run_vllm_rank(run)


def test_average_needs_hugging_face() -> None:
    with pytest.raises(ConfigError, match=r"rank\.engine = vllm: .* remove average\.$") as caught:
        read_laser(methods=["laser", "average"])
    assert "\n" not in str(caught.value)
    assert read_laser(methods=["laser", "average"], rank={"engine": "hf"}).rank.engine == "hf"


def rank_stage(config: LaserConfig) -> Stage:
    return next(stage for stage in stages(config) if stage.name == "rank")


def test_the_stage_follows_the_engine(tmp_path: Path) -> None:
    config = read_laser()
    stage, plain = rank_stage(config), rank_stage(read_laser(rank={"engine": "hf"}))
    assert (plain.where, plain.outputs, plain.passes) == ("process", ("rank",), None)
    assert (stage.where, stage.passes) == ("vllm", vllm_rank.passes)
    assert stage.outputs == ("rank", *(f"bulk/rank_{key}" for key in KEYS))

    def made(**changes: Any) -> str:
        run = Run(read_laser(**changes), tmp_path, tmp_path)
        return stage_digests(stages(run.config), run)["rank"]

    assert made() == made(bulk={"chunk_size": 3, "threads": 2})
    assert len({made(), made(bulk={"dtype": "float32"}), made(bulk={"max_model_len": 99})}) == 3
