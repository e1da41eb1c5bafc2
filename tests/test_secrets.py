"""Secrets of the environment are written nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "launcher"))

from small_recipe import small_config, write_config

from recloom.data_shards.errors import UserError, print_error
from recloom.data_shards.secrets import redacted
from recloom.trainer.config_io import ConfigError, build_config

TOKEN, PASSWORD = "hf_do_not_write_me_down", "open-sesame-4711"
SECRETS = {
    "HF_TOKEN": TOKEN,
    "WANDB_API_KEY": TOKEN[::-1],
    "SIGNING_KEY": TOKEN.upper(),
    "HTTPS_PROXY": f"http://me:{PASSWORD}@localhost:9",
}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (f"got {TOKEN}, thanks", "got ***, thanks"),
        (f"https://me:{PASSWORD}@host/simple: no route", "https://***@host/simple: no route"),
        ("hf://ghp_0123456789abcdef@host", "hf://***@host"),
        ("see https://huggingface.co/a@b and mail a@b.c", "see https://huggingface.co/a@b and mail a@b.c"),
        ("the tokenizer's folder", "the tokenizer's folder"),
    ],
)
def test_secrets_are_blacked_out(text: str, want: str) -> None:
    assert redacted(text, {"HF_TOKEN": TOKEN, "TOKENIZERS_PARALLELISM": "tokenizer"}) == want


def test_an_error_does_not_tell_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    print_error(UserError(f"401 for Bearer {TOKEN}."))
    assert capsys.readouterr().err == "401 for Bearer ***.\n"


@pytest.mark.parametrize("value", [f"https://me:{PASSWORD}@host/model", TOKEN])
def test_a_config_that_holds_a_secret_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    raw = small_config(tmp_path / "run", tmp_path)
    raw["model"]["path"] = value
    with pytest.raises(ConfigError, match="model.path: it holds a password or a token") as caught:
        build_config(raw, "x.yaml")
    assert value not in str(caught.value)


@pytest.mark.slow
def test_a_run_writes_no_secret_down(tiny_llama: Path, tmp_path: Path) -> None:
    """Up to the trained model: settings, environment, log, shards, checkpoints, manifests."""
    raw = small_config(tmp_path / "run", tiny_llama, epochs=1, keep_checkpoints=2)
    config = write_config(tmp_path / "config.yaml", raw)
    command = [str(Path(sys.executable).parent / "recloom"), "run", str(config), "--until", "tune"]
    done = subprocess.run(command, env=os.environ | SECRETS, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    suffixes = {path.suffix for path in files}
    assert {".json", ".txt", ".yaml", ".jsonl", ".tar", ".safetensors"} <= suffixes
    for secret in (TOKEN, TOKEN[::-1], TOKEN.upper(), PASSWORD):
        assert secret not in done.stdout + done.stderr
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_the_log_of_a_run_tells_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recloom.launcher.run import logged

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with logged(tmp_path / "log.txt"):
        print(f"401 for Bearer {TOKEN} at https://me:{PASSWORD}@host/x")
    assert (tmp_path / "log.txt").read_text() == "401 for Bearer *** at https://***@host/x\n"
