"""The whole recipe of a config: stage after stage, finished ones skipped, interrupted ones continued."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from recloom.data_shards.artifacts import atomic_write_text, cache_dir
from recloom.data_shards.errors import UserError
from recloom.data_shards.secrets import redacted
from recloom.launcher.environment import write_environment
from recloom.launcher.ranks import launch_ranks
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import dump_config
from recloom.trainer.planning.model_size import check_division
from recloom.trainer.stages import (
    Run,
    Stage,
    finish,
    is_fresh,
    marker_path,
    prepare_outputs,
    seed_folder,
    stage_digests,
)
from recloom.trainer.systems.registry import recipe


@contextlib.contextmanager
def open_run(config: RunConfig) -> Iterator[Run]:
    """The run folder, locked, with its resolved config and environment.

    The lock comes first: what a refused second run would write, the first run's ranks would read.
    """
    check_division(config.model.path, config.parallel.tensor)  # not hours later, when the model is loaded
    folder = config.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run_dir = '{folder}': this is a file: name a folder.")
    with unused_folder_removed(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            atomic_write_text(folder / "config.yaml", dump_config(config))
            write_environment(folder / "env.json")
            yield Run(config, folder, cache_dir())


@dataclass(frozen=True)
class Selection:
    """Which stages of a recipe to walk.

    Attributes:
        only: this stage alone, again; what it needs must be finished, what was made from it is forgotten.
        start: this stage and all after it run again, finished or not.
        until: stop behind this stage.
    """

    only: str | None = None
    start: str | None = None
    until: str | None = None

    def of(self, stages: Sequence[Stage]) -> list[Stage]:
        """The stages to walk; raises UserError for a name that is no stage."""
        names = [stage.name for stage in stages]
        for option, name in (("--only", self.only), ("--from", self.start), ("--until", self.until)):
            if name is not None and name not in names:
                raise UserError(f"{option} {name}: no such stage: choose one of {', '.join(names)}.")
        if self.only is not None:
            return [stage for stage in stages if stage.name == self.only]
        return list(stages[: names.index(self.until) + 1]) if self.until else list(stages)

    def asked_again(self, stages: Sequence[Stage]) -> set[str]:
        """The stages to forget: the named one with all made from it, or all from the named one on."""
        again: set[str] = set()
        for stage in stages:
            named = stage.name in (self.only, self.start)
            if named or (self.start and again) or again.intersection(stage.needs):
                again.add(stage.name)
        return again


EVERYTHING = Selection()


def run_config(config: RunConfig, selection: Selection = EVERYTHING, dry_run: bool = False) -> None:
    """The recipe of a config, once or for each of its seeds in turn; see `run_recipe`."""
    if not config.seeds:
        run_recipe(config, selection, dry_run)
        return
    selection.of(recipe(config))  # a wrong name leaves nothing behind
    with unused_folder_removed(config.folder):
        if not dry_run:
            config.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(config.folder / "config.yaml", dump_config(config))
        for number, seed in enumerate(config.seeds, 1):
            print(f"seed {seed} ({number} of {len(config.seeds)})", flush=True)
            own = {"seed": seed, "seeds": (), "run_dir": str(seed_folder(config, seed))}
            run_recipe(config.model_copy(update=own), selection, dry_run)


def run_recipe(config: RunConfig, selection: Selection = EVERYTHING, dry_run: bool = False) -> Run:
    """Walk the selected stages of a config; dry_run: say what would be done, do nothing."""
    stages = recipe(config)
    chosen = selection.of(stages)
    if dry_run:
        run = Run(config, config.folder, cache_dir())
        print_plan(stages, chosen, run, selection.asked_again(stages))
        return run
    with open_run(config) as run, logged(run.folder / "log.txt"):
        forget(run, selection.asked_again(stages))
        walk(run, stages, chosen)
    return run


def forget(run: Run, names: set[str]) -> None:
    """Done once, up front: when this run is interrupted, plain `recloom run` continues it."""
    for name in names:
        marker_path(run, name).unlink(missing_ok=True)
        run.path(f"stages/{name}.started").unlink(missing_ok=True)


def walk(run: Run, stages: Sequence[Stage], chosen: Sequence[Stage]) -> None:
    """The chosen stages in order, finished ones skipped."""
    digests = stage_digests(stages, run)
    for number, stage in enumerate(stages, 1):
        if stage not in chosen:
            continue
        label = f"[{number}/{len(stages)}] {stage.name}: {stage.title}"
        if is_fresh(run, stage, digests[stage.name]):
            print(f"{label} (finished, skipped)", flush=True)
            continue
        check_needs(stages, stage, run, digests)
        print(label, flush=True)
        work_stage(run, stage, digests[stage.name])


@contextlib.contextmanager
def unused_folder_removed(folder: Path) -> Iterator[None]:
    """Bad input must leave nothing behind: a folder made here goes if no stage was finished in it."""
    is_new = not folder.exists()
    try:
        yield
    except UserError:
        if is_new and not any(folder.rglob("stages/*.json")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def work_stage(run: Run, stage: Stage, stage_digest: str) -> None:
    """Run one stage where it belongs and write its marker."""
    started = time.time()
    prepare_outputs(run, stage, stage_digest)
    if stage.where == "ranks":
        launch_ranks(run, stage.name, stage_digest)
    else:
        if stage.passes is not None:
            run_passes(run, stage)
        stage.run(run)
    finish(run, stage, stage_digest, started)
    print(f"    {stage.name} took {time.time() - started:.0f} s", flush=True)


def run_passes(run: Run, stage: Stage) -> None:
    from recloom.launcher.bulk import run_pass

    assert stage.passes is not None
    for bulk_pass in stage.passes(run):
        print(f"    {bulk_pass.name}: {len(bulk_pass.requests)} questions to the LLM", flush=True)
        run_pass(run.config.bulk, bulk_pass.model, bulk_pass.requests, run.path(f"bulk/{bulk_pass.name}"))


def make_inputs(run: Run) -> None:
    """Everything before the training stages that is not finished yet."""
    stages = recipe(run.config)
    digests = stage_digests(stages, run)
    for stage in stages:
        if stage.where == "ranks":
            return
        if not is_fresh(run, stage, digests[stage.name]):
            print(f"{stage.name}: {stage.title}", flush=True)
            work_stage(run, stage, digests[stage.name])


def check_needs(stages: Sequence[Stage], stage: Stage, run: Run, digests: dict[str, str]) -> None:
    by_name = {other.name: other for other in stages}
    for name in stage.needs:
        if not is_fresh(run, by_name[name], digests[name]):
            raise UserError(
                f"stage {stage.name}: it needs {name}, which is not finished with these settings: "
                "run without --only."
            )


def print_plan(stages: Sequence[Stage], chosen: Sequence[Stage], run: Run, again: set[str]) -> None:
    digests = stage_digests(stages, run)
    for number, stage in enumerate(stages, 1):
        if stage in chosen:
            skipped = stage.name not in again and is_fresh(run, stage, digests[stage.name])
            state = "skip" if skipped else "run "
            print(f"{state} [{number}] {stage.name:<15} {stage.where:<8} {stage.title}")


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Two runs must not write into one folder."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"run_dir = '{folder}': another run writes there: wait for it or name another."
            ) from None
        yield


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Copy what is printed to the run's log."""
    with open(path, "a") as file:
        original = sys.stdout
        sys.stdout = Tee(original, file)
        try:
            yield
        finally:
            sys.stdout = original


class Tee:
    """Writes to the console and the log, secrets left out."""

    def __init__(self, console: TextIO, file: TextIO) -> None:
        self.console = console
        self.file = file

    def write(self, text: str) -> int:
        told = redacted(text)
        self.file.write(told)
        self.console.write(told)
        return len(text)

    def flush(self) -> None:
        self.file.flush()
        self.console.flush()

    def isatty(self) -> bool:
        return self.console.isatty()

    def fileno(self) -> int:
        return self.console.fileno()
