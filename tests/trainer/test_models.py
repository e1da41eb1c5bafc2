"""Where a base model comes from, beside the built-in one (that is tested with the quickstart)."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from recloom.data_shards.errors import UserError
from recloom.trainer.models import local_model, resolve_model


def test_a_folder_is_itself(tiny_llama: Path, tmp_path: Path) -> None:
    assert local_model(str(tiny_llama), tmp_path) == tiny_llama


def test_a_hub_id_without_the_hub_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model("nobody/no-such-model", tmp_path) == "nobody/no-such-model", "vLLM's to fetch"
    with pytest.raises(UserError, match="nobody/no-such-model") as caught:
        local_model("nobody/no-such-model", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_folder", "./no/such", "/no/such", "a/b/c"])
def test_neither_folder_nor_hub_id(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder: give 'smollm2-135m-instruct'"):
        local_model(name, tmp_path)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no config.json"):
        local_model(str(tmp_path), tmp_path)
