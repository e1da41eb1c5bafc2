"""`model.compile`: the same model with its norms, rotations and gated layers compiled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recloom.data_shards.errors import UserError

HERE = Path(__file__).resolve().parent


def test_losses_and_gradients_stay() -> None:
    """Float32, rows of three lengths; in a process of its own, because transformers' rotation is replaced."""
    done = subprocess.run(
        [sys.executable, str(HERE / "compiled_layers.py")], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["worst"].values()) < 1e-5
    assert found["regions"] == {"norm": 5, "gate": 2, "rotation": 1}
    assert found["compiled"] >= 3


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from recloom.trainer.compiled_regions import compile_regions

    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="model.compile = true: there is no C.. compiler .*: install one, or"):
        compile_regions(None)
