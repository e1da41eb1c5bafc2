"""Validation and test metrics of conventional models at their defaults: the Base rows, seed by seed.

    python benchmarks/backbone_quality.py --data ml100k
    python benchmarks/backbone_quality.py --data ml1m --path ML_1M_FOLDER --backbones mf sgl --seeds 2024

The data block is that of configs/llama4rec/parts/DATA.yaml. A fit whose row is already in
backbone_quality.csv, with the same settings, is not repeated: a run that was cut off goes on where it was.
`--table` prints mean and spread beside the paper's Base figures, from the rows of the newest settings.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recloom.data_shards.artifacts import cache_dir
from recloom.data_shards.sources.registry import source_module
from recloom.data_shards.splits import Splits, leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer import metrics
from recloom.trainer.collaborative.base import Backbone, BackboneSettings
from recloom.trainer.collaborative.data import RatingData, TopKData, leave_one_out_queries
from recloom.trainer.collaborative.evaluate import evaluate_topk, predict_ratings
from recloom.trainer.collaborative.fit import fit
from recloom.trainer.collaborative.registry import backbone_module, backbone_names
from recloom.trainer.config_io import read_yaml
from recloom.trainer.report.compare import paper_tables
from recloom.trainer.significance import mean_std

HERE = Path(__file__).resolve().parent
ROWS = HERE / "backbone_quality.csv"
PARTS = HERE.parent / "configs/llama4rec/parts"
METRICS = ("H@3", "N@3", "H@5", "N@5", "H@10", "N@10", "RMSE", "MAE")
KEY = ("dataset", "backbone", "seed", "settings")
FIT = ("task", "valid", "valid metric", "best epoch", "seconds", "threads", "cores", "users")
FIELDS = (*KEY[:3], *FIT, *METRICS, "date", "settings")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parts = sorted(path.stem for path in PARTS.glob("*.yaml") if "data:" in path.read_text())
    made.add_argument("--data", choices=parts, default="ml100k")
    made.add_argument("--path", help="the data set's folder, where the config names another")
    made.add_argument("--backbones", nargs="+", choices=backbone_names(), default=backbone_names())
    made.add_argument("--seeds", nargs="+", type=int, default=[2024, 2025, 2026])
    made.add_argument("--max-epochs", type=int, help="a cap below the default, for large data on few cores")
    made.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    made.add_argument("--table", action="store_true", help="print the rows as Markdown, fit nothing")
    return made


def main() -> None:
    options = parser().parse_args()
    if options.table:
        print(table(read_rows()))
        return
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    part = read_yaml(PARTS / f"{options.data}.yaml")
    block = part["data"] | ({"path": options.path} if options.path else {})
    module = source_module(block.pop("source"))
    tables = module.load(module.Settings(**block), cache_dir())
    splits = leave_one_out(tables, part["positive_rating"])
    done = {tuple(row[name] for name in KEY) for row in read_rows()}
    for name in options.backbones:
        for seed in options.seeds:
            settings = backbone_module(name).Settings(model=name, **cap(options.max_epochs))
            text = settings.model_dump_json()
            if (tables.name, name, str(seed), text) not in done:
                add_row(measure(tables, splits, settings, seed) | {"settings": text})


def cap(max_epochs: int | None) -> dict[str, int]:
    return {} if max_epochs is None else {"max_epochs": max_epochs}


def measure(tables: Tables, splits: Splits, settings: BackboneSettings, seed: int) -> dict[str, Any]:
    """Fit one model and measure it on the test rows, which nothing was chosen by."""
    name, module = settings.model, backbone_module(settings.model)
    data = (
        RatingData.from_split(tables, splits.rating)
        if module.TASK == "rating"
        else TopKData.from_split(splits.topk, tables.num_users, tables.num_items)
    )
    backbone, result = fit(module, data, settings, seed)
    values, users = on_test(backbone, tables, splits, module.TASK)
    row = {"dataset": tables.name, "backbone": name, "seed": seed, "task": module.TASK, "users": users}
    row |= {"valid": f"{result.best_value:.4f}", "valid metric": result.metric}
    row |= {"best epoch": result.best_epoch, "seconds": f"{result.seconds:.1f}"}
    row |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    row |= {metric: f"{value:.4f}" for metric, value in values.items() if metric in METRICS}
    print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row | {"date": datetime.date.today().isoformat()}


def on_test(backbone: Backbone, tables: Tables, splits: Splits, task: str) -> tuple[dict[str, float], int]:
    if task == "rating":
        rows = splits.rating.test
        predicted_N = predict_ratings(backbone, rows.user_N, rows.item_N)
        pairs = (predicted_N, rows.rating_N)
        return {"RMSE": metrics.rmse(*pairs), "MAE": metrics.mae(*pairs)}, len(rows)
    queries = leave_one_out_queries(splits.topk, tables.num_users, "test")
    found = evaluate_topk(backbone, *queries, ks=(3, 5, 10))
    return {name: float(np.mean(values)) for name, values in found.items()}, len(queries.users_B)


def read_rows() -> list[dict[str, str]]:
    if not ROWS.is_file():
        return []
    with ROWS.open(newline="") as file:
        return list(csv.DictReader(file))


def add_row(row: dict[str, Any]) -> None:
    is_new = not ROWS.is_file()
    with ROWS.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def table(rows: list[dict[str, str]]) -> str:
    """Mean ± standard deviation over seeds (paper's Base), one block a data set and task."""
    blocks = []
    for paper in paper_tables("llama4rec")[:3]:
        for dataset, figures in paper.figures.items():
            lines = []
            for name in figures:
                own = [row for row in rows if (row["dataset"], row["backbone"]) == (dataset, name)]
                own = [row for row in own if row["settings"] == own[-1]["settings"]]
                if own:
                    lines.append(f"| {name} | {cells(own, paper.metrics, figures[name]['Base'])} |")
            if lines:
                head = f"| {paper.table}, {dataset} | {' | '.join(paper.metrics)} | valid | seeds | s a fit |"
                rule = "|" + "---|" * (len(paper.metrics) + 4)
                blocks.append("\n".join([head, rule, *lines]))
    return "\n\n".join(blocks)


def cells(own: list[dict[str, str]], names: tuple[str, ...], base: Sequence[float | None]) -> str:
    def spread(values: list[float]) -> str:
        mean, std = mean_std(values)
        return f"{mean:.4f} ± {std:.4f}" if len(values) > 1 else f"{mean:.4f}"

    shown = [
        f"{spread([float(row[metric]) for row in own])} ({'-' if paper is None else f'{paper:.4f}'})"
        for metric, paper in zip(names, base, strict=True)
    ]
    valid = f"{own[0]['valid metric']} {spread([float(row['valid']) for row in own])}"
    seconds = np.mean([float(row["seconds"]) for row in own])
    return " | ".join([*shown, valid, str(len({row["seed"] for row in own})), f"{seconds:.0f}"])


if __name__ == "__main__":
    main()
