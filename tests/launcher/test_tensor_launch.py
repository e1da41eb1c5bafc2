"""`recloom run` with tensor parallelism, as typed, in every system: what one rank learns and writes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import small_a_llmrec
import small_laser
import small_recipe
import small_recsysllm
from small_recipe import write_config
from test_a_llmrec import ended, json_lines, typed
from test_run import recloom
from tiny_encoder import write_tiny_encoder
from tiny_models import write_tiny_model

# Of each system: the stage before the training, the last training, and its trained folders below tune/.
STAGES = {
    "llama4rec": ("instructions", "tune", ["llama4rec"]),
    "a_llmrec": ("prompts_text", "lora", ["a_llmrec", "tallrec"]),
    "laser": ("texts", "bitune_2_laser", ["laser_1", "laser_2"]),
    "recsysllm": ("questions", "pretrain_recsysllm", ["recsysllm"]),
}
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama4rec", "a_llmrec", "laser")]
TENSOR = ["--parallel.tensor", "2", "--parallel.cpu_ranks"]
Make = Callable[[str, Path], Path]


@pytest.fixture(scope="module")
def llm(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads that share two keys, and SmolLM2's words."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("llm")
    write_tiny_model(folder, "llama_tied", vocab_size=49152, max_position_embeddings=4096)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make(llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes FOLDER/config.yaml of a system, as short as can be."""

    def config_of(system: str, run: Path) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("files")
        if system == "llama4rec":
            return small_recipe.small_config(run, llm)
        if system == "a_llmrec":
            encoder = write_tiny_encoder(folder, small_a_llmrec.WORDS)
            methods = ["tallrec", "a_llmrec"]
            return small_a_llmrec.small_config(run, llm, encoder, methods=methods, genres=None)
        if system == "laser":
            shop = small_laser.write_shop(folder)
            blocks: dict[str, Any] = {"methods": ["laser"], "baselines": [], "stage_1": {"epochs": 1}}
            return small_laser.small_config(run, shop, llm, **blocks)
        no_backbones = dict.fromkeys(("direct", "sequential", "rating"))
        return small_recsysllm.small_config(
            run,
            small_recsysllm.write_shop(folder),
            llm,
            methods=["recsysllm"],
            backbones=no_backbones,
            corpus={"families": ["sequential"]},
        )

    def write(system: str, folder: Path) -> Path:
        return write_config(folder / "config.yaml", config_of(system, folder / "run"))

    return write


def losses(run: Path, key: str) -> np.ndarray:
    """Of the steps and of validation, in order."""
    rows = json_lines(run / f"tune/{key}/metrics.jsonl")
    names = ("loss", "validation_loss", "validation_N@10")
    return np.array([row[name] for row in rows for name in names if name in row])


def weights_in(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)}:{name}": weight for name, weight in load_file(path).items()}
    return found


@pytest.mark.parametrize("system", ["recsysllm", *OTHERS])
def test_two_ranks_of_a_group_learn_what_one_does(system: str, make: Make, tmp_path: Path) -> None:
    before, last, keys = STAGES[system]
    config = make(system, tmp_path)
    ended(typed("run", str(config), "--until", before))
    divided = tmp_path / "divided"
    shutil.copytree(tmp_path / "run", divided)
    ended(typed("run", str(config), "--until", last, "--parallel.cpu_ranks", "1"))
    options = ["--run_dir", str(divided), *TENSOR, "2"]
    printed = ended(recloom("run", str(config), "--until", last, *options))
    assert "on 2 ranks" in printed
    for key in keys:
        one, two = losses(tmp_path / "run", key), losses(divided, key)
        assert len(one) == len(two) >= 3
        np.testing.assert_allclose(two, one, atol=1e-5, rtol=1e-5, err_msg=key)
        assert_same_layout(tmp_path / f"run/tune/{key}/model", divided / f"tune/{key}/model")


def assert_same_layout(one: Path, two: Path) -> None:
    """The same files, settings, names, shapes and number formats; nearly the same numbers."""
    assert {p.relative_to(one) for p in one.rglob("*")} == {p.relative_to(two) for p in two.rglob("*")}
    for path in one.rglob("*.json"):
        if path.name != "manifest.json":  # which has checksums
            assert json.loads(path.read_text()) == json.loads((two / path.relative_to(one)).read_text())
    whole, gathered = weights_in(one), weights_in(two)
    assert list(whole) == list(gathered)
    for name, weight in whole.items():
        assert (weight.dtype, weight.shape) == (gathered[name].dtype, gathered[name].shape), name
        if not name.endswith("key.bias"):  # softmax does not see it: Adam scales a gradient of rounding up
            assert np.median(np.abs(weight - gathered[name])) < 1e-5, name


def test_heads_and_ranks_that_cannot_be_divided(make: Make, tmp_path: Path) -> None:
    """Before anything is made of the data, in a sentence."""
    config = str(make("recsysllm", tmp_path))
    done = typed("run", config, "--parallel.tensor", "4", "--parallel.cpu_ranks", "4")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "parallel.tensor = 4: the model's 2 key-value heads can't be shared evenly" in done.stderr
    ended(typed("run", config, "--until", "questions", *TENSOR, "3"))
    done = typed("run", config, "--until", "pretrain_recsysllm", *TENSOR, "3")
    assert done.returncode == 2
    assert "parallel.tensor = 2: 3 ranks can't form groups of 2" in done.stderr
