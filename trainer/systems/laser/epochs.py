"""What stands around an epoch (section 3.3.2): item embeddings, validation, the best kept.

Shapes: N users, I items, H width of the LLM.
"""

from __future__ import annotations

import contextlib
import shutil
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from recloom.data_shards.artifacts import read_manifest, write_manifest
from recloom.data_shards.errors import UserError
from recloom.kernels.full_rank import full_rank
from recloom.trainer import metrics
from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.callbacks.metrics_log import MetricsLog
from recloom.trainer.expert_load import collapsed_expert
from recloom.trainer.loop import Loop, StepRecord
from recloom.trainer.systems.laser.embedding import embed, from_first, is_first, write_vectors
from recloom.trainer.systems.laser.network import save_weights
from recloom.trainer.systems.laser.objective import LaserLoss, RowReader
from recloom.trainer.systems.laser.settings import EmbedBlock

METRIC = "validation_N@10"
ITEMS = "items"


class Epochs(Callback):
    """Keeps the weights and item embeddings of the epoch with the best NDCG@10 on validation.

    Weights are judged when a checkpoint holds them: those that come in before the first epoch, those that an
    epoch left before the next one, or at the end. So a kill while items are embedded costs no epoch. They are
    judged by their own item embeddings, unless these are fixed: against those of its start an epoch looks
    worse than it is, since users move and the items of the start do not (docs/lab-log.md, 2026-11-22).

    Args:
        fixed_IH: stage 2's item embeddings; None recomputes them before each epoch (stage 1).
    """

    def __init__(
        self,
        label: str,
        objective: LaserLoss,
        items: RowReader,
        valid: RowReader,
        settings: EmbedBlock,
        out: Path,
        log: MetricsLog,
        fixed_IH: Tensor | None,
    ) -> None:
        self.label, self.objective, self.settings = label, objective, settings
        self.items, self.valid = items, valid
        self.out, self.log = out, log
        self.fixed_IH = fixed_IH
        self.load: list[float] = []  # users each expert took, of this process's part of the epoch

    def on_epoch(self, loop: Loop) -> None:
        """The item embeddings of the weights that the epoch starts with, cached until it ends.

        A checkpoint ends every epoch (Checkpoint.epochs), so after a kill the weights are again those of
        the cache's first part.
        """
        self.load = []
        self.set_items(loop)
        if loop.stream.state()["step"] == 0:
            self.judge(loop)

    def set_items(self, loop: Loop) -> None:
        items_IH = self.fixed_IH if self.fixed_IH is not None else self.embed_items(loop)
        self.objective.items_IH = items_IH.to(loop.engine.device)

    def embed_items(self, loop: Loop) -> Tensor:
        folder = self.out / "items" / f"epoch_{loop.closed}"
        if loop.rank == 0:
            shutil.rmtree(folder.with_name(f"epoch_{loop.closed - 1}"), ignore_errors=True)
        return self.embed(loop, self.items, folder, "items")

    def embed(self, loop: Loop, reader: RowReader, folder: Path, what: str) -> Tensor:
        loop.engine.train(False)
        name = f"{self.label}: {what}"
        vectors_NH = embed(loop.engine, reader, self.settings, folder, name, loop.layout)
        loop.engine.train(True)
        return vectors_NH

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        taken = [value for name, value in record.told.items() if name.startswith("expert_")]
        users = [share * record.samples for share in taken]
        self.load = [a + b for a, b in zip(self.load, users, strict=True)] if self.load else users

    def on_epoch_end(self, loop: Loop) -> None:
        self.warn_of_collapse(loop)

    def on_end(self, loop: Loop) -> None:
        """What the last epoch left; without an epoch, what the model started as."""
        self.set_items(loop)
        self.judge(loop)

    def judge(self, loop: Loop) -> None:
        """Validate, and keep what is better than all before."""
        value = self.validate(loop)
        if not self.log.tells(loop.step, METRIC):
            self.log.write({"step": loop.step, "epoch": loop.closed, METRIC: value})
        if loop.rank == 0:
            print(f"{self.label}: epoch {loop.closed} | validation N@10 {value:.4f}", flush=True)
        best = best_so_far(self.out)
        if best is None or value > best:
            weights = loop.engine.trained_state()
            assert self.objective.items_IH is not None
            if loop.rank == 0:
                keep_best(self.out, weights, self.objective.items_IH.cpu(), value, loop.closed)
        dist.barrier()

    def validate(self, loop: Loop) -> float:
        """NDCG@10 over the whole catalogue, nothing masked."""
        assert self.objective.items_IH is not None
        folder = self.out / "asked"
        if loop.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        dist.barrier()
        users_NH = self.embed(loop, self.valid, folder, "validation")
        value = self.mean_ndcg(users_NH, self.objective.items_IH) if loop.rank == 0 else 0.0
        return from_first(value)

    def mean_ndcg(self, users_NH: Tensor, items_IH: Tensor) -> float:
        """On the device of the items."""
        users_NH, targets_N = users_NH.to(items_IH.device), self.targets_N.to(items_IH.device)
        ranks_N = full_rank(users_NH, items_IH, 10, targets_N=targets_N, cosine=True).target_ranks_N
        assert ranks_N is not None
        return float(metrics.ndcg(ranks_N.cpu().numpy() + 1, 10).mean())

    @cached_property
    def targets_N(self) -> Tensor:
        """The next item of each user of validation."""
        metas = self.valid.metas(range(len(self.valid.source)))
        return torch.tensor([meta["target"] for meta in metas])

    def warn_of_collapse(self, loop: Loop) -> None:
        total = sum(self.load)
        if loop.rank or total == 0:
            return
        shares = [load / total for load in self.load]
        expert = collapsed_expert(shares)
        if expert is not None:
            print(
                f"{self.label}: expert {expert} took {shares[expert]:.0%} of the users of epoch "
                f"{loop.closed}, the others learn next to nothing: raise bitune.balance_weight, or set "
                "bitune.balance_over to row.",
                flush=True,
            )


def best_so_far(out: Path) -> float | None:
    """What the best epoch reached, the same on all ranks."""
    value: float | None = None
    if is_first():
        with contextlib.suppress(UserError):
            value = float(read_manifest(out / "best")[METRIC])
    return from_first(value)


def keep_best(out: Path, weights: dict[str, Tensor], items_IH: Tensor, value: float, epoch: int) -> None:
    """Written into a folder beside, which then takes the place of the one before.

    A kill between the two leaves neither: the next start judges the epoch again and keeps it.
    """
    folder, temporary = out / "best", out / "best.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    save_weights(weights, temporary)
    write_vectors(temporary / ITEMS, items_IH)
    write_manifest(temporary, **{METRIC: value, "epoch": epoch})
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
