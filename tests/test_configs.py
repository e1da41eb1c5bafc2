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

FOLDER = Path(__file__).resolve().parent.parent / "configs"
SHIPPED = sorted(FOLDER.rglob("*.yaml"))
GPUS = {"llama4rec_7b": 16, "llama4rec_13b": 16, "llama4rec_70b": 32}


def test_the_configs_are_there() -> None:
    names = {path.stem for path in SHIPPED}
    assert names >= {"llama4rec_quickstart", *GPUS}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_shipped_config_is_read_planned_and_reads_back(path: Path, tmp_path: Path) -> None:
    config = read_config(path)
    assert config.name == path.stem, "the run folder is named after the file"
    plan = make_plan(config, GPUS.get(path.stem, 0), 80)
    assert plan.ok, format_plan(plan)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config))
    assert config_dict(read_config(resolved)) == config_dict(config)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_shipped_config_stands_in_the_readme(path: Path) -> None:
    assert path.name in (FOLDER / "README.md").read_text()


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
