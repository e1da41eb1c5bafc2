"""The YAML reader: every mistake at once, one sentence each, and nothing but ConfigError for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from recloom.trainer.config_io import ConfigError, config_dict, dump_config, read_config
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig

PLAIN: dict[str, Any] = {
    "name": "try",
    "system": "llama4rec",
    "data": {"source": "movielens", "variant": "100k"},
    "model": {"path": "smollm2-135m-instruct"},
    "backbones": {
        "direct": {"model": "lightgcn"},
        "sequential": {"model": "sasrec"},
        "rating": {"model": "deepfm"},
    },
}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write(tmp_path, yaml.safe_dump(PLAIN))


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def with_settings(folder: Path, **dotted: Any) -> Path:
    """PLAIN with `a__b=value` for a.b."""
    raw = json.loads(json.dumps(PLAIN))
    for name, value in dotted.items():
        *parents, last = name.split("__")
        block = raw
        for parent in parents:
            block = block.setdefault(parent, {})
        block[last] = value
    return write(folder, yaml.safe_dump(raw))


def problems(path: Path, *overrides: tuple[str, str]) -> list[str]:
    """The sentences of a refused config, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        read_config(path, list(overrides))
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{path}: ") and line.endswith((".", "?")) for line in lines), lines
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_three_mistakes_give_three_sentences(tmp_path: Path) -> None:
    path = with_settings(
        tmp_path, training__learning_rat=1e-4, prompts__history_items="many", parallel__cpu_ranks=0
    )
    assert problems(path) == [
        "parallel.cpu_ranks = 0: input should be greater than or equal to 1 "
        "(Ranks started on a machine without a GPU).",
        "prompts.history_items = 'many': input should be a valid integer, unable to parse string as an "
        "integer (Latest history items shown).",
        "training.learning_rat: unknown setting; did you mean 'learning_rate'?",
    ]


def test_an_unknown_source_or_backbone_is_one_sentence_whatever_stands_beside_it(tmp_path: Path) -> None:
    path = with_settings(
        tmp_path, data__source="movielenz", backbones__direct={"model": "lightgcm", "layers": 3}
    )
    assert problems(path) == [
        "data.source = 'movielenz': not one of the known values; did you mean 'movielens'?",
        "backbones.direct.model = 'lightgcm': not one of the known values; did you mean 'lightgcn'?",
    ]


def test_a_backbone_of_another_task_is_refused(tmp_path: Path) -> None:
    (text,) = problems(with_settings(tmp_path, backbones__direct={"model": "sasrec"}))
    assert text.startswith("backbones.direct.model = 'sasrec': not one of the known values;")


def test_missing_settings_are_named_with_their_choices(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "name: x\ndata: {variant: 100k}\n")) == [
        "system: required and not given; add it to the YAML, one of: a_llmrec, laser, llama4rec, recsysllm.",
        "data.source: required and not given; add it to the YAML, one of: amazon2014, amazon2018, "
        "bookcrossing, movielens, table.",
        "model: required and not given; add it to the YAML.",
        "backbones: required and not given; add it to the YAML.",
    ]


def test_an_unknown_system_is_one_sentence_beside_what_can_still_be_judged(tmp_path: Path) -> None:
    """What only some system knows is no mistake of its own; what all share is judged."""
    path = with_settings(
        tmp_path,
        system="lama4rec",
        prompts__no_such=1,
        training__epochs=0,
        parallel__cpu_ranks=0,
        data__source="movielenz",
        backbones={},
    )
    assert [text.partition("(")[0] for text in problems(path)] == [
        "system = 'lama4rec': not one of the known values; did you mean 'llama4rec'?",
        "data.source = 'movielenz': not one of the known values; did you mean 'movielens'?",
        "parallel.cpu_ranks = 0: input should be greater than or equal to 1 ",
        "backbones: no task is named, so there is nothing to do: add direct, sequential or rating.",
    ]


@pytest.mark.parametrize("system", ["zzz", 5, None, ["llama4rec"], {"a": 1}])
def test_a_system_near_nothing_lists_the_systems(tmp_path: Path, system: Any) -> None:
    (text,) = problems(with_settings(tmp_path, system=system))
    assert text.startswith(f"system = {system!r}: not one of the known values;")
    assert text.endswith("choose one of: a_llmrec, laser, llama4rec, recsysllm.") or text.endswith(
        "did you mean 'llama4rec'?"
    )


def test_a_system_does_not_take_the_settings_of_another(tmp_path: Path) -> None:
    (text,) = problems(with_settings(tmp_path, align__width=64))
    assert text.startswith("align: unknown setting; ")


def test_a_wrong_word_in_a_list_is_told_with_its_choices(tmp_path: Path) -> None:
    path = with_settings(tmp_path, system="a_llmrec", methods=["llm_only", "talrec"])
    assert "methods.1 = 'talrec': not one of the known values; did you mean 'tallrec'?" in problems(path)


def test_settings_of_a_source_and_of_a_backbone_are_checked(tmp_path: Path) -> None:
    path = with_settings(tmp_path, data__variant="10m", backbones__rating={"model": "deepfm", "drpout": 0.1})
    found = problems(path)
    assert found[0].startswith("data.variant = '10m': not one of the known values;")
    assert found[1:] == ["backbones.rating.drpout: unknown setting; did you mean 'dropout'?"]


def test_a_setting_in_the_wrong_block_is_pointed_to_the_right_one(tmp_path: Path) -> None:
    path = with_settings(tmp_path, training__zero_stage=3, learning_rate=1e-4)
    assert problems(path) == [
        "training.zero_stage: unknown setting; did you mean 'parallel.zero_stage'?",
        "learning_rate: unknown setting; did you mean 'training.learning_rate'?",
    ]


def test_an_unknown_name_near_nothing_lists_what_there_is(tmp_path: Path) -> None:
    (text,) = problems(with_settings(tmp_path, evaluate__zzz=1))
    assert text == "evaluate.zzz: unknown setting; known here: ablation, alpha_1, alpha_2, ks, utility_c."


# Each pair breaks one rule between two fields.
TOGETHER = [
    (dict(prompts__answer_items=11), "prompts.answer_items = 11: more than prompts.candidates = 10"),
    (dict(prompts__prediction_items=12), "prompts.prediction_items = 12: more than prompts.candidates = 10"),
    (dict(training__pack_length=4096), "training.pack_length = 4096: more than training.context = 2048"),
    (dict(rank__top_k=20), "rank.top_k = 20: differs from prompts.candidates = 10"),
    (dict(evaluate__ks=[3, 50]), "evaluate.ks = [3, 50]: reaches beyond rank.top_k = 10"),
    (dict(bulk__max_model_len=256), "rank.max_answer_tokens = 256: leaves no room for a prompt"),
    (dict(disliked_below=5), "disliked_below = 5: above positive_rating = 4"),
    (dict(backbones={}), "backbones: no task is named"),
    (
        dict(parallel__zero_stage=0, parallel__offload_optimizer=True),
        "parallel.offload_optimizer = True: needs ZeRO",
    ),
    (dict(run_dir=".", data__path="data/ml-100k"), "run_dir = '.': the data in 'data/ml-100k' lie inside"),
]


@pytest.mark.parametrize(("changes", "start"), TOGETHER)
def test_rules_between_fields(tmp_path: Path, changes: dict[str, Any], start: str) -> None:
    (text,) = problems(with_settings(tmp_path, **changes))
    assert text.startswith(start)


def test_all_broken_rules_and_all_wrong_fields_are_told_at_once(tmp_path: Path) -> None:
    path = with_settings(
        tmp_path,
        name="../x",
        prompts={"candidates": 5, "answer_items": 6, "prediction_items": 5},
        training={"pack_length": 4096, "epochs": 0},
        evaluate={"ks": []},
    )
    assert [text.split(":")[0] for text in problems(path)] == [
        "name = '../x'",
        "training.epochs = 0",
        "evaluate.ks = []",
        "prompts.answer_items = 6",
        "training.pack_length = 4096",
        "rank.top_k = 10",
    ]


def test_a_rule_about_a_field_that_is_wrong_or_misspelt_is_left_out(tmp_path: Path) -> None:
    """Its default would be judged instead of what was meant."""
    path = with_settings(
        tmp_path, prompts={"candidates": 5, "answer_itmes": 5, "prediction_items": "five"}, rank__top_k=5
    )
    assert [text.split(":")[0] for text in problems(path)] == [
        "prompts.prediction_items = 'five'",
        "prompts.answer_itmes",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "-1"),
        ("name", ".."),
        ("training.learning_rate", ".inf"),
        ("training.learning_rate", ".nan"),
        ("training.betas", "[0.9, 1.0]"),
        ("evaluate.ks", "[0, 3]"),
        ("evaluate.alpha_1", "[]"),
        ("evaluate.alpha_2", "[1.5]"),
        ("model", "smollm2"),
        ("parallel.zero_stage", "'3'"),
        ("augment", "[]"),
    ],
)
def test_values_out_of_range_or_of_the_wrong_kind(plain: Path, name: str, value: str) -> None:
    (text,) = problems(plain, (name, value))
    assert text.startswith(name)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("training.learning_rate", "1e-4", 1e-4),  # YAML 1.1 reads 1e-4, without a dot, as text
        ("training.learning_rate", "2.0e-5", 2e-5),
        ("training.betas", "[0.9, 0.95]", (0.9, 0.95)),
        ("training.gradient_checkpointing", "false", False),
        ("evaluate.ks", "[1, 3, 5, 10]", (1, 3, 5, 10)),
        ("evaluate.alpha_1", "[1e-1, 0.5]", (0.1, 0.5)),
        ("positive_rating", "null", None),
        ("augment.users", "", None),
        ("augment.users", "7", 7),
        ("name", "2024-11-05", "2024-11-05"),
        ("name", "7", "7"),
        ("backbones.rating", "null", None),
        ("prompts.item_noun", "board game", "board game"),
    ],
)
def test_overrides(plain: Path, name: str, text: str, value: Any) -> None:
    config: Any = read_config(plain, [(name, text)])
    for part in name.split("."):
        config = getattr(config, part)
    assert config == value and type(config) is type(value)


def test_an_override_reaches_nested_and_absent_blocks(plain: Path) -> None:
    config = read_config(plain, [("backbones.direct.embedding", "32"), ("bulk.chunk_size", "8")])
    assert config.backbones.direct.embedding == 32 and config.bulk.chunk_size == 8


def test_an_override_of_an_anchored_block_changes_that_block_only(tmp_path: Path) -> None:
    text = yaml.safe_dump(PLAIN | {"backbones": None}).replace("backbones: null", "")
    text += "backbones: {direct: &same {model: mf, embedding: 8}, sequential: {<<: *same, model: sasrec}}\n"
    config = read_config(write(tmp_path, text), [("backbones.direct.embedding", "16")])
    assert (config.backbones.direct.embedding, config.backbones.sequential.embedding) == (16, 8)
    assert config.backbones.sequential.model == "sasrec"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("training.epochs", "[1", "--training.epochs = '[1': not a YAML value"),
        ("training.epochs.x", "1", "training.epochs = {'x': 1}: input should be a valid integer"),
        ("name.x", "1", "--name.x: 'name' is a single value, not a block"),
        ("trainink.epochs", "1", "trainink: unknown setting; did you mean 'training'?"),
        ("", "1", "unknown setting"),
        ("training", "3", "training = 3: not a block of settings"),
    ],
)
def test_overrides_that_make_no_sense(plain: Path, name: str, value: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(plain, [(name, value)])
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\nseed: 1\nname: b\n", "the key 'name' is given twice"),
        ("training: {epochs: 1, epochs: 2}\n", "the key 'epochs' is given twice"),
        ("name: [a\n", "not valid YAML"),
        ("? [a]\n: 1\n", "the key ['a'] is no name"),
        ("1: x\n", "the key 1 is no name"),
        ("name: &loop [*loop]\n", "not valid YAML"),
        ("name: !!binary aGVsbG8=\n", "not valid YAML"),
        ("", "the file holds no settings"),
        ("- a\n- b\n", "the file holds no settings"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, text: str, told: str) -> None:
    (line,) = problems(write(tmp_path, text))
    assert told in line


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("name: \xe9".encode("latin-1"))
    (line,) = problems(path)
    assert "not valid YAML" in line


def test_a_missing_file_names_the_nearest(plain: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"konfig.yaml: no such config file.*Did you mean '.*/config.yaml'\?"
    ):
        read_config(plain.with_name("konfig.yaml"))
    with pytest.raises(ConfigError, match="no such config file"):
        read_config(plain.parent / "nowhere" / "config.yaml")


def test_the_resolved_config_reads_back_to_the_same(tmp_path: Path) -> None:
    path = with_settings(
        tmp_path,
        seed=7,
        positive_rating=None,
        training={"learning_rate": 2e-5, "betas": [0.9, 0.95]},
        augment={"users": 3},
        data={
            "source": "table",
            "name": "Bücher",
            "interactions": {"path": "a.csv", "columns": {"user": "u", "item": "i"}},
            "items": {"path": "b.csv", "columns": {"item": "i", "title": "t"}, "attributes": ["author"]},
        },
        backbones={"direct": {"model": "mf", "embedding": 16}},
    )
    first = read_config(path)
    again = read_config(write(tmp_path, dump_config(first)))
    assert config_dict(again) == config_dict(first)
    assert dump_config(again) == dump_config(first)
    assert first.data.items.attributes == ["author"] and first.training.learning_rate == 2e-5


def leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings, blocks included."""
    names = []
    for name, field in model.model_fields.items():
        names.append(f"{prefix}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += leaves(field.annotation, f"{prefix}{name}.")
    return names


NAMES = st.one_of(
    st.sampled_from(
        leaves(Llama4RecConfig) + ["data.source", "data.path", "backbones.direct.model", "backbones.rating"]
    ),
    st.text(alphabet="abc.<&*_1", max_size=12),
)
VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.booleans().map(str),
    st.sampled_from(
        ["null", "", "[]", "{}", "[1, 2]", "{a: 1}", "1e-4", "llama4rec", "movielens", "table", "mf"]
    ),
    st.text(max_size=12),
)


@settings(max_examples=40, deadline=None)
@given(overrides=st.lists(st.tuples(NAMES, VALUES), max_size=3))
def test_any_overrides_give_a_config_that_reads_back_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, overrides: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        config = read_config(write(folder, yaml.safe_dump(PLAIN)), overrides)
    except ConfigError as error:
        assert str(error)
        return
    assert config_dict(read_config(write(folder, dump_config(config)))) == config_dict(config)


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_as_a_file_gives_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("text")
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ConfigError):
        read_config(path)
