"""The `recloom` command."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from recloom.data_shards.errors import UserError, print_error
from recloom.launcher.cluster.launch import add_launch_arguments, launch
from recloom.launcher.overrides import HELP, add_layers, split_overrides


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="recloom", description="Training LLM recommenders on clusters.", epilog=HELP
    )
    commands = made.add_subparsers(dest="command", required=True)

    run = commands.add_parser(
        "run",
        help="the whole recipe of a config; finished stages are skipped",
        epilog=HELP,
        allow_abbrev=False,
    )
    run.add_argument("config", type=Path, help="a YAML of configs/")
    add_layers(run)
    run.add_argument("--only", metavar="STAGE", help="this stage alone, again")
    run.add_argument("--from", dest="start", metavar="STAGE", help="run this stage and all after it again")
    run.add_argument("--until", metavar="STAGE", help="stop behind this stage")
    run.add_argument("--dry-run", action="store_true", help="say what would run, do nothing")

    launch = commands.add_parser(
        "launch",
        help="a config on a cluster: DeepSpeed hostfile, node by node, Slurm, Kubernetes",
        epilog=HELP,
        allow_abbrev=False,
    )
    add_launch_arguments(launch)

    join = commands.add_parser("join", help="this machine's engines at the bulk passes of a run elsewhere")
    add_join_arguments(join)

    validate = commands.add_parser(
        "validate", help="check a config and whether it fits the cluster", epilog=HELP, allow_abbrev=False
    )
    validate.add_argument("config", type=Path)
    add_layers(validate)
    validate.add_argument("--gpus", type=int, default=1, help="GPUs in all (default 1)")
    validate.add_argument("--gpu-memory", type=float, default=80, help="GiB a GPU (default 80)")
    validate.add_argument("--mfu", type=float, default=0.2, help="share of an A100's peak (default 0.2)")
    validate.add_argument(
        "--bandwidth", type=float, default=25, help="GB/s of each GPU between nodes (default 25)"
    )

    listing = commands.add_parser("ls", help="the runs and how far they are")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("runs"))

    commands.add_parser("env", help="versions and devices of this machine")

    inspect = commands.add_parser("inspect", help="look at a prompt, an answer or an augmented record")
    inspect.add_argument("path", type=Path, help="a folder of shards, a bulk pass, or a .jsonl of records")
    inspect.add_argument("--index", type=int, default=0, help="which one (default 0)")
    inspect.add_argument("--verify", action="store_true", help="check all shards for damage instead")

    report = commands.add_parser(
        "report", help="print results beside the paper's figures, and write each run's report again"
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="run", help="run folders; several, one table")
    report.add_argument("--markdown", action="store_true", help="print the comparison as Markdown")

    tokenizer = commands.add_parser(
        "tokenizer",
        help="train a SentencePiece tokenizer for a model from scratch",
        description="Train a SentencePiece tokenizer on text files or shards, for a model from scratch, and "
        "write it as tokenizer.model and as the files that transformers reads.",
    )
    add_tokenizer_arguments(tokenizer)

    model = commands.add_parser("new-model", help="a LLaMA with random weights, for a run from scratch")
    add_model_arguments(model)
    return made


def add_join_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the run's folder, on a file system that both machines see")
    parser.add_argument("--engines", type=int, metavar="N", help="on this machine (default: as the run's)")
    parser.add_argument(
        "--idle",
        type=float,
        default=60,
        metavar="MINUTES",
        help="leave when no pass came for so long (default 60)",
    )


def add_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "corpus", type=Path, nargs="+", help=".txt files in UTF-8, folders of shards, or both, one or more"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the tokenizer goes")
    parser.add_argument("--vocab-size", type=int, default=32000, help="pieces in all (default 32000)")
    parser.add_argument("--type", choices=("bpe", "unigram"), default="bpe", help="algorithm (default bpe)")
    parser.add_argument(
        "--max-lines",
        type=int,
        default=2_000_000,
        help="where there are more lines, draw this many: bounds the memory (default 2000000)",
    )
    parser.add_argument("--force", action="store_true", help="replace the tokenizer that is in the folder")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tokenizer", type=Path, help="a folder that holds a tokenizer")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the model goes")
    parser.add_argument("--layers", type=int, default=4, help="blocks (default 4)")
    parser.add_argument("--hidden", type=int, default=256, help="width (default 256)")
    parser.add_argument("--heads", type=int, default=4, help="heads of attention (default 4)")
    parser.add_argument("--context", type=int, default=2048, help="longest position (default 2048)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return dispatch(arguments)
    except UserError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print_error("Interrupted: the same command continues.")
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def dispatch(arguments: list[str]) -> int:
    """Only `run`, `launch` and `validate` take overrides of settings."""
    if arguments[:1] and arguments[0] in ("run", "launch", "validate"):
        options, overrides = split_overrides(parser(), arguments)
    else:
        options, overrides = parser().parse_args(arguments), []
    if options.command == "run":
        return run_command(options, overrides)
    if options.command == "launch":
        return launch(options, overrides)
    if options.command == "join":
        return join_command(options)
    if options.command == "validate":
        return validate_command(options, overrides)
    if options.command == "ls":
        return list_command(options.folder)
    if options.command == "env":
        return env_command()
    if options.command == "inspect":
        return inspect_command(options)
    if options.command == "tokenizer":
        return tokenizer_command(options)
    if options.command == "new-model":
        return model_command(options)
    return report_command(options.runs, options.markdown)


def run_command(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from recloom.launcher.run import Selection, run_config
    from recloom.trainer.config_io import read_config

    config = read_config(options.config, overrides, options.layers)
    run_config(config, Selection(options.only, options.start, options.until), options.dry_run)
    if not options.dry_run and options.only is None and options.until is None:
        report_command([config.folder])
    return 0


def join_command(options: argparse.Namespace) -> int:
    from recloom.launcher.bulk_join import join_run

    print(f"{join_run(options.run, options.engines, 60 * options.idle)} passes joined")
    return 0


def validate_command(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from recloom.trainer.config_io import read_config
    from recloom.trainer.plan import format_plan, make_plan
    from recloom.trainer.planning.speed import make_speed

    config = read_config(options.config, overrides, options.layers)
    speed = make_speed(options.mfu, options.bandwidth)
    plan = make_plan(config, options.gpus, options.gpu_memory, speed=speed)
    print(format_plan(plan))
    return 0 if plan.ok else 1


def list_command(folder: Path) -> int:
    from recloom.launcher.listing import format_runs

    print(format_runs(folder))
    return 0


def env_command() -> int:
    from recloom.launcher.environment import environment

    print(json.dumps(environment(), indent=1))
    return 0


def inspect_command(options: argparse.Namespace) -> int:
    from recloom.tools.inspect_path import describe

    print(describe(options.path, options.index, options.verify))
    return 0


def tokenizer_command(options: argparse.Namespace) -> int:
    from recloom.tools.train_tokenizer import TokenizerSettings, train_tokenizer

    settings = TokenizerSettings(options.type, options.vocab_size, options.max_lines)
    manifest = train_tokenizer(options.corpus, options.out, settings, options.force)
    print(f"{options.out}: {manifest['vocab_size']} pieces from {manifest['num_lines']} lines")
    return 0


def model_command(options: argparse.Namespace) -> int:
    from recloom.tools.new_model import ModelSizes, write_model

    sizes = ModelSizes(options.layers, options.hidden, options.heads, options.context)
    count = write_model(options.tokenizer, options.out, sizes, options.seed)
    print(f"{options.out}: a LLaMA of {count:,} parameters, with the tokenizer")
    return 0


def report_command(folders: list[Path], markdown: bool = False) -> int:
    from recloom.trainer.report.compare import comparison
    from recloom.trainer.report.html import write_page
    from recloom.trainer.report.read import read_run
    from recloom.trainer.report.tables import results_table

    records = [read_run(folder) for folder in folders]
    compared = comparison(records, markdown)
    if len(records) == 1 and not markdown:
        print(results_table(records[0].rows, records[0].view))
    if compared:
        print(compared)
    for folder, record in zip(folders, records, strict=True):
        page = write_page(folder, record)
        if not markdown:
            print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
