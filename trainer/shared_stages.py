"""The stages that every system begins and ends with."""

from __future__ import annotations

from collections.abc import Callable

from recloom.trainer.preparation import run_prepare
from recloom.trainer.report.html import write_report
from recloom.trainer.stage_inputs import user_files
from recloom.trainer.stages import Run, Stage


def prepare_stage(
    title: str = "read the data set",
    settings: tuple[str, ...] = (),
    run: Callable[[Run], None] = run_prepare,
) -> Stage:
    """settings: what a system's `run` depends on beyond the data."""
    return Stage(
        "prepare",
        title,
        "process",
        needs=(),
        settings=("data", "positive_rating", *settings),
        outputs=("data",),
        run=run,
        inputs=user_files,
    )


def report_stage(*needs: str) -> Stage:
    return Stage(
        "report",
        "write the report",
        "process",
        needs=needs,
        settings=(),
        outputs=("report",),
        run=run_report,
    )


def run_report(run: Run) -> None:
    write_report(run.folder)
