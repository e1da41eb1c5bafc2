"""The table of choices, what is exchanged, and LLaMA-2's shapes divided among 16 ranks without memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recloom.data_shards.errors import UserError
from recloom.launcher.cli import main
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import read_config
from recloom.trainer.parallel_layout import LLAMA, division_of
from recloom.trainer.plan import format_plan, make_plan, make_setup
from recloom.trainer.planning.changes import changes, fitting_changes
from recloom.trainer.planning.choices import Choice, choice_lines, make_choices, recommended
from recloom.trainer.planning.cluster import Cluster, make_cluster
from recloom.trainer.planning.memory import GIB, Setup, training_memory
from recloom.trainer.planning.model_size import find_model
from recloom.trainer.planning.outline import Training, outline_of
from recloom.trainer.planning.shapes import ModelSize
from recloom.trainer.planning.speed import ASSUMED, Speed, data_bytes, tensor_bytes

# What their config.json files say, and the published number of parameters.
SHAPES = {
    "7b": ((4096, 11008, 32, 32, 32), 6_738_415_616),
    "13b": ((5120, 13824, 40, 40, 40), 13_015_864_320),
    "70b": ((8192, 28672, 80, 64, 8), 68_976_648_192),
}


def llama(name: str) -> LlamaConfig:
    hidden, wide, layers, heads, kv_heads = SHAPES[name][0]
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )


def size_of(name: str, folder: Path) -> ModelSize:
    llama(name).save_pretrained(folder)
    size, _ = find_model(str(folder))
    assert size is not None
    return size


def on_meta(name: str) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(llama(name))


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_of_llama_2_on_the_meta_device(tmp_path: Path, name: str) -> None:
    counted = sum(parameter.numel() for parameter in on_meta(name).parameters())
    assert size_of(name, tmp_path).parameters == counted == SHAPES[name][1]


def held_by_rank(model: torch.nn.Module, tensor: int) -> list[int]:
    """Elements of each weight on one rank of a tensor-parallel group, by the engine's own rules."""
    found = []
    for name, parameter in model.named_parameters():
        layer = name.removesuffix(".weight")
        is_divided = division_of(layer, LLAMA) is not None or layer.endswith(("lm_head", "embed_tokens"))
        found.append(parameter.numel() // tensor if is_divided else parameter.numel())
    return found


@pytest.mark.parametrize("tensor", [1, 8])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["13b", "70b"])
def test_model_states_of_16_ranks_on_the_meta_device(
    tmp_path: Path, name: str, stage: int, tensor: int
) -> None:
    """Weight for weight, each padded to whole elements a rank, as ZeRO divides them."""
    held, ranks = held_by_rank(on_meta(name), tensor), 16 // tensor
    whole, part = sum(held), sum(-(-count // ranks) for count in held)
    weights, gradients, update = (part if stage >= least else whole for least in (3, 2, 1))
    memory = training_memory(setup_of(size_of(name, tmp_path), zero_stage=stage, tensor=tensor))
    assert memory.weights == pytest.approx(2 * weights, rel=0.001)
    assert memory.gradients == pytest.approx(2 * gradients, rel=0.001)
    assert memory.optimizer == pytest.approx(12 * update, rel=0.001)


SMALL = ModelSize(384, 1024, 4, 4, 4, 4000, 1024)


def setup_of(size: ModelSize, **changed: object) -> Setup:
    plain = Setup(size, "bfloat16", 3, 16, 2048, 500, 1000, checkpointing=False, offload=False)
    return replace(plain, **changed)  # type: ignore[arg-type]


def test_bytes_between_data_parallel_ranks() -> None:
    """The ZeRO paper's 2 P and 3 P at stages 0 and 3 (section 7), where a small model is gathered once;
    DeepSpeed's all-reduce at 1 and 2."""
    count = 2 * SMALL.parameters * 15 / 16
    moved = [data_bytes(setup_of(SMALL, zero_stage=stage), 1) / count for stage in range(4)]
    assert moved == pytest.approx([2, 3, 3, 2])
    again = [data_bytes(setup_of(SMALL, zero_stage=stage), 4) / count for stage in range(4)]
    assert again == pytest.approx([2, 3, 9, 8])
    assert data_bytes(setup_of(SMALL, ranks=1), 1) == 0
    large = replace(SMALL, layers=80_000)
    assert data_bytes(setup_of(large), 1) / (2 * large.parameters * 15 / 16) == pytest.approx(3, rel=0.01)


def test_bytes_between_tensor_parallel_ranks() -> None:
    """Seven all-reduces a LLaMA layer, eight with checkpointing, of the embedding, of the answers' states."""
    width = 2 * SMALL.hidden * 2 * (1 - 1 / 4)
    plain = tensor_bytes(setup_of(SMALL, tensor=4), 3)
    assert plain == pytest.approx(3 * width * (29 * 2048 + 500))
    repeated = tensor_bytes(setup_of(SMALL, tensor=4, checkpointing=True), 3)
    assert repeated - plain == pytest.approx(3 * width * 4 * 2048)
    assert tensor_bytes(setup_of(SMALL), 3) == 0


def planned(repo_root: Path, name: str, gpus: int, gib: float) -> tuple[RunConfig, Setup, Training, Cluster]:
    config = read_config(repo_root / f"configs/llama4rec_{name}.yaml", [])
    cluster = make_cluster(config, gpus, gib, 8)
    model, _ = find_model(config.model.path)
    assert model is not None
    training = outline_of(config, model).needed[0]
    return config, make_setup(config, model, training, cluster), training, cluster


def choices_of(repo_root: Path, name: str, gpus: int, gib: float) -> tuple[list[Choice], Setup, Cluster]:
    config, setup, training, cluster = planned(repo_root, name, gpus, gib)
    return make_choices(config, setup, training, cluster, ASSUMED), setup, cluster


def test_all_choices_of_16_gpus_are_there_once(repo_root: Path) -> None:
    """Stage 0 has nothing to offload: 2 + 3 x 4 cells for 1, 2, 4 and 8 ranks a group."""
    found, _, _ = choices_of(repo_root, "13b", 16, 80)
    assert len(found) == len({(choice.place, choice.column) for choice in found}) == 4 * 14


@pytest.mark.parametrize(
    ("name", "gpus", "gib"), [("7b", 16, 80), ("13b", 8, 40), ("70b", 32, 80), ("70b", 16, 80)]
)
def test_the_recommended_choice_fits_and_none_that_fits_is_much_faster(
    repo_root: Path, name: str, gpus: int, gib: float
) -> None:
    found, _, cluster = choices_of(repo_root, name, gpus, gib)
    best = recommended(found, cluster.usable)
    assert best is not None and best.memory <= 0.9 * gib * GIB
    fitting = [choice for choice in found if choice.memory <= cluster.usable]
    assert best.hours <= 1.1 * min(choice.hours for choice in fitting)


def test_one_gpu_holds_no_70b_and_that_is_said(repo_root: Path) -> None:
    found, setup, cluster = choices_of(repo_root, "70b", 1, 24)
    assert recommended(found, cluster.usable) is None
    lines = choice_lines(found, setup, cluster, ASSUMED)
    assert lines[-1].startswith("recommended: none")
    assert not any(">" in line for line in lines[1:-3])


def test_following_the_advice_makes_the_plan_fit(repo_root: Path) -> None:
    config = read_config(repo_root / "configs/llama4rec_70b.yaml", [])
    plan = make_plan(config, 16, 80)
    advice = plan.choices[0][1][-1]
    assert not plan.ok and advice.startswith("recommended: --")
    words = advice.removeprefix("recommended: ").split(" (")[0].split()
    overrides = [
        (name.removeprefix("--"), value) for name, value in zip(words[::2], words[1::2], strict=True)
    ]
    changed = make_plan(read_config(repo_root / "configs/llama4rec_70b.yaml", overrides), 16, 80)
    assert changed.ok and "recommended: what is configured" in changed.choices[0][1][-1]


def test_a_misfit_names_its_largest_parts_and_a_single_change(repo_root: Path) -> None:
    _, setup, _, cluster = planned(repo_root, "70b", 16, 80)
    told = format_plan(make_plan(read_config(repo_root / "configs/llama4rec_70b.yaml", []), 16, 80))
    assert "48 GiB of optimizer" in told and "it does not fit, but would with" in told
    single = dict(changes(setup))
    fitting = fitting_changes(setup, cluster.usable)
    assert "parallel.tensor: 2" in single and fitting
    for text in set(single) & set(fitting):
        assert training_memory(single[text]).total <= cluster.usable


def test_faster_links_and_machines_take_fewer_hours(repo_root: Path) -> None:
    config, setup, training, cluster = planned(repo_root, "13b", 16, 80)
    slow, wide, fast = (
        {(c.place, c.column): c.hours for c in make_choices(config, setup, training, cluster, speed)}
        for speed in (Speed(0.2, 5), Speed(0.2, 50), Speed(0.4, 50))
    )
    assert all(fast[key] <= wide[key] <= slow[key] for key in slow)
    assert fast[(1, 1), (False, False)] < wide[(1, 1), (False, False)] < slow[(1, 1), (False, False)]


def test_hpz_leaves_no_tensor_parallelism(repo_root: Path) -> None:
    config, setup, training, cluster = planned(repo_root, "13b", 16, 80)
    hpz = config.model_copy(update={"parallel": config.parallel.model_copy(update={"hpz_size": 8})})
    assert {c.setup.tensor for c in make_choices(hpz, setup, training, cluster, ASSUMED)} == {1}


def test_the_command_takes_what_is_assumed(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(repo_root / "configs/llama4rec_13b.yaml")
    assert main(["validate", config, "--gpus", "16", "--mfu", "0.4", "--bandwidth", "50"]) == 0
    told = capsys.readouterr().out
    assert "hours: 40% of 312 TFLOP/s, 50 GB/s between nodes (--mfu, --bandwidth)" in told
    assert main(["validate", config, "--mfu", "40"]) == 2
    assert capsys.readouterr().err.startswith("--mfu = 40: must be above 0 and at most 1")


def test_cpu_ranks_get_no_hours(repo_root: Path) -> None:
    plan = make_plan(read_config(repo_root / "configs/llama4rec_quickstart.yaml", []), 0, 8)
    table = "\n".join(plan.choices[0][1])
    assert "offload" not in table and " h" not in table.replace(" hold", "") and "*" in table


@pytest.mark.parametrize(("mfu", "bandwidth"), [(0.0, 25.0), (1.5, 25.0), (0.2, 0.0)])
def test_what_cannot_be_is_refused(mfu: float, bandwidth: float) -> None:
    from recloom.trainer.planning.speed import make_speed

    with pytest.raises(UserError, match="must be above 0"):
        make_speed(mfu, bandwidth)
