"""Measurements beside the paper's figures, and several seeds as one run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from run_folder import write_run_folder

from recloom.trainer.report.compare import comparison, paper_tables
from recloom.trainer.report.html import write_report
from recloom.trainer.report.read import RunRecord, read_run
from recloom.trainer.significance import paired_t_test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_folder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def record(folder: Path) -> RunRecord:
    return read_run(folder)


def test_the_papers_figures_are_consistent() -> None:
    """Every cell is there, N@k <= H@k, and Llama4Rec wins as the paper says (but for H@5 of one cell)."""
    tables = {table.table: table for table in paper_tables("llama4rec")}
    counts = {name: sum(len(b) for b in table.figures.values()) for name, table in tables.items()}
    assert counts == {"Table 2": 12, "Table 3": 9, "Table 4": 18, "Table 5": 2}
    for table in tables.values():
        for backbones in table.figures.values():
            for figures in backbones.values():
                assert {len(values) for values in figures.values()} == {len(table.metrics)}
    assert tables["Table 2"].figures["ML-1M"]["lightgcn"]["Llama4Rec"] == [0.0304, 0.0222, 0.0461, 0.0286]
    assert tables["Table 3"].figures["BookCrossing"]["cl4srec"]["IFT"] == [0.0102, 0.0071, 0.0177, 0.0102]
    assert tables["Table 4"].figures["ML-100K"]["afm"]["Llama4Rec"] == [1.0340, 0.7996]
    assert tables["Table 4"].figures["BookCrossing"]["autoint"]["IFT"] == [2.0152, 1.3782]
    assert tables["Table 5"].figures["BookCrossing"]["lightgcn"]["w/o PA"] == [0.0372, 0.0279]


def test_a_run_stands_beside_the_paper(record: RunRecord) -> None:
    text = comparison([record])
    assert "Table 2, ML-100K" in text and "Table 4, ML-100K" in text and "Table 5" not in text
    value = {(r["task"], r["method"], r["metric"]): r["value"] for r in record.rows}
    assert f"{value['direct', 'Base', 'H@3']:.4f} (0.0492)" in text
    ours, base, ift = (value["rating", m, "RMSE"] for m in ("Llama4Rec", "Base", "IFT"))
    assert f"{100 * (min(base, ift) - ours) / min(base, ift):+.1f} % (+1.7 %)" in text
    assert "| lightgcn | Base |" in comparison([record], markdown=True)


def test_the_star_is_a_paired_t_test_against_the_best_rival(record: RunRecord) -> None:
    frame = record.per_user.to_pandas().query("task == 'direct' and metric == 'N@5'")
    users = frame.pivot(index="user", columns="method", values="value")
    best = max(("Base", "IFT"), key=lambda name: users[name].mean())
    test = paired_t_test(users["Llama4Rec"].to_numpy(), users[best].to_numpy())
    line = next(
        line
        for line in comparison([record], markdown=True).splitlines()
        if "| lightgcn | Llama4Rec |" in line
    )
    assert ("*" in line.split("|")[6]) == (test.star and test.difference > 0)


def test_unknown_data_have_no_comparison(record: RunRecord) -> None:
    rows = [{**row, "dataset": "My shop"} for row in record.rows]
    changed = RunRecord(**{**vars(record), "rows": rows})
    assert comparison([changed]) == ""


def test_seeds_are_read_as_one_run(folder: Path, tmp_path: Path) -> None:
    """Rows of all seeds; a user's values are averaged over them."""
    for seed in (2024, 2025):
        inner = tmp_path / f"seed_{seed}"
        shutil.copytree(folder, inner)
        rows = [json.loads(line) for line in (inner / "results.jsonl").read_text().splitlines()]
        moved = [{**row, "seed": seed, "value": row["value"] + (seed == 2025) * 0.01} for row in rows]
        (inner / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))
    shutil.copy(folder / "config.yaml", tmp_path / "config.yaml")
    joined = read_run(tmp_path)
    assert {row["seed"] for row in joined.rows} == {2024, 2025}
    one = pq.read_table(folder / "per_user.parquet")
    assert len(joined.per_user) == 2 * len(one)
    text = comparison([joined])
    base = next(r["value"] for r in read_run(folder).rows if (r["method"], r["metric"]) == ("Base", "N@5"))
    assert f"{base + 0.005:.4f} ± {np.std([0, 0.01], ddof=1):.4f}" in text
    assert "2 seeds" in write_report(tmp_path).read_text()


def test_a_file_of_an_earlier_version_names_no_scenario(folder: Path, tmp_path: Path) -> None:
    for seed in (2024, 2025):
        shutil.copytree(folder, tmp_path / f"seed_{seed}")
    shutil.copy(folder / "config.yaml", tmp_path / "config.yaml")
    path = tmp_path / "seed_2025" / "per_user.parquet"
    earlier = pq.read_table(path).drop_columns(["scenario"])
    pq.write_table(earlier, path)
    joined = read_run(tmp_path).per_user
    assert len(joined) == 2 * len(earlier) and joined["scenario"].unique().to_pylist() == ["overall"]
