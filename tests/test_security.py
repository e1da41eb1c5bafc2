"""Files from outside run no code and lead nowhere else."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from tiny_encoder import write_tiny_encoder

from recloom.data_shards.errors import UserError
from recloom.data_shards.inside import inside
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import deepspeed_json, load_partitioned
from recloom.trainer.pickles import data_only
from recloom.trainer.sentence_encoder import SentenceEncoder
from recloom.trainer.systems.a_llmrec.align_checkpoint import CHECKPOINT, read_checkpoint


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16
    )


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def write_pickle(path: Path, touched: Path) -> None:
    """Weights beside a call; that it works is seen first."""
    torch.save({"weight": Touch(touched), "numbers": torch.zeros(2)}, path)
    torch.load(path, weights_only=False)
    assert touched.exists(), "the trap does not work"
    touched.unlink()


def pickled_model(folder: Path, touched: Path) -> Path:
    """A model folder whose weights are a pickle alone."""
    tiny_config().save_pretrained(folder)
    write_pickle(folder / "pytorch_model.bin", touched)
    return folder


def test_a_model_of_pickled_code_is_refused(tmp_path: Path) -> None:
    folder, touched = pickled_model(tmp_path / "model", tmp_path / "touched"), tmp_path / "touched"
    model = ModelBlock(path=str(folder), dtype="float32", attention="sdpa")
    settings = deepspeed_json(model, TrainingBlock(), ParallelBlock(zero_stage=0), 1)
    with pytest.raises(UserError, match="holds code, which is never run here: get the model as safetensors"):
        load_partitioned(str(folder), settings, model, gradient_checkpointing=False)
    assert not touched.exists()


def test_a_model_of_pickled_numbers_is_loaded(tmp_path: Path) -> None:
    config = tiny_config()
    made = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    torch.save(made.state_dict(), tmp_path / "pytorch_model.bin")
    model = ModelBlock(path=str(tmp_path), dtype="float32", attention="sdpa")
    settings = deepspeed_json(model, TrainingBlock(), ParallelBlock(zero_stage=0), 1)
    loaded = load_partitioned(str(tmp_path), settings, model, gradient_checkpointing=False)
    assert torch.equal(loaded.lm_head.weight, made.lm_head.weight)


def test_a_sentence_encoder_of_pickled_code_is_refused(tmp_path: Path) -> None:
    folder, touched = write_tiny_encoder(make(tmp_path / "encoder"), ["a"]), tmp_path / "touched"
    (folder / "model.safetensors").unlink()
    write_pickle(folder / "pytorch_model.bin", touched)
    with pytest.raises(UserError, match="holds code"):
        SentenceEncoder.load(folder)
    assert not touched.exists()


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_an_adapter_of_pickled_code_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = tiny_config()
    get_peft_model(LlamaForCausalLM(config), LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(
        tmp_path
    )
    (tmp_path / "adapter_model.safetensors").unlink()
    write_pickle(tmp_path / "adapter_model.bin", tmp_path / "touched")
    with pytest.raises(pickle.UnpicklingError):
        PeftModel.from_pretrained(LlamaForCausalLM(config), tmp_path)
    assert not (tmp_path / "touched").exists()


def test_a_checkpoint_of_the_alignment_that_holds_code_is_none(tmp_path: Path) -> None:
    write_pickle(tmp_path / CHECKPOINT, tmp_path / "touched")
    assert read_checkpoint(tmp_path, "any") is None
    assert not (tmp_path / "touched").exists()


def test_torch_load_runs_no_code_whatever_it_is_asked_for(tmp_path: Path) -> None:
    """DeepSpeed asks for whole objects, of which three classes of its own are let through."""
    write_pickle(tmp_path / "states.pt", tmp_path / "touched")
    with data_only([]), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "states.pt", weights_only=False)
    assert not (tmp_path / "touched").exists()
    torch.save({"kept": ParallelBlock}, tmp_path / "known.pt")
    with data_only([ParallelBlock]):
        assert torch.load(tmp_path / "known.pt", weights_only=False) == {"kept": ParallelBlock}


@pytest.mark.parametrize("stage", ["2", "3"])
def test_a_checkpoint_that_holds_code_is_neither_loaded_nor_converted(tmp_path: Path, stage: str) -> None:
    """Even where its checksums fit."""
    from ranks import run_ranks

    LlamaForCausalLM(tiny_config()).save_pretrained(tmp_path / "model")
    script = Path(__file__).parent / "trainer/trapped_ranks.py"
    run_ranks(script, 1, str(tmp_path / "model"), str(tmp_path), stage)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    """numpy's default, which nobody in our folders may switch off."""
    np.save(tmp_path / "rows.npy", np.array([Touch(tmp_path / "touched")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "rows.npy")
    assert not (tmp_path / "touched").exists()


UNSAFE = (
    "allow_pickle=True",
    "weights_only=False",
    "trust_remote_code=True",
    "pickle.load",
    "yaml.load(",
    "yaml.unsafe",
)
SAFE_LOADER = "yaml.load(text, Loader=UniqueKeyLoader)"  # a subclass of SafeLoader


def test_no_source_asks_for_whole_objects(repo_root: Path) -> None:
    found = []
    for folder in ("data_shards", "kernels", "trainer", "launcher", "tools", "benchmarks"):
        for path in (repo_root / folder).rglob("*.py"):
            text = path.read_text().replace(SAFE_LOADER, "")
            found += [f"{path.relative_to(repo_root)}: {word}" for word in UNSAFE if word in text]
            is_tar = "tarfile" in text and ("extractall(" in text or ".extract(" in text)
            found += [f"{path.relative_to(repo_root)}: unpacks a tar"] if is_tar else []
    assert found == []


# ---- names that lead out of a folder


@pytest.mark.parametrize("name", ["../beside", "a/../../beside", "/etc/passwd", "link/inside"])
def test_a_name_must_stay_in_its_folder(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "folder")
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="lies outside of"):
        inside(folder, name, folder / "modules.json")
    assert inside(folder, "a/b", folder / "x") == folder / "a/b"


def test_a_sentence_encoder_names_no_part_elsewhere(tmp_path: Path) -> None:
    folder = write_tiny_encoder(make(tmp_path / "encoder"), ["a"])
    shutil.copytree(folder, tmp_path / "other")
    parts = json.loads((folder / "modules.json").read_text())
    parts[0]["path"] = "../other"
    (folder / "modules.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match=r"modules.json: it names '../other', which lies outside"):
        SentenceEncoder.load(folder)
