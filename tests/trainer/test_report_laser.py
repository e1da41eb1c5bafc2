"""The report of Laser: recommenders beside it, parameters, validation, experts, the paper's figures."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))

from laser_run_folder import SCIENTIFIC, SKILL, STEPS, make_config, write_laser_folder
from report_pages import assert_whole, table_rows, value_of

from recloom.data_shards.errors import UserError
from recloom.launcher.cli import main
from recloom.trainer.collaborative.registry import backbone_module, backbone_names
from recloom.trainer.config_io import config_dict
from recloom.trainer.report import plots
from recloom.trainer.report.bituning import bituning, make_stage, validation_values
from recloom.trainer.report.compare import comparison, paper_tables
from recloom.trainer.report.html import render, write_report
from recloom.trainer.report.plots import LINES, OURS, line_of, loss_plot
from recloom.trainer.report.read import RunRecord, read_run
from recloom.trainer.report.systems.laser import BACKBONES, METHODS, TRAINED, VIEW, variant
from recloom.trainer.report.tables import results_table
from recloom.trainer.systems.laser.methods import METHODS as OF_THE_SYSTEM

OWN = [name for name in METHODS if name not in BACKBONES]
SMALL = {"experts": 4, "tokens": 8, "blocks": 2, "hidden": 128, "heads": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "w/o phrase": {"texts": {"template": "browsing_no_phrase"}},
    "w/o instruction": {"texts": {"template": "browsing_bare"}},
    "own item instruction": {"texts": {"item_template": "browsing_item"}},
    "template mine, own item instruction": {
        "texts": {"template": "folder/mine.yaml", "item_template": "browsing_item"}
    },
    "K = 4, L = 32": {"bitune": {"mformer": {"experts": 4}}},
    "K = 12, L = 32": {"bitune": {"mformer": {"experts": 12}}},
    "K = 8, L = 16": {"bitune": {"mformer": {"tokens": 16}}},
    "K = 8, L = 48": {"bitune": {"mformer": {"tokens": 48}}},
    "zero-shot": {
        "bitune": {"start_from": "runs/other"},
        "learn": {"share": 0.001},
        "stage_1": {"epochs": 0},
        "stage_2": {"epochs": 0},
        "methods": ["laser"],
    },
    "5 % of the users, started from another run": {
        "bitune": {"start_from": "runs/other"},
        "learn": {"share": 0.05},
    },
    "started from another run": {"bitune": {"start_from": "runs/other"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_laser_folder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def record(folder: Path) -> RunRecord:
    return read_run(folder)


@pytest.fixture(scope="module")
def page(record: RunRecord) -> str:
    return render(record)


def section(page: str) -> str:
    return page.split("<h2>Bi-Tuning</h2>")[1].split("</section>")[0]


def test_recommenders_stand_by_their_names_before_the_llm(record: RunRecord, page: str) -> None:
    head, title, *lines = table_rows(page, "<caption>Overall: 60 users; full catalogue, 400 items")
    assert head == ["method", "H@10", "N@10", "MRR"] and title == ["sequential, bert4rec"]
    assert [line[0] for line in lines] == ["BERT4Rec (backbone)", "SASRec", *list(SKILL)[2:]]
    for method, line in zip(SKILL, lines, strict=True):
        assert line[1:] == [f"{value_of(record, method, metric):.4f}" for metric in head[1:]]
    assert "  SASRec  " in results_table(record.rows, VIEW)
    assert "H, N and MRR: higher is better" in page


def test_every_method_of_the_system_is_shown() -> None:
    """Its name as results.jsonl has it, and the name of its trainings in files."""
    assert {method.name for method in OF_THE_SYSTEM.values()} == set(OWN) - {"Base"}
    trained = {key: method.name for key, method in OF_THE_SYSTEM.items() if method.trained_as is None}
    assert trained == TRAINED
    assert VIEW.model_names["no_mformer_2"] == "w/o M-Former, stage 2"
    assert set(BACKBONES) == {*backbone_names("direct"), *backbone_names("sequential")}


def test_all_lines_of_the_system_differ() -> None:
    """Laser has the system's own line, no other method has it."""
    lines = [line_of(VIEW, method) for method in OWN]
    assert line_of(VIEW, "Laser") == LINES[OURS] and len(set(lines)) == len(OWN)
    assert line_of(VIEW, "sasrec") == LINES[-1]


def test_the_parameters_are_a_table(page: str) -> None:
    """Table 3, most first, with the share of full tuning."""
    head, *lines = table_rows(page, 'id="parameters"')
    assert head == ["tuning", "parameters", "of full tuning"]
    assert lines[0] == ["full tuning", "134,515,008", "100.000 %"]
    assert lines[1] == ["Laser in all", "525,952", "0.391 %"]
    assert lines[-1] == ["prompt tuning (8 tokens)", "4,608", "0.003 %"] and len(lines) == 6


def test_the_trainings_tell_what_was_kept(page: str) -> None:
    """The best epoch, the first of equal ones; a stage without a step is none."""
    head, *lines = table_rows(page, 'id="trainings"')
    assert head == ["training", "steps", "epochs", "kept", "its N@10", "last epoch"]
    assert lines == [
        ["Laser, stage 1", "24", "3", "2", "0.0900", "expert 1: 40 % (even: 25 %)"],
        ["Laser, stage 2", "16", "2", "2", "0.1100", "expert 0: 25 % (even: 25 %)"],
        ["w/o M-Former, stage 1", "24", "3", "3", "0.0600", "–"],
        ["w/o M-Former, stage 2", "16", "2", "0", "0.0600", "–"],
        ["w/o stage 1, stage 2", "16", "2", "1", "0.0200", "expert 0: 25 % (even: 25 %)"],
    ]


def test_no_expert_took_all(page: str) -> None:
    assert "No collapse: in no epoch one expert took 90 % of the users or more." in page


def test_a_collapse_is_told(tmp_path: Path) -> None:
    """Of the epoch's users, not of its steps, and from the share on that the training warns of."""
    page = render(read_run(write_laser_folder(tmp_path / "in", busy=0.9)))
    told = unescape(re.sub(r"\s+", " ", section(page).split('id="collapse"')[1].split("</p>")[0]))
    assert "Laser, stage 1: expert 1 took 90 % of epoch 3's users." in told
    assert "stage 2" not in told and "raise bitune.balance_weight" in told
    below = render(read_run(write_laser_folder(tmp_path / "below", busy=0.89)))
    assert "No collapse" in below


def test_loads_are_weighted_by_users() -> None:
    rows = [
        {"step": 1, "epoch": 0, "loss": 1.0, "samples": 9, "expert_0": 1.0, "expert_1": 0.0},
        {"step": 2, "epoch": 0, "loss": 1.0, "samples": 1, "expert_0": 0.0, "expert_1": 1.0},
        {"step": 3, "epoch": 1, "loss": 1.0, "samples": 2, "expert_0": 0.5, "expert_1": 0.5},
    ]
    stage = make_stage("Laser", 1, rows)
    assert stage.loads[1].tolist() == [0.9, 0.1] and stage.loads[2].tolist() == [0.5, 0.5]
    assert stage.collapses == ["Laser, stage 1: expert 0 took 90 % of epoch 1's users"]
    alone = [{name: told for name, told in row.items() if name != "expert_1"} for row in rows]
    assert make_stage("w/o MoE", 1, alone).collapses == [], "one expert takes all users by its nature"


def test_the_plots(page: str) -> None:
    """Validation and loss of all methods, the load of those with experts."""
    captions = re.findall(r"<figcaption><strong>(.*?)</strong>", section(page))
    assert captions == ["Validation", "Contrastive loss", "Laser", "w/o stage 1"]
    figures = section(page).split("</figure>")
    assert ">stage 2<" in figures[0] and ">w/o M-Former<" in figures[1] and ">100%<" in figures[2]
    assert ">3<" in figures[2], "the last expert is named at the right end"
    assert 'id="loss"' not in page and "answer token" not in page


def test_stage_2_follows_stage_1(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one axis of epochs, and where the first stage had none too."""
    drawn = []
    from matplotlib.axes import Axes

    plain = Axes.plot

    def plot(axes: Any, x: Any, y: Any, **style: Any) -> Any:
        drawn.append((list(x), list(y)))
        return plain(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    told = bituning(record.parameters, record.curves, VIEW)
    assert told is not None
    assert ([1, 2, 3], [0.04, 0.09, 0.07]) in drawn and ([3, 4, 5], [0.09, 0.09, 0.11]) in drawn
    assert ([3, 4, 5], [0.01, 0.02, 0.02]) in drawn, "without stage 1"
    assert ([2], [0.09]) in drawn and ([5], [0.11]) in drawn, "rings"
    steps = [x for x, _ in drawn if len(x) > 9]
    assert max(map(max, steps)) == 5 * STEPS


def test_a_training_without_a_step_has_no_legend() -> None:
    """matplotlib warns of a legend without a line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "<svg" in loss_plot("w/o stage 1", [{"step": 0, "epoch": 0, "validation_N@10": 0.1}])


def test_nothing_warns(record: RunRecord) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(record)


def test_a_run_without_training_shows_its_parameters(folder: Path, tmp_path: Path) -> None:
    """Zero-shot: the folder has no step."""
    bare = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(bare / "tune")
    page = write_report(bare).read_text()
    assert 'id="parameters"' in page
    for part in ('id="trainings"', 'id="collapse"', 'id="bituning"'):
        assert part not in page


@pytest.mark.parametrize("name", ["results.jsonl", "per_user.parquet", "parameters.json"])
def test_a_missing_file_names_its_stage(folder: Path, tmp_path: Path, name: str) -> None:
    bare = shutil.copytree(folder, tmp_path / "run")
    (bare / name).unlink()
    with pytest.raises(UserError, match=f"{name}.*`evaluate`"):
        write_report(bare)


def test_the_page_is_whole_and_the_same_again(page: str, tmp_path: Path) -> None:
    assert_whole(page)
    assert write_report(write_laser_folder(tmp_path)).read_text() == page


@pytest.mark.parametrize("label", VARIANTS)
def test_the_variant_is_read_off_the_config(label: str) -> None:
    assert variant(config_dict(make_config(**VARIANTS[label]))) == label


def test_a_small_m_former_is_no_row_of_table_7() -> None:
    """It goes with a small LLM, as in the quickstart."""
    assert variant(config_dict(make_config(bitune={"mformer": SMALL}))) == ""
    assert variant({}) == ""


def test_a_variant_is_called_so(tmp_path: Path) -> None:
    page = render(read_run(write_laser_folder(tmp_path, **VARIANTS["K = 4, L = 32"])))
    assert "A variant of the system: K = 4, L = 32." in page


def test_ours_stand_beside_the_papers(record: RunRecord) -> None:
    text = comparison([record], markdown=True)
    heads = re.findall(r"^\| (Table \d|Figure \d), Amazon", text, re.MULTILINE)
    assert heads == ["Table 2", "Table 4", "Table 7"], "Tables 5 and 6 repeat Laser's row of Table 2"
    tables = dict(
        zip(heads, re.split(r"^\| (?:Table|Figure) \d, ", text, flags=re.MULTILINE)[1:], strict=True)
    )
    for method, paper in (("Base", "0.0790"), ("sasrec", "0.0797")):
        assert f"| bert4rec | {method} | " in tables["Table 2"]
        assert f"| {value_of(record, method, 'N@10'):.4f} ({paper}) |" in tables["Table 2"]
    gain = value_of(record, "Laser", "MRR") / value_of(record, "sasrec", "MRR") - 1
    assert f"| {100 * gain:+.1f} % (+17.7 %) |" in tables["Table 2"], "over BERT4Rec in the paper"
    assert f"{value_of(record, 'w/o stage 1', 'H@10'):.4f} (0.0784)" in tables["Table 4"]
    assert "RecGURU" not in text and text.endswith(VIEW.note)


def test_table_7_is_of_validation(record: RunRecord, tmp_path: Path) -> None:
    """What the last stage kept; other metrics are not measured there."""
    values = validation_values(record.curves, VIEW)
    assert {method: value.mean for (method, _), value in values.items()} == {
        "Laser": 0.11,
        "w/o M-Former": 0.06,
        "w/o stage 1": 0.02,
    }
    other = read_run(write_laser_folder(tmp_path, name="pair", **VARIANTS["K = 8, L = 48"]))
    text = comparison([record, other], markdown=True).split("Table 7")[1]
    assert "| bert4rec | Laser | - (0.1661) | 0.1100 (0.1199) | - (0.1112) |" in text
    assert "| bert4rec, K = 8, L = 48 | Laser | - (0.0975) | 0.1100 (0.0692) | - (0.0644) |" in text


def test_a_figure_that_is_not_known_is_a_dash(tmp_path: Path) -> None:
    """Of Table 6 and of Figure 4; no gain is made of it."""
    other = read_run(write_laser_folder(tmp_path / "a", **VARIANTS["w/o instruction"]))
    text = comparison([other], markdown=True)
    assert "Table 6" in text and "Table 2" not in text
    assert f"| bert4rec, w/o instruction | Laser | {value_of(other, 'Laser', 'H@10'):.4f} (-) |" in text
    pet = read_run(
        write_laser_folder(
            tmp_path / "b",
            dataset="Amazon 2018 Pet Supplies",
            backbones={"sequential": {"model": "sasrec"}},
            baselines=["bert4rec"],
        )
    )
    figure = comparison([pet], markdown=True).split("Figure 4")[1]
    assert f"| {value_of(pet, 'Laser', 'N@10'):.4f}" in figure and "(0.0730) |" in figure
    gains = figure.split("improvement | ")[1].splitlines()[0]
    assert gains.count("(-)") == 2 and "(+44.0 %)" in gains


def test_the_star_is_over_the_best_recommender(record: RunRecord) -> None:
    users = record.per_user.to_pandas().query("scenario == 'overall' and metric == 'N@10'")
    by_user = users.pivot(index="user", columns="method", values="value")
    best = max(["Base", "sasrec"], key=lambda name: by_user[name].mean())
    test = stats.ttest_rel(by_user["Laser"], by_user[best])
    line = re.search(r"\| Laser \| \S+ \(0.1396\) \| (\S+) \(0.0970\)", comparison([record], markdown=True))
    assert line is not None and line[1].endswith("*") == (test.pvalue <= 0.05 and test.statistic > 0)


def test_the_papers_figures_are_where_a_run_finds_them() -> None:
    """Names of tasks, backbones, methods and variants are those that runs write."""
    others = {"RecGURU", "ZESRec", "RECFORMER", "FDSA", "LLM4REC", "KAR", "LlamaRec"}
    tables = paper_tables("laser")
    numbers = {"Table 2", "Table 4", "Table 5", "Table 6", "Table 7", "Figure 4"}
    assert {table.table for table in tables} == numbers
    for table in tables:
        assert table.variant in VARIANTS
        for backbones in table.figures.values():
            for backbone, figures in backbones.items():
                assert table.task == backbone_module(backbone).TASK
                assert set(figures) - others <= set(METHODS)
                assert {len(values) for values in figures.values()} == {len(table.metrics)}


@pytest.mark.parametrize(
    ("table", "label", "dataset", "method", "want"),
    [
        ("Table 2", "", "Industrial and Scientific", "Laser", [0.1396, 0.0970, 0.0893]),
        ("Table 2", "", "Pet Supplies", "sasrec", [0.0881, 0.0569, 0.0507]),
        ("Table 2", "", "Arts Crafts and Sewing", "Base", [0.1236, 0.0942, 0.0899]),
        ("Table 2", "", "Arts Crafts and Sewing", "KAR", [0.1357, 0.0917, 0.0818]),
        ("Table 4", "", "Pet Supplies", "w/o stage 1", [0.0514, 0.0443, 0.0398]),
        ("Table 4", "", "Industrial and Scientific", "w/o MoE", [0.1261, 0.0889, 0.0795]),
        ("Table 7", "K = 12, L = 32", "Industrial and Scientific", "Laser", [0.1560, 0.1138, 0.1054]),
        ("Table 7", "K = 8, L = 16", "Industrial and Scientific", "Laser", [0.1487, 0.1099, 0.1032]),
    ],
)
def test_figures_as_printed(table: str, label: str, dataset: str, method: str, want: list[float]) -> None:
    cells = [
        entry.figures[f"Amazon 2018 {dataset}"]["bert4rec"][method]
        for entry in paper_tables("laser")
        if (entry.table, entry.variant) == (table, label)
    ]
    assert cells == [want]


def test_two_seeds_are_one_run(tmp_path: Path) -> None:
    for seed in (2024, 2025):
        write_laser_folder(tmp_path / f"seed_{seed}", seed=seed)
    shutil.copy(tmp_path / "seed_2024" / "config.yaml", tmp_path / "config.yaml")
    page = render(read_run(tmp_path))
    assert "±" in page and "The trainings of seed 2024, their kept epoch" in page


def test_the_command_prints_and_writes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    assert main(["report", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "BERT4Rec (backbone)" in printed and f"Table 4, {SCIENTIFIC}" in printed
    assert (run / "report" / "index.html").is_file()
    assert json.loads((run / "parameters.json").read_text())["full tuning"] == 134_515_008
    assert plots.STYLE["svg.fonttype"] == "none"
