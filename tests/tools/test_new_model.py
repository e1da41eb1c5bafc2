"""`recloom new-model`: a random LLaMA that loads, the same for the same seed; clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from recloom.data_shards.artifacts import file_sha256
from recloom.launcher.cli import main
from recloom.trainer.models import load_tokenizer


def write(tokenizer: Path, out: Path, *options: str) -> int:
    return main(["new-model", str(tokenizer), "--out", str(out), "--layers", "1", "--hidden", "32", *options])


def test_loads_with_the_tokenizer(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    assert write(tiny_llama, tmp_path / "model") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert f"{model.num_parameters():,} parameters" in capsys.readouterr().out
    assert tokenizer("Toy Story\n").input_ids == load_tokenizer(str(tiny_llama))("Toy Story\n").input_ids


def test_same_seed_same_weights(tiny_llama: Path, tmp_path: Path) -> None:
    sums = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert write(tiny_llama, tmp_path / name, "--seed", seed) == 0
        sums.append(file_sha256(tmp_path / name / "model.safetensors"))
    assert sums[0] == sums[1] != sums[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--hidden", "30"), "multiple of 8"),
        (("--layers", "0"), "--layers 0"),
        (("--heads", "0"), "--heads 0"),
    ],
)
def test_sizes_that_do_not_fit(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert write(tiny_llama, tmp_path / "model", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_never_over_another_folder(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(tiny_llama, tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
