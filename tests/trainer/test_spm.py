"""Folders that hold no more than a SentencePiece file: the ids are those of the `sentencepiece` library."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer, fingerprint
from recloom.data_shards.samples import Entity, Literal, Sample, Segment, Slot, sample_text
from recloom.trainer.models import load_tokenizer
from recloom.trainer.spm import is_sentencepiece_only

ODD = [
    *("", " ", "  ", " a", "  a", "a ", "\n", "\na", " \n a", "\t", "\r\n", "\x00", "\u3000x", "a     b"),
    *(
        "</s>",
        "<s>",
        "<unk>",
        "<0x0A>",
        "a</s>b",
        "▁",
        "▁▁a",
        "a▁",
        "é",
        "e\u0301",
        "東京\n",
        "aaaaaaaaaaaaa",
    ),
    *("🎬👨‍👩‍👧", "עברית", "\u200b", "\ufeffx", "\u0301", "ﬁ", "Ⅳ", "𝔘", "a\u00a0b"),
]
ALPHABETS = (" aaab\n", "theinr s1=*-.", " -=*▁<s>/\n#")
PLAIN: dict[str, Any] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
BYTES = {**PLAIN, "byte_fallback": True}


@pytest.fixture(scope="module")
def llama2(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that has config.json and tokenizer.model alone."""
    folder = tmp_path_factory.mktemp("llama2")
    shutil.copy(shared_data / "llama2-tokenizer" / "tokenizer.model", folder)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 32000}')
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a small model of the given settings."""

    def make(**settings: Any) -> Path:
        words = ["heat", "alien", "the thing", "dead man walking", "Toy Story (1995)", "</s> <s>", "a  b"]
        lines = [f"{first} and {second}" for first in words for second in words]
        model = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            minloglevel=2,
            hard_vocab_limit=False,
            **settings,
        )
        (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
        return tmp_path

    return make


def random_texts(count: int) -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(count):
        yield "".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 40)))
    ranges = ((1, 0x2FF), (0x370, 0x6FF), (0x3000, 0x9FFF), (0x1F000, 0x1FFFF))
    for _ in range(count // 4):
        yield "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 20)))


def titles(shared_data: Path) -> list[str]:
    """Titles of three data sets, with their authors and brands where the line has them."""
    ml100k = (shared_data / "ml-100k" / "u.item").read_text(encoding="latin-1").splitlines()
    ml1m = (shared_data / "ml-1m" / "movies.dat").read_text(encoding="latin-1").splitlines()
    books = (shared_data / "bookcrossing-subset").glob("*Books*")
    lines = [line for path in books for line in path.read_text(errors="replace").splitlines()]
    return [*(line.split("|")[1] for line in ml100k), *(line.split("::")[1] for line in ml1m), *lines]


def different(folder: Path, tokenizer: Any, texts: list[str]) -> list[str]:
    """The texts for which the library gives other ids."""
    library = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    got = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
    return [text for text, ids in zip(texts, got, strict=True) if ids != library.encode(text)]


def test_llama2_ids_are_the_librarys(llama2: Path, shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(llama2))
    real = titles(shared_data)
    assert len(real) > 20_000 and tokenizer.is_fast
    assert different(llama2, tokenizer, real) == []
    assert different(llama2, tokenizer, [*ODD, *random_texts(4000)]) == []


def test_llama2_has_its_start_token_and_one_space_before_a_text(llama2: Path) -> None:
    tokenizer = load_tokenizer(str(llama2))
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("Toy Story").input_ids)
    assert pieces == ["<s>", "▁Toy", "▁Story"]
    assert tokenizer.convert_ids_to_tokens(tokenizer(" Toy").input_ids) == ["<s>", "▁", "▁Toy"]
    assert tokenizer.decode(tokenizer("  a  b\n c ").input_ids, skip_special_tokens=True) == "  a  b\n c "
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.name_or_path == str(llama2)


def test_the_folders_settings_go_first(llama2: Path, shared_data: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(shared_data / "llama2-tokenizer" / name, tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert different(tmp_path, tokenizer, [*ODD, *random_texts(1000)]) == []
    assert tokenizer.pad_token == "<unk>" and tokenizer.padding_side == "left"
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    end = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": False}
    ends = {"add_bos_token": False, "add_eos_token": True, "eos_token": {**end, "single_word": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **ends}))
    ids = load_tokenizer(str(tmp_path))("a").input_ids
    assert ids == [*load_tokenizer(str(llama2))("a").input_ids[1:], tokenizer.eos_token_id]


def test_a_saved_copy_is_the_same_tokenizer(llama2: Path, tmp_path: Path) -> None:
    """Tuned models are written with the tokenizer of their base model."""
    tokenizer = load_tokenizer(str(llama2))
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert not is_sentencepiece_only(tmp_path) and fingerprint(again) == fingerprint(tokenizer)
    assert again(" Toy  Story\n").input_ids == tokenizer(" Toy  Story\n").input_ids


def prompt(titles: list[str]) -> list[Segment]:
    segments: list[Segment] = [Literal(" Candidates:\n")]
    for number, title in enumerate(titles):
        segments += [
            Literal(f"{number}. "),
            Entity(title, "item", number),
            Literal(" \n" if number % 3 else "\n\n"),
        ]
    return [*segments, Literal("Output:\n")]


def test_the_renderer_takes_it(llama2: Path, shared_data: Path) -> None:
    """Lines compose to what the library gives for the whole text; spans cover what the pieces spell."""
    library = SentencePieceProcessor(model_file=str(llama2 / "tokenizer.model"))
    renderer = Renderer(load_tokenizer(str(llama2)), start=True)
    rng = random.Random(1)
    pool = [*titles(shared_data), "東京物語 (1953)", "🎬", " Été", "a  b ", "</s>"]
    for _ in range(30):
        segments = prompt(rng.sample(pool, 8))
        sample = Sample("k", tuple(segments), (Literal("4"),), {})
        rendered = renderer.render(sample)
        ids = rendered.ids_T.tolist()
        text = sample_text(segments)
        assert ids == [1, *library.encode(text + "4"), 2]
        assert ids[: rendered.num_prompt] == renderer.render_prompt(segments) == [1, *library.encode(text)]
        for start, end, _, number in rendered.entity_spans:
            title = segments[2 + 3 * (number or 0)]
            assert isinstance(title, Entity)
            assert title.text in text and library.decode(ids[start:end]).strip() == title.text.strip()


def test_slots_and_a_vector_at_the_head(llama2: Path) -> None:
    renderer = Renderer(load_tokenizer(str(llama2)), start=True)
    ids, slots = renderer.render_slots([Slot("user", 3), Literal(" likes\n"), Entity("Heat", "item", 1)])
    assert ids[0] == 1 and slots == [(1, "user", 3)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        BYTES,
        PLAIN,
        {**BYTES, "add_dummy_prefix": False, "user_defined_symbols": ["\n", "<item>", "▁▁"]},
        {**BYTES, "user_defined_symbols": ["\n", "#"]},
        {**BYTES, "allow_whitespace_only_pieces": True},
        {"normalization_rule_name": "nmt_nfkc_cf"},
    ],
    ids=["nfkc", "bytes", "plain", "symbols", "newline", "spaces", "lower case"],
)
def test_other_bpe_models(trained: Callable[..., Path], settings: dict[str, Any]) -> None:
    folder = trained(model_type="bpe", vocab_size=400, **settings)
    tokenizer = load_tokenizer(str(folder))
    texts = [*ODD, *random_texts(2000)]
    if not settings.get("byte_fallback"):
        texts = [text for text in texts if all(ord(mark) < 0x300 for mark in text)]
    assert different(folder, tokenizer, texts) == []


@pytest.mark.parametrize("settings", [BYTES, {**BYTES, "add_dummy_prefix": False}], ids=["space", "none"])
def test_unigram_models_split_as_probably(trained: Callable[..., Path], settings: dict[str, Any]) -> None:
    """Where ids differ from the library's, both splits are equally probable."""
    folder = trained(model_type="unigram", vocab_size=360, **settings)
    tokenizer = load_tokenizer(str(folder))
    library = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [*ODD, *random_texts(2000)]
    odd = different(folder, tokenizer, texts)
    assert len(odd) < len(texts) / 50
    for text in odd:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert sorted(ids) == sorted(library.encode(text)), text
    assert Renderer(tokenizer, start=True).prefix_ids == [library.bos_id()]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "word"}, "neither BPE nor Unigram"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "spaces behind words"),
        ({"model_type": "bpe", "user_defined_symbols": ["<item>"]}, "symbols of several characters"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    trained: Callable[..., Path], settings: dict[str, Any], reason: str
) -> None:
    size = {} if settings["model_type"] == "word" else {"vocab_size": 100}
    with pytest.raises(UserError, match=f"{reason}.*tokenizer.json beside it"):
        load_tokenizer(str(trained(**settings, **size)))


@pytest.mark.parametrize("data", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x0a\xff\xff"])
def test_a_file_that_is_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(UserError, match="no SentencePiece model, or a damaged one"):
        load_tokenizer(str(tmp_path))


def test_a_damaged_config_and_a_missing_token(trained: Callable[..., Path]) -> None:
    folder = trained(model_type="bpe", vocab_size=100)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "[BOS]"}')
    with pytest.raises(UserError, match=r"no piece '\[BOS\]'"):
        load_tokenizer(str(folder))
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="no valid JSON"):
        load_tokenizer(str(folder))


def test_tiktoken_files_are_left_to_transformers(tmp_path: Path) -> None:
    """LLaMA-3's own folders name one tokenizer.model."""
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert not is_sentencepiece_only(tmp_path)
