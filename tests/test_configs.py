"""Every shipped YAML goes through the real parser and the plan; the paper's numbers are the paper's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recloom.trainer.config_io import (
    build_config,
    config_dict,
    dump_config,
    parse_yaml,
    read_config,
    read_yaml,
)
from recloom.trainer.plan import format_plan, make_plan
from recloom.trainer.report.compare import PaperTable, paper_tables

FOLDER = Path(__file__).resolve().parent.parent / "configs"
SHIPPED = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "parts")
PARTS = sorted(FOLDER.glob("*/parts/*.yaml"))
GPUS = {"llama4rec_7b": 16, "llama4rec_13b": 16, "llama4rec_70b": 32}
GPUS |= {path.stem: 16 for path in SHIPPED if "cluster_7b" in path.read_text()}
OPT = {path.stem for path in SHIPPED if "opt_6_7b" in path.read_text()}  # the paper's GPUs: section 5.1
GPUS |= {stem: 4 if "movies" in stem or stem == "a_llmrec_opt_6_7b" else 1 for stem in OPT}
GPUS |= {path.stem: 4 for path in SHIPPED if "glm" in path.read_text()}  # Laser's batch of 4
RECSYSLLM = [
    path for path in SHIPPED if path.parent.name == "recsysllm" or path.stem.startswith("recsysllm_")
]
GPUS |= {path.stem: 16 for path in RECSYSLLM if "glm" in path.read_text() or "llama2_7b" in path.read_text()}
DATA = {"ml100k": "ML-100K", "ml1m": "ML-1M", "bookcrossing": "BookCrossing"}


def test_the_configs_are_there() -> None:
    names = {path.stem for path in SHIPPED}
    quick = {f"{system}_quickstart" for system in ("llama4rec", "a_llmrec", "laser", "recsysllm")}
    assert names >= {*quick, "a_llmrec_opt_6_7b", "laser_glm4_9b", "recsysllm_glm4_9b", *GPUS}


def test_no_two_runs_share_a_folder() -> None:
    found = [read_yaml(path) for path in SHIPPED]
    folders = [raw.get("run_dir", raw["name"]) for raw in found]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_shipped_config_is_read_planned_and_reads_back(path: Path, tmp_path: Path) -> None:
    config = read_config(path)
    # the run folder is named after the file, and the system where two files have one name
    assert config.name in (path.stem, f"{path.stem}_{path.parent.name}")
    plan = make_plan(config, GPUS.get(path.stem, 0), 48 if path.stem in OPT else 80)
    assert plan.ok, format_plan(plan)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config))
    assert config_dict(read_config(resolved)) == config_dict(config)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_shipped_config_stands_in_the_readme(path: Path) -> None:
    readme = (path.parent / "README.md").read_text()
    assert stands_in(readme, path.stem)


def stands_in(readme: str, stem: str) -> bool:
    """By its name, or with DATA or SET, and BACKBONE, for words that are told apart from it."""
    table, data, rest = (*stem.split("_", 2), "", "")[:3]
    ends = [f"_{rest}", *(["_BACKBONE"] if f"`{rest}`" in readme else [])] if rest else [""]
    names = [f"{table}_{word}{end}.yaml" for word in ("DATA", "SET") for end in ends]
    by_words = f"`{data}`" in readme and any(name in readme for name in names)
    return by_words or f"{stem}.yaml" in readme


@pytest.mark.parametrize("table", paper_tables("llama4rec"), ids=lambda table: table.table)
def test_every_cell_of_the_papers_tables_is_a_config(table: PaperTable) -> None:
    """Its task, data set, backbone and five seeds."""
    number = table.table.split()[1]
    for stem, dataset in DATA.items():
        for backbone in table.figures.get(dataset, {}):
            config = read_config(FOLDER / f"llama4rec/table{number}_{stem}_{backbone}.yaml")
            assert getattr(config.backbones, table.task).model == backbone
            assert len(config.seeds) == 5 and config.evaluate.ablation == (number == "5")
            named = {"ml100k": "100k", "ml1m": "1m"}.get(stem, stem)
            assert named in (config.data.source, getattr(config.data, "variant", None))


@pytest.mark.parametrize("path", PARTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_part_is_used(path: Path) -> None:
    beside = path.parent.parent.glob("*.yaml")
    assert any(f"parts/{path.name}" in config.read_text() for config in beside)


def test_a_table_at_the_papers_scale() -> None:
    """`--with parts/cluster_7b.yaml`: all users, the one tuned LLM, the cell's own data and backbone."""
    cluster = FOLDER / "llama4rec/parts/cluster_7b.yaml"
    config = read_config(FOLDER / "llama4rec/table2_ml1m_lightgcn.yaml", layers=[cluster])
    assert config.model.path == "meta-llama/Llama-2-7b-hf" and config.model.tuned is not None
    assert config.augment.users is None and not config.rank.reachable_only
    assert config.backbones.direct.model == "lightgcn" and config.rank.ranking == "best"
    tuning = read_config(FOLDER / "llama4rec/llama4rec_tune_7b.yaml")
    assert len(tuning.instructions.also) == 2 and tuning.instructions.per_task == 5000
    assert tuning.model.tuned is None and tuning.training.ift == "separate"


def test_the_readmes_data_block_is_read() -> None:
    """The example of a user's own data, in place of the quickstart's."""
    raw = read_yaml(FOLDER / "llama4rec_quickstart.yaml")
    example = re.search(r"```yaml\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert example is not None
    config = build_config(raw | parse_yaml(example[1]), "README")
    assert config.data.interactions.columns.rating == "stars"


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_papers_hyper_parameters(size: str) -> None:
    """Llama4Rec, sections 5.1.3 to 5.1.5; the batch of about 32 prompts is explained in the YAML."""
    config = read_config(FOLDER / f"llama4rec_{size}.yaml")
    training, evaluate = config.training, config.evaluate
    assert config.model.path == f"meta-llama/Llama-2-{size}-hf"
    assert (training.learning_rate, training.warmup_steps) == (2e-5, 50)
    assert (training.epochs, training.context, training.ift) == (3, 2048, "separate")
    assert config.parallel.zero_stage == 3 and config.model.dtype == "bfloat16"
    assert config.instructions.per_task == 5000 and config.prompts.candidates == 10
    assert evaluate.alpha_1 == evaluate.alpha_2 == (0.1, 0.3, 0.5, 0.7, 0.9)
    assert evaluate.utility_c == 1 and evaluate.ks == (3, 5)
    assert config.augment.users is None and config.rank.rating_users is None
    plan = make_plan(config, 16, 80)
    step = next(text for name, text in plan.arithmetic if name == "corpus llama4rec")
    prompts_per_step = int(step.split(" a step")[0].split()[-1])
    assert 28 <= prompts_per_step <= 36


def test_the_quickstart_is_small() -> None:
    config = read_config(FOLDER / "llama4rec_quickstart.yaml")
    assert config.model.path == "smollm2-135m-instruct" and config.training.ift == "shared"
    assert config.data.path is None and config.parallel.cpu_ranks == 2


def test_the_quickstart_of_a_llmrec_is_small() -> None:
    """The recipe with fewer epochs and users asked; what is compared is compared on the same candidates."""
    config = read_config(FOLDER / "a_llmrec_quickstart.yaml")
    assert config.model.path == "smollm2-135m-instruct" and config.item_text.encoder == "all-minilm-l6-v2"
    assert config.data.path is None and config.parallel.cpu_ranks == 2
    assert (config.scenario.name, config.scenario.negatives, config.positive_rating) == ("overall", 19, None)
    assert config.backbones.sequential.model == "sasrec" and "a_llmrec" in config.methods
    assert config.align.epochs < 10 and config.project.epochs < 5 and config.scenario.users <= 1000


def test_the_quickstart_of_laser_is_small() -> None:
    """The recipe with fewer samples and epochs, an LLM of 135M parameters and a small M-Former."""
    config = read_config(FOLDER / "laser_quickstart.yaml")
    assert config.model.path == "smollm2-135m-instruct" and config.data.path is None
    assert config.parallel.cpu_ranks == 2 and config.parallel.zero_stage == 1
    assert config.positive_rating is None and "laser" in config.methods
    assert config.stage_1.epochs < 15 and config.stage_2.epochs < 5 and config.learn.samples <= 10_000
    assert config.bitune.mformer.blocks < 12 and not config.rank.mask_seen


def test_the_quickstart_of_recsysllm_is_small() -> None:
    """The recipe with fewer texts, shorter lists and fewer users asked, by both prompts."""
    config = read_config(FOLDER / "recsysllm_quickstart.yaml")
    assert config.model.path == "smollm2-135m-instruct" and config.data.path is None
    assert config.parallel.cpu_ranks == 2 and config.parallel.zero_stage == 3
    assert config.positive_rating is None and "recsysllm" in config.methods
    assert config.corpus.samples <= 1000 and config.corpus.negatives < 99 and config.ask.users <= 200
    assert config.ask.prompts == ("seen", "unseen") and config.pretrain.epochs < 8
