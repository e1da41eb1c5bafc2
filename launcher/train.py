"""The training stages of a config on all ranks.

    deepspeed launcher/train.py --config configs/llama4rec_quickstart.yaml

Inputs that are missing are made first, by rank 0. On a machine without a GPU, where DeepSpeed
starts a single process, this process replaces itself by a launch of `parallel.cpu_ranks` ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from recloom.data_shards.artifacts import atomic_write_text, cache_dir
from recloom.data_shards.errors import UserError, print_error
from recloom.launcher.cluster.rendezvous import open_rendezvous
from recloom.launcher.cluster.watch import REQUEUE, Patience, Watch, start_watch
from recloom.launcher.overrides import HELP, add_layers, split_overrides
from recloom.launcher.processes import die_with_parent, leave_with
from recloom.launcher.ranks import deepspeed_command, local_environment, local_ranks
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import read_config
from recloom.trainer.stages import (
    Run,
    Stage,
    finish,
    is_fresh,
    prepare_outputs,
    seed_folder,
    stage_digests,
)
from recloom.trainer.systems.registry import recipe

WAIT_SECONDS = 0.5
STARTED = time.time()
LAUNCHER = os.getppid()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="Train on all ranks; start with the `deepspeed` command.", epilog=HELP, allow_abbrev=False
    )
    made.add_argument("--config", type=Path, required=True, help="a YAML of configs/")
    add_layers(made)
    made.add_argument(
        "--stage", help="one training stage only, its inputs being there (used by `recloom run`)"
    )
    made.add_argument(
        "--watch",
        type=float,
        metavar="SECONDS",
        help="name a rank that is silent for so long, and end; not given: wait for the collective's timeout",
    )
    made.add_argument(
        "--watch-start", type=float, default=600, metavar="SECONDS", help="until all ranks have come"
    )
    made.add_argument("--local_rank", type=int, help="set by the launcher")
    return made


class Leaving:
    """The way out of this process; the other ranks are told."""

    watch: Watch | None = None

    def __call__(self, code: int) -> None:
        if self.watch is not None:
            self.watch.close(code)
        leave(code)


def main(leaving: Leaving) -> None:
    arguments, overrides = split_overrides(parser(), sys.argv[1:])
    config = read_config(arguments.config, overrides, arguments.layers)
    check_trains(config)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.stage is None and world_size == 1 and local_ranks(config) > 1 and not on_gpu():
        relaunch(local_ranks(config))
    die_with_parent(LAUNCHER)
    if "RECLOOM_SUPERVISOR" in os.environ:
        leave_with(int(os.environ["RECLOOM_SUPERVISOR"]), leave)
    if arguments.watch is not None:
        patience = Patience(arguments.watch, arguments.watch_start)
        leaving.watch = start_watch(os.environ, patience, leave)
    from recloom.trainer.engine import start_ranks

    run = Run(config, config.folder, cache_dir())
    with contextlib.ExitStack() as held:
        if arguments.stage is None:
            make_missing_inputs(run, rank, held)
        held.callback(lambda store: None, open_rendezvous(world_size))  # lives as long as the training
        start_ranks(config.parallel)
        for stage in training_stages(run, arguments.stage):
            work(run, stage, rank, alone=arguments.stage is not None)


def check_trains(config: RunConfig) -> None:
    """A launch needs something to train, and one seed."""
    if config.model.tuned:
        raise UserError(
            f"model.tuned = '{config.model.tuned}': this config uses finished models and trains none: "
            "start it with `recloom run`, or add --model.tuned null."
        )
    if config.seeds:
        one = f"--seed {config.seeds[0]} --seeds [] --run_dir {seed_folder(config, config.seeds[0])}"
        raise UserError(f"seeds = {list(config.seeds)}: a launch trains for one of them: add {one}.")


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def relaunch(ranks: int) -> None:
    """Become a launch of several ranks; the exit code is then that launch's."""
    command = deepspeed_command(ranks, [a for a in sys.argv[1:] if not a.startswith("--local_rank")])
    os.execve(command[0], command, local_environment(ranks))


def training_stages(run: Run, name: str | None) -> list[Stage]:
    return [stage for stage in recipe(run.config) if stage.where == "ranks" and name in (None, stage.name)]


def make_missing_inputs(run: Run, rank: int, held: contextlib.ExitStack) -> None:
    """Rank 0 locks the run folder and makes the inputs; the others wait for the markers.

    This happens before any process group exists, whose timeout waiting ranks would run into.
    """
    from recloom.launcher.run import make_inputs, open_run

    if rank == 0:
        make_inputs(held.enter_context(open_run(run.config)))
        return
    stages = recipe(run.config)
    digests = stage_digests(stages, run)
    inputs = stages[: first_training(stages)]
    while not all(is_fresh(run, stage, digests[stage.name]) for stage in inputs):
        time.sleep(WAIT_SECONDS)


def first_training(stages: list[Stage]) -> int:
    return next(number for number, stage in enumerate(stages) if stage.where == "ranks")


def work(run: Run, stage: Stage, rank: int, alone: bool) -> None:
    """One training stage on this rank. Alone, `recloom run` keeps the books; else rank 0 does."""
    import torch.distributed as dist

    # Rank 0 alone looks at the files, and decides for all.
    digest = stage_digests(recipe(run.config), run)[stage.name] if rank == 0 else ""
    decision = [rank == 0 and not alone and is_fresh(run, stage, digest)]
    if rank == 0 and not alone and not decision[0]:
        prepare_outputs(run, stage, digest)
    dist.broadcast_object_list(decision)
    if decision[0]:
        if rank == 0:
            print(f"{stage.name}: finished, skipped", flush=True)
        return
    stage.run(run)
    if rank == 0 and alone:
        atomic_write_text(run.path(f"stages/{stage.name}.ranks_done"), json.dumps({"digest": digest}))
    elif rank == 0:
        finish(run, stage, digest, STARTED)
        print(f"{stage.name}: done, the model is in {run.path(stage.outputs[0])}/model", flush=True)
    dist.barrier()


def leave(code: int) -> None:
    """End at once: the interpreter's own shutdown aborts now and then under DeepSpeed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code(work: Callable[[], None]) -> int:
    """What to leave with after `work`; why is printed here."""
    from recloom.trainer.callbacks.preemption import Preempted

    try:
        work()
    except UserError as error:
        print_error(error)
        return 2
    except Preempted as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{error}: the same command continues", flush=True)
        return REQUEUE
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        print_error(traceback.format_exc().rstrip())
        return 1
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    leaving = Leaving()
    signal.signal(signal.SIGTERM, lambda *_: leaving(143))
    # Asked to leave before there is anything to write down; in the loop a checkpoint comes first.
    signal.signal(signal.SIGUSR1, lambda *_: leaving(REQUEUE))
    leaving(exit_code(lambda: main(leaving)))
