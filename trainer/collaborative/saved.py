"""A backbone as the work of a stage: fitted once, kept with its curve."""

from __future__ import annotations

from pathlib import Path

from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative.base import BackboneSettings
from recloom.trainer.collaborative.data import RatingData, TopKData
from recloom.trainer.collaborative.fit import fit
from recloom.trainer.collaborative.registry import backbone_module, load_backbone, save_backbone


def fit_or_keep(folder: Path, data: TopKData | RatingData, settings: BackboneSettings, seed: int) -> None:
    """Fit and save a backbone; one saved by an interrupted start is kept."""
    try:
        load_backbone(folder)
        return
    except UserError:
        pass
    backbone, result = fit(backbone_module(settings.model), data, settings, seed)
    told = {"metric": result.metric, "best_epoch": result.best_epoch, "best_value": result.best_value}
    save_backbone(
        backbone, settings, folder, **told, curve=result.curve, fit_seconds=round(result.seconds, 1)
    )
    print(
        f"backbone {settings.model}: validation {result.metric} {result.best_value:.4f} "
        f"at epoch {result.best_epoch}, {result.seconds:.0f} s",
        flush=True,
    )


def input_files(settings: BackboneSettings) -> list[Path]:
    """The files that a backbone itself reads: vectors of a user's own."""
    read = getattr(backbone_module(settings.model), "input_files", None)
    return read(settings) if read else []
