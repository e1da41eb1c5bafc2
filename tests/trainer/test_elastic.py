"""A training that goes on with other ranks than it began with, against one in plain PyTorch."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from fixed_samples import SmallVocabulary, training_block
from plain_loop import PlainTraining, plain_training
from ranks import run_ranks
from tiny_models import KINDS, write_tiny_model

from recloom.data_shards.stream import PackedStream

SCRIPT = Path(__file__).parent / "elastic_ranks.py"
STEPS = 6
pytestmark = pytest.mark.timeout(1800)
# ranks, tensor, the step at which they save and leave (0: the end), weights updated at a time (0: as without
# a GPU)
Part = tuple[int, int, int, int]
# The converter runs once a case and a change, so that few cases go through many changes.
CHAINS: dict[str, tuple[list[Part], list[str]]] = {
    "data": ([(2, 1, 2, 0), (1, 1, 4, 0), (2, 1, 0, 0)], ["llama:3", "llama_tied:2"]),
    # 500 is one matrix, as on a machine without a GPU; 10**9 all, as on one with GPUs
    "pieces": ([(2, 1, 2, 500), (2, 1, 4, 10**9), (1, 1, 0, 500)], ["llama:3"]),
    "tensor": ([(2, 2, 2, 0), (1, 1, 4, 0), (2, 2, 0, 0)], ["llama:3"]),
}
LONG_CHAINS: dict[str, tuple[list[Part], list[str]]] = {
    "data_and_tensor": (
        [(4, 2, 2, 0), (1, 1, 3, 0), (4, 2, 4, 0), (2, 1, 5, 0), (4, 1, 0, 0)],
        ["llama:3", "glm:3", "opt:2"],
    ),
    "back": (
        [(4, 1, 2, 0), (2, 2, 3, 0), (4, 2, 4, 0), (2, 1, 5, 0), (4, 2, 0, 0)],
        ["llama_tied:3", "llama_tied:1", "glm4:2"],
    ),
    "kinds": ([(2, 2, 2, 0), (1, 1, 4, 0), (2, 2, 0, 0)], ["llama_tied:3", "opt:3", "glm:1", "llama:2"]),
    "no_zero": ([(2, 1, 2, 0), (1, 1, 4, 0), (2, 1, 0, 0)], ["llama:0"]),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        write_tiny_model(folder / kind, kind)
    return folder


def samples_of_steps() -> list[list[int]]:
    training = training_block()
    stream = PackedStream(
        SmallVocabulary(), training.pack_length, training.rows_per_step, training.window, 3, 0, 1
    )
    return [batch.sample_ids for _ in range(training.epochs) for batch in stream]


def check(chain: list[Part], cases: list[str], models: Path, out: Path) -> None:
    named = [f"{models}/{case}" for case in cases]
    for world_size, tensor, until, piece in chain:
        settings = map(str, (tensor, until, piece))
        run_ranks(SCRIPT, world_size, str(out), *settings, *named, timeout=600)
    for number, case in enumerate(cases):
        wanted = plain_training(models / case.partition(":")[0], SmallVocabulary())
        *rows, last = [json.loads(line) for line in (out / f"{number}/steps.jsonl").read_text().splitlines()]
        check_rows(rows, wanted, case)
        assert abs(last["validation"] - wanted.validation) < 1e-5, case
        assert [row["samples"] for row in rows] == samples_of_steps(), "nothing is lost, nothing comes twice"
        assert not list((out / f"{number}/checkpoints").glob("universal.*")), "a conversion leaves nothing"


def check_rows(rows: list[dict[str, Any]], wanted: PlainTraining, label: str) -> None:
    assert len(rows) == len(wanted.steps) == STEPS
    losses_S, norms_S = (torch.tensor([row[name] for row in rows]).double() for name in ("loss", "norm"))
    wanted_S, wanted_norms_S = torch.tensor(wanted.steps, dtype=torch.float64).T
    assert (losses_S - wanted_S).abs().max() < 1e-5, f"{label}: {losses_S} are not {wanted_S}"
    if not label.endswith(":0"):  # DeepSpeed tells no norm without ZeRO
        assert (norms_S - wanted_norms_S).abs().max() < 3e-5, f"{label}: {norms_S}, {wanted_norms_S}"


@pytest.mark.parametrize("chain", CHAINS)
def test_other_ranks_go_on_as_if_nothing_had_happened(chain: str, models: Path, tmp_path: Path) -> None:
    check(*CHAINS[chain], models, tmp_path)


def test_a_flipped_byte_is_refused_and_the_one_before_goes_on(models: Path, tmp_path: Path) -> None:
    """As the sentence says: the damaged folder deleted, the same command continues from the one before."""
    case, checkpoints = f"{models}/llama:2", tmp_path / "0/checkpoints"
    for until in ("2", "4"):
        run_ranks(SCRIPT, 1, str(tmp_path), "1", until, "0", case)
    path = next((checkpoints / "step_4").glob("*optim_states.pt"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = rf"step_4: the checkpoint can't be loaded \({path.name}: the checksum .* continues from step_2"
    with pytest.raises(AssertionError, match=said):
        run_ranks(SCRIPT, 1, str(tmp_path), "1", "0", "0", case)
    shutil.rmtree(checkpoints / "step_4")
    (tmp_path / "0/steps.jsonl").unlink()
    run_ranks(SCRIPT, 1, str(tmp_path), "1", "0", "0", case)
    rows = [json.loads(line) for line in (tmp_path / "0/steps.jsonl").read_text().splitlines()][:-1]
    wanted = plain_training(models / "llama", SmallVocabulary())
    np.testing.assert_allclose(
        [row["loss"] for row in rows], [loss for loss, _ in wanted.steps[2:]], atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("chain", LONG_CHAINS)
def test_longer_chains(chain: str, models: Path, tmp_path: Path) -> None:
    check(*LONG_CHAINS[chain], models, tmp_path)
