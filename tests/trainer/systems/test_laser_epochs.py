"""What stands around an epoch, in one process: the best is kept, validation ranks the whole catalogue.

Shapes: N users, I items, H width of the LLM.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
