"""What stands around an epoch, in one process: the best is kept, validation ranks the whole catalogue.

Shapes: N users, I items, H width of the LLM.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from recloom.trainer.callbacks.metrics_log import MetricsLog
from recloom.trainer.systems.laser.embedding import read_vectors
from recloom.trainer.systems.laser.epochs import ITEMS, Epochs, best_so_far, keep_best
from recloom.trainer.systems.laser.network import read_weights
from recloom.trainer.systems.laser.objective import RowReader

NUM_USERS, NUM_ITEMS, H = 9, 15, 4


class Validation:
    """Shards of users whose targets are drawn; counts what is read of them."""

    def __init__(self) -> None:
        self.targets = np.random.default_rng(3).integers(0, NUM_ITEMS, NUM_USERS).tolist()
        self.read = 0

    def __len__(self) -> int:
        return NUM_USERS

    def record(self, index: int) -> dict[str, Any]:
        self.read += 1
        return {"meta": {"history": [0], "target": self.targets[index]}}


def test_validation_is_ndcg_over_the_whole_catalogue() -> None:
    """The targets are read by the first one alone."""
    nothing: Any = None
    users: Any = Validation()
    reader = RowReader(users, None, torch.device("cpu"))
    epochs = Epochs("x", nothing, nothing, reader, nothing, nothing, nothing, None)
    torch.manual_seed(0)
    users_NH, items_IH = torch.randn(NUM_USERS, H), torch.randn(NUM_ITEMS, H) * torch.rand(NUM_ITEMS, 1)
    cosines_NI = torch.cosine_similarity(users_NH[:, None], items_IH[None], dim=2)
    gains = []
    for cosines_I, target in zip(cosines_NI, users.targets, strict=True):
        rank = 1 + int((cosines_I > cosines_I[target]).sum())
        gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    assert 0 in gains and 0 < np.mean(gains) < 1
    for _ in range(2):
        assert epochs.mean_ndcg(users_NH, items_IH) == pytest.approx(np.mean(gains))
    assert users.read == NUM_USERS


def test_the_better_one_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """Also behind a kill that left half of one."""
    assert best_so_far(tmp_path) is None
    (tmp_path / "best.tmp").mkdir()
    (tmp_path / "best.tmp" / "torn").write_text("half")
    for epoch, value in ((1, 0.25), (2, 0.5)):
        items_IH = torch.full((NUM_ITEMS, H), value)
        keep_best(tmp_path, {"suffix_H": torch.full((H,), value)}, items_IH, value, epoch)
        assert best_so_far(tmp_path) == value
        assert torch.equal(read_vectors(tmp_path / "best" / ITEMS), items_IH)
        assert read_weights(tmp_path / "best")["suffix_H"].tolist() == [value] * H
        assert [path.name for path in tmp_path.iterdir()] == ["best"]
        assert not (tmp_path / "best" / "torn").exists()


def test_a_best_without_its_manifest_is_none(tmp_path: Path) -> None:
    """A kill while it was removed: its epoch is judged again."""
    keep_best(tmp_path, {"suffix_H": torch.ones(H)}, torch.ones(NUM_ITEMS, H), 0.5, 1)
    (tmp_path / "best" / "manifest.json").unlink()
    assert best_so_far(tmp_path) is None


class Drifting(Epochs):
    """Its items after e epochs are those before, rolled e places on; so are its users."""

    def __init__(self, out: Path, log: MetricsLog, fixed_IH: Tensor | None) -> None:
        users: Any = Validation()
        objective: Any = SimpleNamespace(items_IH=None)
        nothing: Any = None
        valid = RowReader(users, None, torch.device("cpu"))
        super().__init__("x", objective, nothing, valid, nothing, out, log, fixed_IH)
        self.table_IH = torch.eye(NUM_ITEMS)

    def embed(self, loop: Any, reader: RowReader, folder: Path, what: str) -> Tensor:
        items_IH = self.table_IH.roll(loop.closed, 1)
        return items_IH if what == "items" else items_IH[self.targets_N]


def run_epochs(epochs: Epochs, log: MetricsLog, closed: range) -> dict[int, float]:
    """Starts with `closed[0]` epochs behind it, ends with `closed[-1]`; the validations told so far."""
    engine = SimpleNamespace(device=torch.device("cpu"), trained_state=lambda: {"suffix_H": torch.ones(H)})
    stream = SimpleNamespace(state=lambda: {"step": 0})
    loop: Any = SimpleNamespace(engine=engine, stream=stream, rank=0, step=10 * closed[0])
    log.on_start(loop)
    for loop.closed in closed[:-1]:
        epochs.on_epoch(loop)
        loop.step += 10
    loop.closed = closed[-1]
    epochs.on_end(loop)
    log.close()
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert len({row["epoch"] for row in rows}) == len(rows), "told once"
    return {row["epoch"]: row["validation_N@10"] for row in rows}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "barrier", lambda: None)


def test_an_epoch_is_judged_by_its_own_items(tmp_path: Path, alone: None) -> None:
    """Users and items that move together are found; against items that stand still they are not."""
    log = MetricsLog(tmp_path, tensorboard=False)
    assert run_epochs(Drifting(tmp_path, log, None), log, range(3)) == {0: 1.0, 1: 1.0, 2: 1.0}
    still = MetricsLog(tmp_path / "fixed", tensorboard=False)
    (tmp_path / "fixed").mkdir()
    fixed = Drifting(tmp_path / "fixed", still, torch.eye(NUM_ITEMS))
    values = run_epochs(fixed, still, range(3))
    assert values[0] == 1.0 and max(values[1], values[2]) < 0.5
    kept = read_vectors(tmp_path / "fixed" / "best" / ITEMS)
    assert torch.equal(kept, torch.eye(NUM_ITEMS))


def test_a_start_that_comes_by_again_tells_nothing_twice(tmp_path: Path, alone: None) -> None:
    """Killed behind the validation of epoch 1, whose checkpoint lies before it."""
    log = MetricsLog(tmp_path, tensorboard=False)
    assert list(run_epochs(Drifting(tmp_path, log, None), log, range(2))) == [0, 1]
    assert list(run_epochs(Drifting(tmp_path, log, None), log, range(1, 4))) == [0, 1, 2, 3]
