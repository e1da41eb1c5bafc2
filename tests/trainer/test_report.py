"""The report: values, marks, clear errors, the same bytes again."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from report_pages import assert_whole
from run_folder import read_rows, write_run_folder

from recloom.data_shards.errors import UserError
from recloom.trainer.report.html import write_report
from recloom.trainer.report.results import group_results
from recloom.trainer.report.systems.llama4rec import VIEW
from recloom.trainer.report.tables import results_table
from recloom.trainer.report.users import UserValues, activity_bins, compare_methods, user_values

Row = dict[str, Any]


def row(task: str, method: str, metric: str, value: float, seed: int = 1, **changes: Any) -> Row:
    base = {
        "dataset": "D",
        "scenario": "overall",
        "split": "test",
        "backbone": "B",
        "users": 50,
        "protocol": "p",
    }
    own = {"task": task, "method": method, "metric": metric, "value": value, "seed": seed}
    return {**base, **own, **changes}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run_folder(tmp_path_factory.mktemp("run"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    return (run_folder / "report" / "index.html").read_text()


def test_table_as_text() -> None:
    rows = [
        row("rating", "Base", "RMSE", 0.95),
        row("rating", "Llama4Rec", "RMSE", 0.90001),
        row("rating", "IFT", "RMSE", 0.9),
        row("direct", "Llama4Rec", "N@5", 0.12345),
        row("direct", "Base", "H@5", 0.2),
        row("direct", "Base", "N@5", 0.1),
        row("direct", "Llama4Rec", "H@5", 0.2),
        row("direct", "Ceiling", "H@10", 0.5),
        row("direct", "Llama4Rec", "invalid_rate", 0.25, users=12),
        row("direct", "Base", "H@5", 0.9, split="valid"),
        row("direct", "Base", "H@5", 0.9, scenario="cold"),
    ]
    want = """\
D               H@5      N@5
-----------------------------
direct, B
  Base       0.2000*  0.1000
  Llama4Rec  0.2000*  0.1235*

D              RMSE
--------------------
rating, B
  Base       0.9500
  IFT        0.9000*
  Llama4Rec  0.9000*

           users  ceiling H@10  invalid Llama4Rec
-------------------------------------------------
direct, B     50        0.5000             0.2500
rating, B     50             -                  -
"""
    text = results_table(rows, VIEW)
    assert text.startswith(want)
    assert "Seeds: 1 (one seed: no spread can be given)." in text


def test_table_leaves_out_what_is_missing() -> None:
    text = results_table([row("sequential", "Base", "N@5", 0.1), row("sequential", "IFT", "H@5", 0.2)], VIEW)
    assert re.search(r"Base +- +0\.1000", text) and re.search(r"IFT +0\.2000 +-", text)
    assert "0.1000*" not in text, "a value without a rival is not the best"
    assert "Llama4Rec" not in text and "RMSE" not in text and "Ceiling" not in text


def test_several_seeds_give_mean_and_sample_deviation() -> None:
    rows = [row("direct", "Base", "N@5", value, seed) for seed, value in enumerate((0.1, 0.2, 0.4))]
    (group,) = group_results(rows, VIEW)
    assert str(group.values["Base", "N@5"]) == "0.2333 ± 0.1528"
    assert group.seeds == (0, 1, 2)
    with pytest.raises(UserError, match="direct Base N@5 of seed 1 is there twice.*aggregate"):
        group_results([*rows, row("direct", "Base", "N@5", 0.3, 1)], VIEW)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("config.yaml", "recloom run CONFIG"),
        ("env.json", "recloom run CONFIG"),
        ("data/card.json", "prepare"),
        ("results.jsonl", "aggregate"),
        ("per_user.parquet", "aggregate"),
        ("aggregate.json", "aggregate"),
        ("tune", "tune"),
    ],
)
def test_a_missing_or_damaged_file_names_its_stage(
    run_folder: Path, tmp_path: Path, name: str, stage: str
) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=f"{name}.*`{stage}`") as missing:
        write_report(folder)
    assert "\n" not in str(missing.value)
    if path.suffix in (".json", ".jsonl", ".parquet"):
        path.write_text('{"half":')
        with pytest.raises(UserError, match=f"{name}.*delete the file"):
            write_report(folder)
    assert not (folder / "report").exists()


def test_a_row_that_is_no_measurement_is_named(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    rows = read_rows(folder)
    del rows[2]["seed"]
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(UserError, match="results.jsonl: line 3 .*'seed'"):
        write_report(folder)
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_same_run_same_bytes(run_folder: Path, page: str, tmp_path: Path) -> None:
    again = write_report(write_run_folder(tmp_path / "elsewhere"))
    assert again.read_text() == page
    marker = {"stage": "report", "title": "", "digest": "", "seconds": 3.0, "outputs": {}}
    (again.parent.parent / "stages" / "report.json").write_text(json.dumps(marker))
    assert write_report(again.parent.parent).read_text() == page


def test_colour_and_words_follow_the_paired_test(run_folder: Path, page: str) -> None:
    """Only a difference beyond chance is coloured."""
    pairs = page[page.index('<table id="pairs">') :].split("</table>")[0]
    shown = re.findall(r"<td><strong( class=.(?:better|worse).)?>.*?</strong>.*?<td>(.*?)</td>", pairs)
    assert len(shown) == 8, "Llama4Rec against Base, Base+DA and IFT; the rating task has no Base+DA"
    assert {bool(coloured) for coloured, _ in shown} == {True, False}
    for coloured, p_value in shown:
        assert bool(coloured) == (p_value == "&lt; 0.001" or float(p_value) <= 0.05)


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    assert_whole(page)


def test_a_run_without_rating_and_without_the_system(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    rows = [
        each for each in read_rows(folder) if each["task"] != "rating" and each["method"] in ("Base", "IFT")
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    page = write_report(folder).read_text()
    results = page[page.index("<h2>Results") : page.index("<h2>Training")]
    assert "IFT" in results and "rating, " not in results and "Llama4Rec" not in results


def test_pairs_are_of_the_same_user(run_folder: Path) -> None:
    table = pq.read_table(run_folder / "per_user.parquet")
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    for group in group_results(read_rows(run_folder), VIEW):
        values = user_values(shuffled, group)
        assert values is not None
        frame = (
            table.to_pandas()
            .query("task == @group.task and metric == @values.metric")
            .pivot(index="user", columns="method", values="value")
        )
        assert values.num_users == len(frame)
        for item in compare_methods(values):
            difference = frame["Llama4Rec"] - frame[item.baseline]
            t = difference.mean() / (difference.std() / np.sqrt(len(frame)))
            assert item.test.difference == pytest.approx(difference.mean())
            assert item.test.statistic == pytest.approx(t)
            assert item.better == (difference.mean() < 0 if group.task == "rating" else difference.mean() > 0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 6))
def test_bins_part_the_users_by_activity(counts: list[int], num_bins: int) -> None:
    counts_U = np.array(counts)
    values_U = counts_U * 2.0
    bins = activity_bins(UserValues("N@5", counts_U, {"Base": values_U}), num_bins)
    assert 1 <= len(bins) <= num_bins
    assert sum(part.num_users for part in bins) == len(counts)
    edges = [[int(edge) for edge in part.label.split("–")] for part in bins]
    assert all(low[-1] < high[0] for low, high in zip(edges, edges[1:], strict=False))
    for part, edge in zip(bins, edges, strict=True):
        inside = values_U[(counts_U >= edge[0]) & (counts_U <= edge[-1])]
        assert part.num_users == len(inside)
        assert part.means["Base"] == pytest.approx(inside.mean())
        if len(inside) > 1:
            assert part.errors["Base"] == pytest.approx(inside.std(ddof=1) / len(inside) ** 0.5)
