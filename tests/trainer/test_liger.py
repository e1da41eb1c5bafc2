"""`model.liger`: the same model by Liger's kernels, or a sentence that says what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers.utils

from recloom.data_shards.errors import UserError
from recloom.trainer.liger import apply_liger, check_model_type

HERE = Path(__file__).resolve().parent


def test_logits_and_gradients_stay() -> None:
    """Float32, on CPU tensors in Triton's interpreter."""
    command = [sys.executable, str(HERE / "liger_interpreted.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["worst"] < 1e-4
    assert all(module.startswith("liger_kernel.") for module in found["modules"])


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="model.liger = true: its kernels need a GPU .*: set model.liger to"):
        apply_liger(SimpleNamespace())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.utils, "is_liger_kernel_available", lambda: False)
    with pytest.raises(
        UserError, match="model.liger = true: its package is not there: pip install liger-ker"
    ):
        apply_liger(SimpleNamespace())


def test_a_model_that_liger_does_not_know() -> None:
    check_model_type("llama")
    check_model_type("glm4")
    with pytest.raises(UserError, match="nothing for models of type opt .*llama.*: set model.liger to false"):
        check_model_type("opt")
