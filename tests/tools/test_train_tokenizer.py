"""Tokenizers of one's own: text comes back as it was, the same corpus gives the same bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from recloom.data_shards.artifacts import read_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Entity, Literal, Sample, Segment, sample_text
from recloom.data_shards.shards import write_shards
from recloom.launcher.cli import main
from recloom.tools.train_tokenizer import PART, Corpus, TokenizerSettings, train_tokenizer
from recloom.trainer.models import load_tokenizer

SYLLABLES = "ka lo mi ren tas vok el un dra shi qué zon bly gor mer iss and ing the ous".split()  # noqa: SIM905


def make_titles(count: int) -> list[str]:
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(300)]
    lengths = [rng.randint(1, 5) for _ in range(count)]
    return [" ".join(rng.choices(words, k=k)).title() + f" ({1900 + 17 * k + k})" for k in lengths]


TITLES = make_titles(400)
SMALL = {kind: TokenizerSettings(kind, 400, 1000) for kind in ("bpe", "unigram")}
TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab Z19▁\n\t </s>é東")), max_size=30)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "titles.txt"
    path.write_text("\n".join(["Candidates:", *TITLES, "", "  Output:", "</s>", "Heat Up"]) + "\n")
    return path


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def folder(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made") / request.param
    train_tokenizer([corpus], made, SMALL[request.param])
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(str(folder))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_text_comes_back_as_it_was(tokenizer: Any, text: str) -> None:
    """But for U+2581, which is SentencePiece's own sign for a space."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids) == text.replace("▁", " ")
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id} & set(ids)


def test_what_the_folder_holds(folder: Path, tokenizer: Any) -> None:
    manifest = read_manifest(folder, verify=True)
    assert set(manifest["files"]) == {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"}
    assert (manifest["vocab_size"], manifest["num_lines"]) == (400, len(TITLES) + 4)
    assert len(tokenizer) == 400 and tokenizer.is_fast
    named = [tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    assert named == ["<unk>", "<s>", "</s>", "<pad>"] == tokenizer.convert_ids_to_tokens([0, 1, 2, 3])
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("Heat 1995\n\nUp").input_ids)
    assert pieces[0] == "<s>" and pieces.count("\n") == 2
    assert [piece for piece in pieces if any(mark.isdigit() for mark in piece)] == ["1", "9", "9", "5"]


def test_ids_are_the_librarys(folder: Path, tokenizer: Any) -> None:
    library = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rng = random.Random(0)
    texts = ["".join(rng.choices("theinr s1(\n", k=rng.randint(1, 40))) for _ in range(500)]
    for text in [*TITLES, "</s>", " a  b ", "東京\n", *texts]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ids == library.encode(text) or (
            "unigram" in folder.name and set(ids) == set(library.encode(text))
        )


def test_the_renderer_takes_it(folder: Path, tokenizer: Any) -> None:
    """Also without the fast files: those come from the model alone."""
    renderer = Renderer(tokenizer, start=True)
    rng = random.Random(1)
    for _ in range(50):
        segments: list[Segment] = [Literal("Candidates:\n")]
        for number, title in enumerate(rng.sample([*TITLES, "東京 (1953)", " Été ", "a  b", "🎬"], 6)):
            segments += [Entity(title, "item", number), Literal(rng.choice(["\n", "\n\n", " \n", "\n  "]))]
        rendered = renderer.render(Sample("k", tuple(segments), (Literal("4"),), {}))
        text = sample_text(segments)
        whole = tokenizer(text + "4", split_special_tokens=True).input_ids
        assert rendered.ids_T.tolist() == [*whole, tokenizer.eos_token_id]
        for start, end, _, number in rendered.entity_spans:
            entity = segments[1 + 2 * (number or 0)]
            assert isinstance(entity, Entity)
            assert tokenizer.decode(whole[start:end]).strip() == entity.text.strip()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_corpus_gives_the_same_bytes(corpus: Path, tmp_path: Path, kind: str) -> None:
    """Also where lines are drawn."""
    few = TokenizerSettings(kind, 350, 200)
    for name in ("a", "b"):
        train_tokenizer([corpus], tmp_path / name, few)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_lines_are_drawn_without_repeats(corpus: Path) -> None:
    lines = Corpus([corpus, corpus])
    assert lines.num_lines == 2 * (len(TITLES) + 4)
    everything = list(lines.draw(10**6))
    assert everything == list(lines.draw(lines.num_lines)) and TITLES[3] in everything
    drawn = list(lines.draw(50))
    places = iter(everything)
    assert len(drawn) == 50 and all(line in places for line in drawn), "in the order of the corpus"


def test_long_lines_come_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("é" * (2 * PART + 10) + "\n\n   \nend")
    assert [len(line) for line in Corpus([path]).draw(10)] == [PART, PART, 10, 3]


def test_shards_are_a_corpus(tokenizer: Any, corpus: Path, tmp_path: Path) -> None:
    """The texts of a shard folder, lines and answers; with a text file beside it."""
    samples = [
        Sample(f"s-{k}", (Literal("Film:\n"), Entity(title, "item", k)), (Literal("\n4"),), {})
        for k, title in enumerate(TITLES)
    ]
    write_shards(samples, Renderer(tokenizer), tmp_path / "shards", samples_per_shard=10)
    lines = list(Corpus([tmp_path / "shards", corpus]).draw(10**6))
    assert lines[:6] == ["Film:", TITLES[0], "4", "Film:", TITLES[1], "4"] and lines[-1] == "Heat Up"
    manifest = train_tokenizer([tmp_path / "shards"], tmp_path / "out", SMALL["bpe"])
    assert manifest["num_lines"] == 3 * len(TITLES)
    assert load_tokenizer(str(tmp_path / "out"))("Film:\n").input_ids[0] == 1


def test_a_filled_folder_needs_force(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tokenizer", str(corpus), "--out", str(tmp_path), "--vocab-size", "350"]
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "[END]"}')
    assert main(command) == 2
    assert "replace them with --force" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 2
    assert main([*command, "--force"]) == 0
    assert f"{tmp_path}: 350 pieces from {len(TITLES) + 4} lines" in capsys.readouterr().out
    assert (tmp_path / "notes.md").read_text() == "mine"
    assert load_tokenizer(str(tmp_path)).eos_token == "</s>"


def test_a_model_folder_reads_it(folder: Path, tmp_path: Path) -> None:
    """With a LLaMA's config.json beside it, no class of transformers may take over."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))
    text = " Heat  Returns\n(1950)"
    assert load_tokenizer(str(tmp_path))(text).input_ids == load_tokenizer(str(folder))(text).input_ids
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(str(tmp_path))(text).input_ids == load_tokenizer(str(folder))(text).input_ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["titles.txt", "--vocab-size", "100"],
            "--vocab-size = 100: bytes and the corpus' characters alone take",
        ),
        (["titles.txt", "--vocab-size", "90000"], "--vocab-size = 90000: this corpus gives"),
        (
            ["titles.txt", "--vocab-size", "90000", "--type", "unigram"],
            "--vocab-size = 90000: this corpus gives",
        ),
        (["titles.txt", "--vocab-size", "0"], "--vocab-size = 0: at least 1"),
        (["titles.txt", "--max-lines", "0"], "--max-lines = 0: at least 1"),
        (["nowhere.txt"], "nowhere.txt: no corpus is there: name .txt files"),
        (["table.csv"], "table.csv: no corpus is there: name .txt files"),
        (["empty.txt"], "no line with text in it"),
        (["latin.txt"], "latin.txt: it is not UTF-8"),
    ],
)
def test_mistakes_are_one_sentence(
    corpus: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "titles.txt").write_text(corpus.read_text())
    (tmp_path / "table.csv").write_text("a,b\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("Été\n".encode("latin-1"))
    out = tmp_path / "out"
    assert main(["tokenizer", str(tmp_path / arguments[0]), *arguments[1:], "--out", str(out)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told and not out.exists()


def test_a_file_in_the_way(corpus: Path) -> None:
    with pytest.raises(UserError, match="it is a file: name a folder"):
        train_tokenizer([corpus], corpus, SMALL["bpe"], force=True)
