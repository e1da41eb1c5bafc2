"""What the plan says of RecSysLLM: the paper's scale, what is trained, texts and masks against real ones."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

from recloom.data_shards.blank_rows import BlankRows
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Rendered, Renderer
from recloom.data_shards.sources.registry import source_module
from recloom.data_shards.spans import token_texts
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.textualize.behaviour import TaskOptions
from recloom.data_shards.textualize.template import one_line_titles
from recloom.data_shards.textualize.template_sets import load_set, seen_templates
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import build_config, read_config
from recloom.trainer.models import load_tokenizer
from recloom.trainer.plan import Plan, format_plan, make_plan
from recloom.trainer.planning.model_size import KNOWN
from recloom.trainer.planning.outline import outline_of
from recloom.trainer.planning.shapes import GlmSize, ModelSize
from recloom.trainer.planning.users import DataSize
from recloom.trainer.systems.recsysllm.corpus import scale, training_samples
from recloom.trainer.systems.recsysllm.families import WORK, World, feedable
from recloom.trainer.systems.recsysllm.lesson import vocabulary
from recloom.trainer.systems.recsysllm.methods import METHODS
from recloom.trainer.systems.recsysllm.network import BlankInfiller, Sizes, mask_ids
from recloom.trainer.systems.recsysllm.planning import (
    growth,
    longest_text,
    num_samples,
    planned_families,
    trained_parts,
    usual_texts,
)
from recloom.trainer.systems.recsysllm.saved import adapt
from recloom.trainer.systems.recsysllm.settings import FAMILIES, FamilyName, RecSysLLMConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
AMAZON = {"source": "amazon2014", "reviews": "reviews_Beauty_5.json.gz", "meta": "meta_Beauty.json.gz"}
LLAMA = ModelSize(64, 96, 2, 4, 2, 50, 128)
GLM = GlmSize(64, 96, 2, 4, 2, 50, 128, head_width=24)
NUM_TEXTS = 150


@lru_cache
def shipped(name: str, *overrides: tuple[str, str]) -> RunConfig:
    """The run folder is nowhere: a finished run here must not change what a plan says."""
    return read_config(CONFIGS / f"{name}.yaml", [("run_dir", "/nowhere/runs"), *overrides])


def glm(*overrides: tuple[str, str]) -> RunConfig:
    return shipped("recsysllm_glm4_9b", *overrides)


def recsysllm(**blocks: Any) -> RecSysLLMConfig:
    raw = {
        "name": "x",
        "system": "recsysllm",
        "data": {"source": "movielens", "variant": "100k"},
        "model": {"path": "smollm2-135m-instruct"},
        "backbones": {},
    }
    config = build_config({**raw, **blocks}, "test")
    assert isinstance(config, RecSysLLMConfig)
    return config


def status(plan: Plan, name: str) -> str:
    return next(check.status for check in plan.checks if check.name == name)


def text(plan: Plan, name: str) -> str:
    return next(check.text for check in plan.checks if check.name == name)


def line(plan: Plan, name: str) -> str:
    return next(told for label, told in plan.arithmetic if label == name)


@pytest.mark.parametrize("name", ["recsysllm_glm4_9b", "recsysllm_llama2_7b"])
def test_both_scales_fit_16_gpus_of_80_gib(name: str) -> None:
    plan = make_plan(shipped(name), 16, 80)
    assert plan.ok, format_plan(plan)
    assert {check.name for check in plan.checks if check.status == "note"} == {"data", "model"}


def test_the_papers_four_gpus_take_the_same_batch() -> None:
    plan = make_plan(glm(), 4, 80)
    assert plan.ok and text(plan, "batch") == "16 rows a step, 4 on each of 4 ranks"


def test_samples_of_beauty_are_its_training_rows() -> None:
    """198,502 reviews of 22,363 users: all but two a user, and no first row is asked for what comes next."""
    told = line(make_plan(glm(), 16, 80), "samples")
    assert told.startswith("rating 153,776, sequential 131,413, explanation 153,776, review 153,776, direct ")
    assert told.endswith("RecSysLLM, section on the set-up; what is prepared may differ")


def test_a_step_holds_about_the_papers_texts() -> None:
    """32 on each of four GPUs."""
    steps = line(make_plan(glm(), 16, 80), "corpus recsysllm")
    assert 110 <= int(steps.split(" a step")[0].split()[-1]) <= 145


def test_each_method_has_its_corpus_and_its_masks() -> None:
    """Masks of single tokens are more spans; the sequential family alone is fewer texts."""
    plan = make_plan(shipped("recsysllm/ablation_beauty"), 16, 80)
    found = [label.removeprefix("corpus ") for label, _ in plan.arithmetic if label.startswith("corpus")]
    assert found == ["recsysllm", "token_masks", "permuted", "one_d", "sequential_only"]
    assert line(plan, "corpus sequential_only").startswith("131,413 prompts")
    whole, tokens, permuted = (line(plan, f"work {name}").split()[0] for name in found[:3])
    assert int(whole.replace(",", "")) < int(tokens.replace(",", "")) and whole == permuted


def made(size: ModelSize) -> Any:
    shared: dict[str, Any] = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
    }
    if isinstance(size, GlmSize):
        return GlmForCausalLM(GlmConfig(**shared, head_dim=size.head_width, pad_token_id=0))
    return LlamaForCausalLM(LlamaConfig(**shared))


@pytest.mark.parametrize("size", [LLAMA, GLM], ids=["llama", "glm"])
@pytest.mark.parametrize("lora", [{}, {"r": 3, "modules": ["q_proj", "down_proj"]}])
def test_trained_parameters_are_those_of_the_network(size: ModelSize, lora: dict[str, Any]) -> None:
    """The updates and both tables, of which the inner positions' is the largest weight here."""
    config = recsysllm(pretrain={"lora": lora, "context": 300})
    assert config.pretrain.lora is not None
    llm = made(size).requires_grad_(False)
    adapt(llm, config.pretrain.lora)
    network = BlankInfiller(llm, Sizes(size.vocab, size.hidden, 302, 1.0))
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    parts = trained_parts(config, size)
    assert (parts.parameters, parts.largest) == (sum(trained), max(trained))


def test_what_is_trained_is_told() -> None:
    """Rank 8 on the linear layers of 40 GLM blocks, 5 marks and 4,098 inner positions."""
    each = (2 * 4096 + 2 * 4096 + 2 * (4096 + 256)) + (4096 + 27392) + (13696 + 4096)
    total = 40 * 8 * each + (5 + 4098) * 4096
    assert line(make_plan(glm(), 16, 80), "trained") == f"{total:,} parameters, the LLM is frozen"
    full = make_plan(shipped("recsysllm_llama2_7b"), 16, 80)
    assert line(full, "tables").startswith(f"{(5 + 4098) * 4096:,} parameters of marks and intra ids")
    assert line(full, "parameters").startswith("6,738,415,616 ")


def test_lora_needs_less_than_all_weights() -> None:
    """On one GPU of 80 GiB, for a model of 9.4e9 parameters."""
    assert make_plan(glm(), 1, 80).ok
    full = make_plan(glm(("pretrain.lora", "null")), 1, 80)
    assert not full.ok and "parallel.offload_optimizer: true" in text(full, "training memory")


def test_modules_that_are_no_layers_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^pretrain\.lora\.modules: dense named, no layer of this model: "):
        make_plan(glm(("pretrain.lora.modules", "[dense]")), 16, 80)


def test_each_beam_has_a_cache() -> None:
    plan = make_plan(shipped("recsysllm_llama2_7b", ("ask.batch", "8")), 16, 80)
    told = text(plan, "ranking memory")
    assert plan.ok and status(plan, "ranking memory") == "note"
    assert "lower ask.batch, or run the stages generate_* on a GPU of" in told
    longest = outline_of(plan_config("8"), KNOWN["meta-llama/Llama-2-7b-hf"]).asking.longest_tokens
    cache = 8 * 20 * longest * 2 * 2 * 32 * 4096
    assert f"{cache / 2**30:,.0f} GiB of cache on one GPU" in told


def plan_config(batch: str) -> RunConfig:
    return shipped("recsysllm_llama2_7b", ("ask.batch", batch))


@pytest.mark.parametrize(
    ("data", "families"),
    [
        ({"source": "movielens", "variant": "100k"}, ("rating", "sequential", "direct")),
        (AMAZON, FAMILIES),
        ({**AMAZON, "texts": False}, ("rating", "sequential", "direct")),
    ],
)
def test_families_that_a_source_feeds(data: dict[str, Any], families: tuple[FamilyName, ...]) -> None:
    assert planned_families(recsysllm(data=data)) == families


def table(**columns: str) -> dict[str, Any]:
    rows = {"path": "rows.csv", "columns": {"user": "u", "item": "i", **columns}}
    return {"source": "table", "name": "Shop", "interactions": rows}


@pytest.mark.parametrize(
    ("columns", "families"),
    [
        ({}, {"sequential", "direct"}),
        ({"rating": "r"}, {"rating", "sequential", "direct"}),
        ({"summary": "s"}, {"sequential", "direct", "explanation"}),
        ({"rating": "r", "review": "t", "summary": "s"}, set(FAMILIES)),
    ],
)
def test_families_that_a_table_feeds(columns: dict[str, str], families: set[str]) -> None:
    assert set(planned_families(recsysllm(data=table(**columns)))) == families


def test_a_family_that_the_data_cannot_feed() -> None:
    config = recsysllm(data=table(rating="r"), corpus={"families": ["sequential", "review"]})
    with pytest.raises(UserError, match=r"corpus\.families: review needs .* that Shop does not have"):
        make_plan(config, 0, 8)


def test_all_sets_of_templates_are_read(tmp_path: Path) -> None:
    plan = make_plan(recsysllm(data=AMAZON), 1, 80)
    assert (status(plan, "templates"), text(plan, "templates")) == ("ok", "recsysllm")
    wrong = make_plan(recsysllm(corpus={"templates": "mine"}), 1, 80)
    assert status(wrong, "templates") == "FAIL" and "rating.yaml: no such file" in text(wrong, "templates")


def test_a_sample_of_the_texts() -> None:
    plan = make_plan(recsysllm(corpus={"samples": 700}), 0, 16)
    assert line(plan, "samples") == "rating 700, sequential 700, direct 700: corpus.samples"
    assert line(plan, "corpus recsysllm").startswith("2,100 prompts")


def test_counted_data_take_the_place_of_the_papers(tmp_path: Path) -> None:
    card = tmp_path / "data/card.json"
    card.parent.mkdir()
    card.write_text(json.dumps({"measured": {"users": 50, "items": 70, "interactions": 500}}))
    told = line(make_plan(glm(("run_dir", str(tmp_path))), 16, 80), "samples")
    assert told.startswith("rating 400, sequential 350, ") and told.endswith(f"counted in {card}")


def test_a_long_list_is_told_and_fails_nothing() -> None:
    plan = make_plan(glm(("corpus.title_words", "null")), 16, 80)
    told = text(plan, "lengths")
    assert status(plan, "lengths") == "note" and plan.ok
    assert told.endswith("lower corpus.history_items, corpus.negatives or corpus.title_words")


def test_the_fullest_row_has_all_its_tokens_for_targets() -> None:
    """A document-level blank may be the whole text."""
    (training,) = outline_of(recsysllm(), None).trainings
    assert training.corpora[0].answer_share == 1
    half = outline_of(recsysllm(mask={"document_max": 0.6}), None).trainings[0]
    assert half.corpora[0].answer_share == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["recsysllm_quickstart", "recsysllm/measured_musical_instruments"])
def test_small_configs_on_a_laptop(name: str) -> None:
    plan = make_plan(shipped(name), 0, 8)
    assert plan.ok and "CPU ranks that share 8.0 GiB" in plan.title, format_plan(plan)


class Texts:
    """Rendered samples as a source of rows."""

    def __init__(self, rendered: list[Rendered]) -> None:
        self.rendered = rendered

    def ids(self, index: int) -> np.ndarray:
        return self.rendered[index].ids_T

    def record(self, index: int) -> dict[str, Any]:
        text = self.rendered[index]
        return {"entity_spans": text.entity_spans, "num_prompt": text.num_prompt}


REAL: dict[str, dict[str, Any]] = {
    "ml-100k": {"source": "movielens", "variant": "100k"},
    "amazon2014-musical-instruments": {"source": "amazon2014", "threshold": 0},
}


@pytest.mark.parametrize("name", REAL)
def test_estimates_against_real_texts(shared_data: Path, smollm2: Path, name: str) -> None:
    """Lengths by family, the longest text, and what the masks of both units add."""
    data = {**REAL[name], "path": str(shared_data / name)}
    config = recsysllm(data=data, corpus={"history_items": 10, "samples": NUM_TEXTS}, positive_rating=None)
    module = source_module(config.data.source)
    tables = module.load(module.Settings(**config.data.model_dump(exclude={"source"})), Path())
    splits = leave_one_out(tables, None)
    size = DataSize(tables.num_users, tables.num_items, tables.interactions.num_rows / tables.num_users, "")
    if config.data.source == "amazon2014":  # the folder has no metadata: keys stand for titles
        config = recsysllm(
            data={"source": "amazon2014", "reviews": "reviews_x_5.json.gz"}, corpus=config.corpus.model_dump()
        )
    options = TaskOptions(one_line_titles(tables.titles), "item", **scale(tables))
    world = World(tables, splits, splits, options, config.corpus)
    tokenizer = load_tokenizer(str(smollm2))
    renderer, spelled = Renderer(tokenizer, start=True), token_texts(vocabulary(tokenizer))
    families = planned_families(config)
    assert list(families) == feedable(tables)
    longest, grown = 0, {"entity": [0, 0], "token": [0, 0]}
    for family in families:
        templates = seen_templates(load_set("recsysllm", WORK[family].family))
        texts = Texts([renderer.render(sample) for sample in training_samples(world, family, templates)])
        lengths = [len(text.ids_T) for text in texts.rendered]
        assert np.mean(usual_texts(config, family, size)) == pytest.approx(np.mean(lengths), rel=0.3), family
        longest = max(longest, *lengths)
        for units in ("entity", "token"):
            settings = config.mask.model_copy(update={"units": units})
            ids = mask_ids(len(spelled))
            rows = BlankRows(texts, settings, 0.5, ids, spelled, renderer.prefix_ids, 0)
            masked = sum(len(rows.masked(0, index).ids_T) for index in range(len(lengths)))
            grown[units] = [grown[units][0] + masked, grown[units][1] + sum(lengths)]
        unlimited = config.model_copy(update={"corpus": config.corpus.model_copy(update={"samples": None})})
        rows_there = len(world.split(family).train)
        left_out = tables.num_users if family == "sequential" else 0
        assert num_samples(unlimited, family, size) == pytest.approx(rows_there - left_out, rel=0.01)
    assert longest <= longest_text(config, families) < 1.6 * longest
    for units, method in (("entity", "recsysllm"), ("token", "token_masks")):
        estimate = growth(config, METHODS[method], families, size)  # type: ignore[index]
        assert estimate - 1 == pytest.approx(grown[units][0] / grown[units][1] - 1, abs=0.012)
