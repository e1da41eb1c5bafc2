"""The report of RecSysLLM: five families, two prompts, texts beside rankings, the paper's figures."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))

from recsysllm_run_folder import BEAUTY, ONE_FAMILY, SKILL, make_config, write_recsysllm_folder
from report_pages import assert_whole, table_rows

from recloom.data_shards.errors import UserError
from recloom.launcher.cli import main
from recloom.trainer.collaborative.registry import backbone_module
from recloom.trainer.config_io import config_dict
from recloom.trainer.report.compare import comparison, paper_tables
from recloom.trainer.report.html import render, write_report
from recloom.trainer.report.plots import LINES, OURS, line_of
from recloom.trainer.report.read import RunRecord, read_run
from recloom.trainer.report.results import TASKS
from recloom.trainer.report.systems.recsysllm import BACKBONES, METHODS, TRAINED, VIEW, variant
from recloom.trainer.report.tables import results_table
from recloom.trainer.systems.recsysllm.evaluate import FREE, UNSEEN
from recloom.trainer.systems.recsysllm.methods import METHODS as OF_THE_SYSTEM
from recloom.trainer.systems.recsysllm.settings import FAMILIES

READERS = {"MF", "P5", "SimpleX", "T0", "RecSysLLM with hints", "P5 with hints"}
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "token masking": {"units": "token"},
    "permuted spans": {"order": "permuted"},
    "1D positions": {"positions": "1d"},
    "token masking, 1D positions": {"units": "token", "positions": "1d"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recsysllm_folder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def record(folder: Path) -> RunRecord:
    return read_run(folder)


@pytest.fixture(scope="module")
def page(record: RunRecord) -> str:
    return render(record)


def value_of(record: RunRecord, task: str, method: str, metric: str) -> float:
    (found,) = [
        row["value"]
        for row in record.rows
        if (row["task"], row["method"], row["metric"]) == (task, method, metric)
    ]
    return found


def test_every_method_of_the_system_is_shown() -> None:
    """By each prompt, with the trie and without it."""
    names = {method.name for method in OF_THE_SYSTEM.values()}
    asked = {name + unseen + free for name in names for unseen in ("", UNSEEN) for free in ("", FREE)}
    assert set(METHODS) == asked | {"Base"}
    assert {key: method.name for key, method in OF_THE_SYSTEM.items()} == TRAINED
    assert line_of(VIEW, "RecSysLLM") == LINES[OURS]


def test_families_of_the_same_metrics_share_a_table(page: str, record: RunRecord) -> None:
    """The recommender by its name in front; where none is, the LLM alone."""
    head, *lines = table_rows(page, "<caption>Test results, rating")
    assert head == ["method", "RMSE", "MAE"] and lines[0] == ["rating, deepfm"]
    assert [line[0] for line in lines[1:]] == ["DeepFM (backbone)", *list(SKILL)[1:]]
    head, *lines = table_rows(page, "<caption>Test results, direct and sequential")
    assert head == ["method", "H@1", "N@1", "H@5", "N@5", "H@10", "N@10", "MRR"]
    titles = [line[0] for line in lines if len(line) == 1]
    assert titles == ["direct, mf", "sequential, sasrec"]
    assert {"MF (backbone)", "SASRec (backbone)", *ONE_FAMILY} <= {line[0] for line in lines}
    free = next(line for line in lines if line[0] == "RecSysLLM, free")
    assert free[1] == f"{value_of(record, 'direct', 'RecSysLLM, free', 'H@1'):.4f}"
    assert set(free[2:]) == {"–"}, "one answer is no ranking"
    head, *lines = table_rows(page, "<caption>Test results, explanation and review")
    assert head == ["method", "BLEU-2", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert [line[0] for line in lines if len(line) == 1] == ["explanation", "review"]
    assert "DeepFM" not in str(lines)


def test_families_come_in_one_order(record: RunRecord) -> None:
    assert set(TASKS) == set(FAMILIES)
    table = results_table(record.rows, VIEW)
    places = [
        table.index(f"\n{name}")
        for name in ("direct, mf", "sequential,", "rating,", "explanation\n", "review\n")
    ]
    assert places == sorted(places)


def test_which_way_is_better(record: RunRecord, page: str) -> None:
    told = "H, N and MRR: higher is better; RMSE and MAE: lower is better; BLEU and ROUGE: higher is better"
    assert told in results_table(record.rows, VIEW) and told in page


def test_the_best_of_errors_is_the_lowest(record: RunRecord) -> None:
    lines = results_table(record.rows, VIEW).splitlines()
    best = min((method for method in SKILL), key=lambda name: value_of(record, "rating", name, "RMSE"))
    (marked,) = [line for line in lines if f"{value_of(record, 'rating', best, 'RMSE'):.4f}*" in line]
    assert marked.strip().startswith({"Base": "DeepFM"}.get(best, best))


def test_users_are_compared_by_each_familys_own_metric(page: str) -> None:
    """ROUGE-L of texts, absolute errors of ratings, NDCG of rankings; ours against all others."""
    lines = table_rows(page, 'id="pairs"')[1:]
    told = {line[0].split(":")[0]: line[0].split(": ")[1] for line in lines if len(line) == 1}
    assert told == {
        "direct, mf": "N@10, 60 users",
        "sequential, sasrec": "N@10, 60 users",
        "rating, deepfm": "AE, 60 users",
        "explanation": "ROUGE-L, 60 users",
        "review": "ROUGE-L, 60 users",
    }
    rows = [line[0] for line in lines if len(line) > 1]
    assert all(row.startswith("RecSysLLM − ") for row in rows)
    assert {"RecSysLLM − RecSysLLM *", "RecSysLLM − SASRec (backbone)"} <= set(rows)


def test_the_trainings_show_which_loss_they_are_of(page: str) -> None:
    section = page.split("<h2>Blank infilling</h2>")[1].split("</section>")[0]
    captions = re.findall(r"<figcaption><strong>(.*?)</strong>", section)
    assert captions == ["RecSysLLM", "sequential task only", "token masking"]
    assert "Mean loss of the tokens in blanks" in section and "last validation loss 1.0000" in section


def test_answers_without_use_are_counted(page: str, record: RunRecord) -> None:
    assert "invalid RecSysLLM *, free" in results_table(record.rows, VIEW)
    assert value_of(record, "review", "RecSysLLM", "invalid_rate") == pytest.approx(1 / 60)


def test_nothing_warns_and_the_page_is_whole(record: RunRecord, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = render(record)
    assert_whole(page)
    assert write_report(write_recsysllm_folder(tmp_path)).read_text() == page


@pytest.mark.parametrize(
    ("name", "stage"), [("results.jsonl", "evaluate"), ("per_user.parquet", "evaluate"), ("tune", "pretrain")]
)
def test_a_missing_file_names_its_stage(folder: Path, tmp_path: Path, name: str, stage: str) -> None:
    bare = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(bare / name) if name == "tune" else (bare / name).unlink()
    with pytest.raises(UserError, match=f"{name}.*`{stage}`"):
        write_report(bare)


@pytest.mark.parametrize("label", VARIANTS)
def test_the_variant_is_read_off_the_masks(label: str) -> None:
    assert variant(config_dict(make_config(mask=VARIANTS[label]))) == label


def test_a_variant_is_called_so(tmp_path: Path) -> None:
    page = render(read_run(write_recsysllm_folder(tmp_path, mask={"units": "token"})))
    assert "An ablation of the system: token masking." in page


def blocks_of(text: str) -> dict[str, str]:
    """The comparison's tables by their heads."""
    heads = re.findall(rf"^\| ([^|]+), {BEAUTY} \|", text, re.MULTILINE)
    parts = re.split(rf"^\| [^|]+, {BEAUTY} \|", text, flags=re.MULTILINE)[1:]
    return dict(zip(heads, parts, strict=True))


def test_ours_stand_beside_the_papers(record: RunRecord) -> None:
    """The figures of direct recommendation at hand are of Sports."""
    text = comparison([record], markdown=True)
    blocks = blocks_of(text)
    assert list(blocks) == [
        "Rating prediction",
        "Sequential recommendation",
        "Explanation",
        "Review summarization",
    ]
    rating = blocks["Rating prediction"]
    assert f"| deepfm | Base | {value_of(record, 'rating', 'Base', 'RMSE'):.4f} (-)" in rating
    assert f"| RecSysLLM * | {value_of(record, 'rating', 'RecSysLLM *', 'RMSE'):.4f} (1.2671)" in rating
    sequential = blocks["Sequential recommendation"]
    assert f"| sasrec | Base | {value_of(record, 'sequential', 'Base', 'H@5'):.4f} (0.0387)" in sequential
    gain = value_of(record, "sequential", "RecSysLLM", "H@5") / value_of(record, "sequential", "Base", "H@5")
    assert f"| improvement | {100 * (gain - 1):+.1f} % (+31.3 %)" in sequential
    assert (
        f"| RecSysLLM | {value_of(record, 'explanation', 'RecSysLLM', 'BLEU-4'):.4f} (1.5200)"
        in blocks["Explanation"]
    )
    review = blocks["Review summarization"]
    assert f"{value_of(record, 'review', 'RecSysLLM', 'ROUGE-L'):.4f} (10.4000)" in review
    assert not any(f"| {name} |" in text for name in READERS | {"token masking"})
    assert text.endswith(VIEW.note)


def test_direct_recommendation_is_of_sports(tmp_path: Path) -> None:
    other = read_run(write_recsysllm_folder(tmp_path, dataset="Amazon 2014 Sports and Outdoors"))
    text = comparison([other], markdown=True)
    found = text.split("| Direct recommendation, Amazon 2014 Sports and Outdoors")[1]
    assert f"| mf | Base | {value_of(other, 'direct', 'Base', 'H@1'):.4f} (0.0314) |" in found
    assert "(0.0654)" in found and "(0.1692)" in found and "SimpleX" not in text


@pytest.mark.parametrize(("model", "figure"), [("bert4rec", "0.0203"), ("gru4rec", "0.0164")])
def test_another_recommender_has_its_own_figures(tmp_path: Path, model: str, figure: str) -> None:
    other = read_run(write_recsysllm_folder(tmp_path, backbones={"sequential": {"model": model}}))
    text = comparison([other], markdown=True)
    assert f"| {model} | Base | {value_of(other, 'sequential', 'Base', 'H@5'):.4f} ({figure}) |" in text
    rating = blocks_of(text)["Rating prediction"]
    assert "Base" not in rating and "(1.2721)" in rating, "no recommender of ratings"


def test_an_ablation_of_the_masks_is_beside_no_figure(tmp_path: Path) -> None:
    other = read_run(write_recsysllm_folder(tmp_path, mask={"positions": "1d"}))
    assert comparison([other], markdown=True) == ""


def test_the_star_of_a_number_is_over_the_recommender(record: RunRecord) -> None:
    users = record.per_user.to_pandas().query("task == 'sequential' and metric == 'N@10'")
    by_user = users.pivot(index="user", columns="method", values="value")
    test = stats.ttest_rel(by_user["RecSysLLM"], by_user["Base"])
    line = re.search(
        r"\| RecSysLLM \| .* \| (\S+) \(0.0446\)",
        blocks_of(comparison([record], True))["Sequential recommendation"],
    )
    assert line is not None and line[1].endswith("*") == (test.pvalue <= 0.05 and test.statistic > 0)


def test_the_papers_figures_are_where_a_run_finds_them() -> None:
    """Names of families, backbones and methods are those that runs write."""
    tables = paper_tables("recsysllm")
    assert {table.task for table in tables} == set(FAMILIES) and len(tables) == 5
    for table in tables:
        assert (table.variant, table.scenario) == ("", "overall")
        for backbones in table.figures.values():
            for backbone, figures in backbones.items():
                assert backbone == "" or table.task == backbone_module(backbone).TASK
                assert backbone == "" or backbone in BACKBONES
                assert set(figures) - READERS <= set(METHODS) and "RecSysLLM" in figures
                assert {len(values) for values in figures.values()} == {len(table.metrics)}


@pytest.mark.parametrize(
    ("task", "dataset", "backbone", "method", "want"),
    [
        ("rating", "Sports and Outdoors", "deepfm", "RecSysLLM *", [1.0278, 0.6631]),
        ("rating", "Toys and Games", "nfm", "MF", [1.0123, 0.7984]),
        ("rating", "Beauty", "", "P5", [1.2843, 0.8534]),
        ("sequential", "Toys and Games", "sasrec", "RecSysLLM", [0.0676, 0.0583, 0.0712, 0.0596]),
        ("sequential", "Toys and Games", "gru4rec", "Base", [0.0097, 0.0059, 0.0176, 0.0084]),
        ("sequential", "Beauty", "bert4rec", "P5", [0.0508, 0.0379, 0.0664, 0.0429]),
        ("explanation", "Beauty", "", "RecSysLLM", [1.52, 19.00, 3.04, 14.75]),
        ("explanation", "Beauty", "", "P5 with hints", [1.88, 25.12, 6.08, 19.45]),
        ("review", "Beauty", "", "T0", [1.29, 1.28, 0.39, 0.96]),
        ("direct", "Sports and Outdoors", "mf", "RecSysLLM", [0.0654, 0.2008, 0.1438, 0.2984, 0.1692]),
        ("direct", "Sports and Outdoors", "", "SimpleX", [0.0331, 0.2362, 0.1505, 0.3290, 0.1800]),
    ],
)
def test_figures_as_printed(task: str, dataset: str, backbone: str, method: str, want: list[float]) -> None:
    (table,) = [entry for entry in paper_tables("recsysllm") if entry.task == task]
    assert table.figures[f"Amazon 2014 {dataset}"][backbone][method] == want


def test_two_seeds_are_one_run(tmp_path: Path) -> None:
    for seed in (2024, 2025):
        write_recsysllm_folder(tmp_path / f"seed_{seed}", seed=seed)
    shutil.copy(tmp_path / "seed_2024" / "config.yaml", tmp_path / "config.yaml")
    assert "±" in render(read_run(tmp_path))


def test_the_command_prints_and_writes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    assert main(["report", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "SASRec (backbone)" in printed and f"Review summarization, {BEAUTY}" in printed
    assert (run / "report" / "index.html").is_file()
