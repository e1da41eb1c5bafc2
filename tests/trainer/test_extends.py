"""Configs made of parts: `extends`, layers, and what takes the place of what."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloom.trainer.config_io import ConfigError, laid_over, read_config, read_yaml

names = st.sampled_from(["a", "b", "c"])
blocks = st.recursive(st.integers(), lambda inner: st.dictionaries(names, inner), max_leaves=8)
settings = st.dictionaries(names, blocks)


@given(settings, settings)
def test_the_upper_wins_and_nothing_else_is_lost(lower: dict, upper: dict) -> None:
    merged = laid_over(lower, upper)
    assert list(merged) == [*lower, *(name for name in upper if name not in lower)]
    for name, value in merged.items():
        if name not in upper:
            assert value == lower[name]
        elif isinstance(upper[name], dict) and isinstance(lower.get(name), dict):
            assert value == laid_over(lower[name], upper[name])
        else:
            assert value == upper[name]


def test_another_model_or_source_takes_the_place_whole() -> None:
    lower = {"direct": {"model": "lightgcn", "layers": 3}, "data": {"source": "movielens", "variant": "1m"}}
    upper = {"direct": {"model": "mf"}, "data": {"source": "table"}}
    assert laid_over(lower, upper) == upper
    assert laid_over(lower, {"direct": {"embedding": 8}})["direct"] == {
        "model": "lightgcn",
        "layers": 3,
        "embedding": 8,
    }


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_later_bases_and_the_files_own_settings_win(tmp_path: Path) -> None:
    write(tmp_path, one="x: {p: 1, q: 1}\ny: 1", two="extends: one.yaml\nx: {q: 2}", three="y: 3\nz: 3")
    write(tmp_path, top="extends: [two.yaml, three.yaml]\nz: 4")
    assert read_yaml(tmp_path / "top.yaml") == {"x": {"p": 1, "q": 2}, "y": 3, "z": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: [a.yaml]", "extends itself"),
        ("extends: [nowhere.yaml]", "nowhere.yaml: no such config file"),
        ("extends: 3", "extends = 3: name YAML files"),
    ],
)
def test_a_wrong_base_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, a=text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_a_layer_lies_over_the_config_and_an_override_over_both(repo_root: Path, tmp_path: Path) -> None:
    write(tmp_path, layer="seed: 3\nrank: {ranking: pointwise}\ntraining: {epochs: 7}")
    config = read_config(
        repo_root / "configs/llama4rec_quickstart.yaml",
        [("training.epochs", "2")],
        [tmp_path / "layer.yaml"],
    )
    assert (config.seed, config.rank.ranking, config.training.epochs) == (3, "pointwise", 2)
    assert config.rank.rating_users == 150, "what the layer leaves alone stays"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (("seeds", "[1, 2, 1]"), "seeds = [1, 2, 1]: one is there twice"),
        (("backbones", "{direct: {model: mf}}"), "rank.ranking = best: the LLM learns to rate"),
        (
            ("augment.attributes", "{names: [star], examples: [{title: X}]}"),
            "augment.attributes.examples: an example has title, give it star, title",
        ),
    ],
)
def test_settings_that_do_not_go_together(repo_root: Path, override: tuple[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(repo_root / "configs/llama4rec_quickstart.yaml", [("rank.ranking", "best"), override])
    assert sentence in str(error.value)
