"""`recloom launch CONFIG --cluster CLUSTER`: an experiment on a cluster, by the description's kind."""

from __future__ import annotations

import argparse
from pathlib import Path

from recloom.data_shards.errors import UserError
from recloom.launcher.overrides import add_layers


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a YAML of configs/")
    add_layers(parser)
    parser.add_argument(
        "--cluster", type=Path, required=True, metavar="YAML", help="the cluster's description"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be written and run, do nothing"
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="start a failed training again, N times (default 0)",
    )
    parser.add_argument("--node", type=int, metavar="I", help="this machine is node I: start its part here")
    parser.add_argument(
        "--master", metavar="ADDRESS", help="the first node's, where the description has none"
    )
    parser.add_argument(
        "--training-only", action="store_true", help="with --node: leave the stages behind the training alone"
    )


def launch(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Start, submit or print a launch; the exit code (75: start it again)."""
    from recloom.launcher.cluster.description import read_cluster
    from recloom.launcher.cluster.job import Job, check_job
    from recloom.launcher.cluster.registry import kind_module
    from recloom.trainer.config_io import read_config

    if options.restarts < 0:
        raise UserError(f"--restarts {options.restarts}: less than none: give 0 or more.")
    config = read_config(options.config, overrides, options.layers)
    job = Job(config, read_cluster(options.cluster), options.restarts, Path.cwd())
    check_job(job)
    if options.node is not None:
        from recloom.launcher.cluster.node import start_node

        return start_node(job, options.node, options.master, not options.training_only)
    kind = kind_module(job.cluster.kind)
    if options.dry_run:
        print(preview({**job.files(), **kind.files(job)}, kind.commands(job)))
        return 0
    code: int = kind.start(job)
    return code


def preview(files: dict[str, str], commands: list[str]) -> str:
    written = [f"--- {name}\n{text.rstrip()}" for name, text in files.items()]
    return "\n".join([*written, "--- commands", *commands])
