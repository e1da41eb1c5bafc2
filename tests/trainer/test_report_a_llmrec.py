"""The report of A-LLMRec: a table a scenario, times, answers, the paper's figures beside ours."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))

from a_llmrec_run_folder import BEAUTY, make_config, write_a_llmrec_folder, write_genres
from report_pages import assert_whole, table_rows, value_of
from run_folder import write_run_folder

from recloom.data_shards.cards import AMAZON
from recloom.data_shards.errors import UserError
from recloom.launcher.cli import main
from recloom.trainer.collaborative.registry import backbone_module
from recloom.trainer.config_io import config_dict
from recloom.trainer.report.compare import comparison, paper_tables
from recloom.trainer.report.html import render, write_report
from recloom.trainer.report.read import RunRecord, read_run
from recloom.trainer.report.results import group_results
from recloom.trainer.report.system_view import view_of
from recloom.trainer.report.systems.a_llmrec import METHODS, VIEW, scenario_text, variant
from recloom.trainer.report.tables import results_table
from recloom.trainer.report.users import compare_methods, user_values

Row = dict[str, Any]
ABLATIONS: dict[str, dict[str, Any]] = {
    "": {},
    "w/o matching": {"align": {"matching": False}},
    "w/o item-recon & text-recon": {"align": {"item_recon": False, "text_recon": False}},
    "w/o item-recon": {"align": {"item_recon": False}},
    "w/o rec": {"align": {"rec": False}},
    "freeze SBERT": {"align": {"train_text_encoder": False}},
    "w/o user representation": {"project": {"user_vector": False}},
    "w/o joint embedding": {"project": {"item_vectors": "none"}},
    "with random joint embedding": {"project": {"item_vectors": "random"}},
    "all items": {"align": {"targets": "all"}, "project": {"targets": "all"}},
    "all items in align": {"align": {"targets": "all"}},
    "w/o rec, w/o joint embedding": {"align": {"rec": False}, "project": {"item_vectors": "none"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_a_llmrec_folder(tmp_path_factory.mktemp("run"))
    write_genres(made)
    return made


@pytest.fixture(scope="module")
def record(folder: Path) -> RunRecord:
    return read_run(folder)


@pytest.fixture(scope="module")
def page(record: RunRecord) -> str:
    return render(record)


def row(method: str, metric: str, value: float, scenario: str = "overall", seed: int = 1) -> Row:
    return {
        "dataset": "D",
        "task": "sequential",
        "scenario": scenario,
        "split": "test",
        "backbone": "sasrec",
        "method": method,
        "metric": metric,
        "value": value,
        "seed": seed,
        "users": 9,
        "protocol": "full" if scenario.endswith("_full") else "sampled",
    }


def test_the_console_table_has_every_scenario() -> None:
    rows = [
        row("Base", "H@1", 0.5, "overall_full"),
        row("A-LLMRec (SBERT)", "H@1", 0.4, "cold"),
        row("Base", "H@1", 0.25, "cold"),
        row("A-LLMRec", "greedy H@1", 0.61),
        row("A-LLMRec", "H@1", 0.6),
        row("LLM-only", "H@1", 0.1),
        row("Base", "H@1", 0.5),
        row("Base", "H@1", 0.3, "few_shot_128"),
    ]
    want = """\
D                       H@1   greedy H@1
-----------------------------------------
sequential, sasrec
  SASRec (backbone)  0.5000            -
  LLM-only           0.1000            -
  A-LLMRec           0.6000*      0.6100
"""
    text = results_table(rows, VIEW)
    assert text.startswith(want)
    titles = re.findall(r"^sequential, sasrec.*?(?= {2}|$)", text.split("users\n")[0], re.MULTILINE)
    assert [title.removeprefix("sequential, sasrec") for title in titles] == [
        "",
        ", cold",
        ", few_shot_128",
        ", overall_full",
    ]
    assert "overall, cold, few_shot_128: sampled.\noverall_full: full." in text
    assert "* best of the scenario." in text and "greedy H@1: the title" in text


def test_a_doubled_row_names_the_stage_that_writes_them() -> None:
    rows = [row("Base", "H@1", 0.5), row("Base", "H@1", 0.5, "cold")]
    assert len(group_results(rows, VIEW)) == 2
    with pytest.raises(UserError, match="is there twice.*`evaluate`"):
        group_results([*rows, row("Base", "H@1", 0.4, "cold")], VIEW)


@pytest.mark.parametrize("scenario", ["overall", "warm", "cold"])
def test_the_page_has_a_table_a_scenario(record: RunRecord, page: str, scenario: str) -> None:
    """With its users and protocol in its caption, the backbone by its name."""
    users = {"overall": 60, "warm": 30, "cold": 20}[scenario]
    heading = re.escape(scenario_text(scenario))
    caption = f"<caption>{heading}: {users} users; 1 \\+ 19 candidates, drawn with seed 0</caption>"
    head, title, *lines = table_rows(page, caption)
    assert head == ["method", "H@1", "H@5", "N@5", "H@10", "N@10", "greedy H@1"]
    assert title == ["sequential, sasrec" + ("" if scenario == "overall" else f", {scenario}")]
    assert [line[0] for line in lines] == ["SASRec (backbone)", *list(METHODS)[1:]]
    for method, line in zip(METHODS, lines, strict=True):
        want = [f"{value_of(record, method, metric, scenario):.4f}" for metric in head[1:6]]
        assert line[1:6] == want
    assert lines[0][6] == "–"


def test_every_part_of_the_page_is_there(page: str) -> None:
    for part in ('id="alignment"', 'id="loss"', 'id="costs"', 'id="genres"', 'id="time"', 'id="environment"'):
        assert page.count(part) == 1, part
    assert "A language model (smollm2-135m)" in page and "<dt>TALLRec</dt>" in page
    captions = re.findall(r"<figcaption><strong>(.*?)</strong>, (.*?)</figcaption>", page, re.DOTALL)
    assert ("Stage 1", "60 steps, 2 epochs") in captions
    assert (
        "MLP-LLM",
        "60 steps: 240 samples, 54,000 tokens, 1 epoch; last validation loss 0.3100",
    ) in captions
    assert (
        "Using the LLM" not in page
        and "stars" not in page
        and "rating" not in page.lower().split("config")[0]
    )


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    assert_whole(page)


def test_times_stand_beside_tallrec(page: str) -> None:
    """Table 8: 600 + 1800 s of A-LLMRec against 7200 s."""
    head, *lines = table_rows(page, 'id="costs"')
    assert head[-2:] == ["training / TALLRec", "question / TALLRec"]
    assert [line[0] for line in lines] == list(METHODS)[1:]
    found = {line[0]: line[1:] for line in lines}
    assert found["LLM-only"] == ["–", "–", "–", "0.500 s", "–", "0.62"]
    assert found["TALLRec"] == ["–", "2 h 00 min", "2 h 00 min", "0.800 s", "1.00", "1.00"]
    assert found["A-LLMRec"] == ["10 min 00 s", "30 min 00 s", "40 min 00 s", "0.600 s", "0.33", "0.75"]


def test_no_ratio_without_tallrec(record: RunRecord) -> None:
    times = {name: told for name, told in record.times.items() if name != "TALLRec"}
    head, *lines = table_rows(render(RunRecord(**{**vars(record), "times": times})), 'id="costs"')
    assert head[-1] == "a question" and len(lines) == 4


def test_answers_stand_method_beside_method(page: str) -> None:
    assert table_rows(page, 'id="genres"') == [
        ["user", "LLM-only", "A-LLMRec"],
        ["3", "nobody <likes> 3", "somebody <likes> 3"],
        ["11", "nobody <likes> 11", "somebody <likes> 11"],
    ]
    assert page.count("<pre>Prompt of 3 &amp; co</pre>") == 2


@pytest.mark.parametrize("scenario", ["overall", "cold"])
def test_significance_is_of_the_scenarios_own_users(record: RunRecord, page: str, scenario: str) -> None:
    frame = record.per_user.to_pandas().query("scenario == @scenario and metric == 'H@1'")
    users = frame.pivot(index="user", columns="method", values="value")
    test = stats.ttest_rel(users["A-LLMRec"], users["Base"])
    (group,) = [group for group in group_results(record.rows, VIEW) if group.scenario == scenario]
    values = user_values(record.per_user, group)
    assert values is not None and values.metric == "H@1" and values.num_users == len(users)
    found = {item.baseline: item for item in compare_methods(values)}
    assert set(found) == set(METHODS) - {"A-LLMRec"}
    assert found["Base"].test.p_value == pytest.approx(test.pvalue)
    title = re.escape(f"{group.title}: H@1, {len(users)} users")
    (line,) = [row for row in table_rows(page, title) if row and "SASRec" in row[0]][:1]
    assert line[0] == "A-LLMRec − SASRec (backbone)"
    assert line[2] == found["Base"].p_text.removeprefix("p").removeprefix(" =").strip()


def test_users_are_compared_by_a_metric_that_the_backbone_has(tmp_path: Path) -> None:
    record = read_run(write_a_llmrec_folder(tmp_path, ks=(5,)))
    values = user_values(record.per_user, group_results(record.rows, VIEW)[0])
    assert values is not None and values.metric == "N@5" and "Base" in values.values_U


def test_files_that_need_not_be_there(folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(folder, tmp_path / "run")
    for name in ("align", "tune"):
        shutil.rmtree(bare / name)
    (bare / "genres.jsonl").unlink()
    page = write_report(bare).read_text()
    for part in ('id="alignment"', 'id="loss"', 'id="genres"'):
        assert part not in page
    assert 'id="costs"' in page and "<h2>Results</h2>" in page


@pytest.mark.parametrize("name", ["results.jsonl", "per_user.parquet", "times.json"])
def test_a_missing_file_names_its_stage(folder: Path, tmp_path: Path, name: str) -> None:
    bare = shutil.copytree(folder, tmp_path / "run")
    (bare / name).unlink()
    with pytest.raises(UserError, match=f"{name}.*`evaluate`"):
        write_report(bare)
    (bare / name).write_text('{"half":')
    with pytest.raises(UserError, match=f"{name}.*delete the file.*`evaluate`"):
        write_report(bare)


def test_same_run_same_bytes(page: str, tmp_path: Path) -> None:
    again = write_a_llmrec_folder(tmp_path)
    write_genres(again)
    assert write_report(again).read_text() == page


def test_ours_stand_beside_the_papers(record: RunRecord) -> None:
    text = comparison([record], markdown=True)
    heads = re.findall(r"^\| (Table .*?), Amazon", text, re.MULTILINE)
    assert heads == ["Table 1", "Table 2", "Table 8"], "the other tables repeat Table 1 or are of other runs"
    for scenario, label, method, paper in (
        ("overall", "sasrec", "Base", "0.5298"),
        ("overall", "sasrec", "LLM-only", "0.0120"),
        ("cold", "sasrec, cold", "A-LLMRec (SBERT)", "0.5591"),
        ("warm", "sasrec, warm", "TALLRec", "0.6124"),
    ):
        value = value_of(record, method, "H@1", scenario)
        assert f"| {label} | {method} | {value:.4f} ({paper}) |" in text
    ours, rival = (
        max(value_of(record, m, "H@1") for m in names) for names in (["A-LLMRec"], ["Base", "MLP-LLM"])
    )
    assert f"| improvement | {100 * (ours - rival) / rival:+.1f} % (+4.7 %) |" in text
    assert "LLM-only | " not in text.split("Table 2")[1], "Table 2 has no figure of it"
    assert text.endswith(VIEW.note)


def test_the_star_is_of_the_scenario(record: RunRecord) -> None:
    for scenario in ("overall", "cold"):
        users = record.per_user.to_pandas().query("scenario == @scenario and metric == 'H@1'")
        by_user = users.pivot(index="user", columns="method", values="value")
        rivals = ["Base", "TALLRec"] + (["LLM-only", "MLP-LLM"] if scenario == "overall" else [])
        best = max(rivals, key=lambda name: by_user[name].mean())
        test = stats.ttest_rel(by_user["A-LLMRec"], by_user[best])
        label = "sasrec" if scenario == "overall" else "sasrec, cold"
        (cell, *_) = re.findall(rf"\| {label} \| A-LLMRec \| (.*?) \(", comparison([record], markdown=True))
        assert cell.endswith("*") == (test.pvalue <= 0.05 and test.statistic > 0)


def test_times_beside_table_8(record: RunRecord) -> None:
    lines = comparison([record], markdown=True).split("Table 8")[1].splitlines()
    tallrec, ours, gain = lines[2:5]
    assert tallrec.startswith("| sasrec | TALLRec | 120.0000 (588.5800) | 0.8000 (3.3600) | ")
    assert ours.startswith("| sasrec | A-LLMRec | 40.0000 (232.5000) | 0.6000 (1.9800) | ")
    assert gain.startswith("| sasrec | improvement | +66.7 % (+60.5 %) | +25.0 % (+41.1 %) | ")


def test_an_ablation_stands_in_its_own_table(record: RunRecord, tmp_path: Path) -> None:
    run = write_a_llmrec_folder(tmp_path, name="ablated", **ABLATIONS["w/o matching"])
    other = read_run(run)
    text = comparison([other])
    assert "Table 6" in text and "sasrec, w/o matching" in text and "(0.5548)" in text
    assert "Table 1" not in text and "Table 7" not in text
    assert "An ablation of the system: w/o matching." in render(other)
    both = comparison([record, other], markdown=True).split("Table 6")[1].split("\n\n")[0]
    assert "| sasrec | A-LLMRec |" in both and "(0.5809)" in both
    assert "| sasrec, w/o matching | A-LLMRec |" in both and "improvement" not in both


def test_two_runs_of_one_cell_are_told_apart(record: RunRecord, tmp_path: Path) -> None:
    other = read_run(write_a_llmrec_folder(tmp_path, name="again", seed=7))
    text = comparison([record, other], markdown=True)
    assert "| sasrec, fixture | Base |" in text and "| sasrec, cold, again | A-LLMRec |" in text


def test_other_scenarios_backbones_and_data(record: RunRecord, tmp_path: Path) -> None:
    few = read_run(write_a_llmrec_folder(tmp_path / "few", scenarios=("few_shot_128",)))
    text = comparison([few])
    assert (
        "Table 4" in text and "sasrec, few_shot_128" in text and "(0.1813)" in text and "Table 8" not in text
    )
    assert "<caption>Few-shot (128 training users): 60 users" in render(few)
    ncf = read_run(write_a_llmrec_folder(tmp_path / "ncf", backbones={"direct": {"model": "ncf"}}))
    assert "Table 9" in comparison([ncf]) and "(0.5431)" in comparison([ncf])
    assert "NCF (backbone)" in results_table(ncf.rows, VIEW)
    unknown = RunRecord(**{**vars(record), "rows": [{**each, "dataset": "My shop"} for each in record.rows]})
    assert comparison([unknown]) == ""


def test_two_systems_in_one_comparison(record: RunRecord, tmp_path: Path) -> None:
    other = read_run(write_run_folder(tmp_path))
    text = comparison([other, record])
    assert text.index("Base and IFT") < text.index(f"Table 1, {BEAUTY}") < text.index(VIEW.note)


@pytest.mark.parametrize("label", ABLATIONS)
def test_the_variant_is_read_off_the_config(label: str) -> None:
    assert variant(config_dict(make_config(**ABLATIONS[label]))) == label


def test_the_papers_figures_are_where_a_run_finds_them() -> None:
    """Names of data sets, tasks, backbones, methods and variants are those that runs write."""
    tables = paper_tables("a_llmrec")
    assert {table.table.split(" (")[0] for table in tables} == {f"Table {n}" for n in range(1, 10)}
    for table in tables:
        assert table.variant in ABLATIONS and set(table.figures) <= set(AMAZON)
        assert not table.scenario.startswith("few") or table.scenario in ("few_shot_256", "few_shot_128")
        for backbones in table.figures.values():
            for backbone, figures in backbones.items():
                known = backbone not in ("ctrl", "recformer")
                assert not known or table.task == backbone_module(backbone).TASK
                assert set(figures) <= set(METHODS)
                assert {len(values) for values in figures.values()} == {len(table.metrics)}


@pytest.mark.parametrize(
    ("table", "scenario", "label", "dataset", "backbone", "method", "want"),
    [
        ("Table 1", "overall", "", "Toys and Games", "sasrec", "TALLRec", [0.0710]),
        ("Table 1", "overall", "", "Video Games", "morec", "Base", [0.4894]),
        ("Table 2", "warm", "", "Video Games", "sasrec", "A-LLMRec (SBERT)", [0.5792]),
        ("Table 3", "cold_users", "", "Video Games", "recformer", "Base", [0.3989]),
        ("Table 4", "few_shot_256", "", "Movies and TV", "sasrec", "A-LLMRec", [0.2880]),
        ("Table 6", "overall", "w/o rec", "Toys and Games", "sasrec", "A-LLMRec", [0.1541]),
        (
            "Table 7",
            "overall",
            "with random joint embedding",
            "Luxury Beauty",
            "sasrec",
            "A-LLMRec",
            [0.5427],
        ),
        ("Table 8", "overall", "all items", "Luxury Beauty", "sasrec", "A-LLMRec", [643.33, 1.98, 0.6002]),
        ("Table 9", "overall", "", "Toys and Games", "gru4rec", "A-LLMRec", [0.3089]),
    ],
)
def test_figures_as_printed(
    table: str, scenario: str, label: str, dataset: str, backbone: str, method: str, want: list[float]
) -> None:
    cells = [
        entry.figures[f"Amazon 2018 {dataset}"][backbone][method]
        for entry in paper_tables("a_llmrec")
        if (entry.table, entry.scenario, entry.variant) == (table, scenario, label)
        and backbone in entry.figures.get(f"Amazon 2018 {dataset}", {})
    ]
    assert cells == [want]


def test_two_seeds_are_one_run(tmp_path: Path) -> None:
    for seed in (2024, 2025):
        write_a_llmrec_folder(tmp_path / f"seed_{seed}", seed=seed)
    shutil.copy(tmp_path / "seed_2024" / "config.yaml", tmp_path / "config.yaml")
    joined = read_run(tmp_path)
    values = [
        value_of(read_run(tmp_path / f"seed_{seed}"), "A-LLMRec", "H@5", "cold") for seed in (2024, 2025)
    ]
    shown = f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
    assert shown in results_table(joined.rows, VIEW)
    page = render(joined)
    assert f">{shown}<" in page and "standard deviation over 2 seeds" in page
    assert "on the machine of this run, seed 2024;" in page
    assert "±" in comparison([joined]).split("Table 2")[1].splitlines()[3]


def test_the_command_prints_and_writes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    assert main(["report", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "SASRec (backbone)" in printed and f"Table 2, {BEAUTY}" in printed
    assert (run / "report" / "index.html").is_file()
    text = (run / "config.yaml").read_text().replace("system: a_llmrec", "system: other")
    (run / "config.yaml").write_text(text)
    assert main(["report", str(run)]) == 2
    assert "'other', which no report shows" in capsys.readouterr().err


def test_losses_that_are_off_have_no_line(record: RunRecord) -> None:
    rows = [{**each, "matching": 0.0} for each in record.alignment]
    page = render(RunRecord(**{**vars(record), "alignment": rows}))
    figure = page.split('id="alignment"')[1].split("</figure>")[0]
    assert "text reconstruction" in figure and ">matching<" not in figure
    assert ">matching<" in render(record).split('id="alignment"')[1].split("</figure>")[0]


def test_a_view_is_found_by_the_systems_name() -> None:
    assert view_of("a_llmrec") is VIEW and view_of("llama4rec").title == "Llama4Rec"
    with pytest.raises(UserError, match="'other'.*a_llmrec or laser or llama4rec"):
        view_of("other")


def test_rows_are_json(folder: Path) -> None:
    """The fixture's rows pass the reader's own check of every field."""
    assert len(read_run(folder).rows) == len((folder / "results.jsonl").read_text().splitlines())
    assert json.loads((folder / "times.json").read_text())["TALLRec"]["training_seconds"] == 7200.0
