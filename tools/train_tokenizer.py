"""`recloom tokenizer`: a SentencePiece model of one's own, for models that are trained from scratch.

The model takes text as it is: nothing is normalised, no space put before a text, runs of spaces are kept,
each digit is a piece, a newline is a symbol that no other piece holds, and bytes spell the characters that
are too rare to get a piece. (U+2581 alone comes back as a space, which it stands for in SentencePiece.)
The same corpus and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recloom.data_shards.artifacts import MANIFEST, atomic_write_bytes, write_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.shards import INDEX, ShardReader
from recloom.trainer.models import load_tokenizer
from recloom.trainer.spm import BESIDE, CONFIG, FAST, MODEL, write_fast_files

COVERAGE = 0.99995  # share of the corpus that is in characters with pieces, LLaMA's; bytes spell the rest
PART = 1000  # characters; a longer line is cut, so that the trainer skips none
NUM_THREADS = 4  # not the machine's: Unigram's sums, and so its pieces, depend on it
TOO_MANY = re.compile(r"Vocabulary size too high .*<= (\d+)")
TOO_FEW = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


@dataclass(frozen=True)
class TokenizerSettings:
    """`model_type`: bpe or unigram. `max_lines`: of more lines this many are drawn; it bounds the memory."""

    model_type: str
    vocab_size: int
    max_lines: int


def train_tokenizer(
    corpus: Sequence[Path], folder: Path, settings: TokenizerSettings, force: bool = False
) -> dict[str, Any]:
    """Train on `corpus`, write into `folder` what `load_tokenizer` reads, and return its manifest.

    Raises UserError for settings or a corpus that won't do, and for a folder with files in it unless `force`.
    """
    check_settings(settings)
    check_folder(folder, force)
    lines = Corpus(corpus)
    print(f"{lines.num_lines} lines in the corpus, training (minutes where it is large)", flush=True)
    model = train_model(lines, settings)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, MODEL, FAST, CONFIG, *BESIDE):
        (folder / name).unlink(missing_ok=True)
    atomic_write_bytes(folder / MODEL, model)
    write_fast_files(folder / MODEL, folder, config={})
    Renderer(load_tokenizer(str(folder)), start=True)  # refuses what can't be composed from lines
    counts = {"num_lines": lines.num_lines, "corpus_sha256": lines.sha256}
    return write_manifest(folder, kind="tokenizer", **asdict(settings), **counts)


def check_settings(settings: TokenizerSettings) -> None:
    """Raises UserError for numbers that mean nothing."""
    for option, value in (("--vocab-size", settings.vocab_size), ("--max-lines", settings.max_lines)):
        if value < 1:
            raise UserError(f"{option} = {value}: at least 1 is needed: choose more.")


def check_folder(folder: Path, force: bool) -> None:
    """Raises UserError where something would be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: it is a file: name a folder.")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"--out {folder}: files are in it: name an empty folder, or replace them with --force."
        )


class Corpus:
    """The lines of .txt files and folders of shards. Raises UserError for a path that is neither.

    It is read once to be counted and hashed, then again for each pass, so that no line is kept in memory.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        for path in paths:
            if not is_text(path) and not is_shards(path):
                raise UserError(f"{path}: no corpus is there: name .txt files in UTF-8 or folders of shards.")
        digest = hashlib.sha256()
        self.num_lines = 0
        for line in self._lines("counting"):
            self.num_lines += 1
            digest.update(f"{line}\n".encode())
        self.sha256 = digest.hexdigest()
        if self.num_lines == 0:
            raise UserError("the corpus has no line with text in it: name other files.")

    def draw(self, count: int) -> Iterator[str]:
        """All lines, or `count` of them at random where there are more, in their order, always the same ones.

        Selection sampling (Knuth, algorithm S): the trainer's own draw differs from run to run.
        """
        rng, wanted = random.Random(0), min(count, self.num_lines)
        for remaining, line in zip(range(self.num_lines, 0, -1), self._lines("reading"), strict=True):
            if rng.random() * remaining < wanted:
                wanted -= 1
                yield line

    def _lines(self, title: str) -> Iterator[str]:
        lines = (line for path in self._paths for line in source_lines(path))
        yield from tqdm(lines, desc=title, unit="line", unit_scale=True, disable=None)


def is_text(path: Path) -> bool:
    return path.is_file() and path.suffix == ".txt"


def is_shards(path: Path) -> bool:
    return (path / INDEX).is_file()


def source_lines(path: Path) -> Iterator[str]:
    return file_lines(path) if is_text(path) else shard_lines(ShardReader(path))


def file_lines(path: Path) -> Iterator[str]:
    """Lines that say something; a long one comes in parts, so a file without line ends needs no memory."""
    with open(path, encoding="utf-8") as file:
        try:
            while part := file.readline(PART):
                yield from parts(part)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: it is not UTF-8 ({error.reason}): convert it, with iconv say."
            ) from None


def shard_lines(reader: ShardReader) -> Iterator[str]:
    try:
        for index in range(len(reader)):
            yield from parts(reader.record(index)["text"])
    finally:
        reader.close()


def parts(text: str) -> Iterator[str]:
    """The lines of a text that say something, in parts of at most `PART` characters."""
    for line in text.split("\n"):
        if line.strip():
            yield from (line[start : start + PART] for start in range(0, len(line), PART))


def train_model(corpus: Corpus, settings: TokenizerSettings) -> bytes:
    """The bytes of a tokenizer.model. Raises UserError where corpus and vocabulary don't fit."""
    import sentencepiece

    lines, model = KeptError(corpus.draw(settings.max_lines)), io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, **trainer_options(settings)
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise lines.error or mendable(settings, str(error)) from None
    return model.getvalue()


class KeptError:
    """Lines, and what ended them too early: the trainer hides it in an error of its own."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._lines)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise


def trainer_options(settings: TokenizerSettings) -> dict[str, Any]:
    return {
        "model_type": settings.model_type,
        "vocab_size": settings.vocab_size,
        "max_sentence_length": 4 * PART,  # bytes
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "add_dummy_prefix": False,
        "split_digits": True,
        "byte_fallback": True,
        "user_defined_symbols": ["\n"],
        "character_coverage": COVERAGE,
        "pad_id": 3,  # behind <unk>, <s>, </s>
        "num_threads": NUM_THREADS,
        "minloglevel": 2,
    }


def mendable(settings: TokenizerSettings, reason: str) -> UserError:
    """The trainer's reason as a sentence that says what to do."""
    size = f"--vocab-size = {settings.vocab_size}"
    if found := TOO_MANY.search(reason):
        return UserError(f"{size}: this corpus gives {found[1]} pieces at most: choose fewer, or add text.")
    if found := TOO_FEW.search(reason):
        return UserError(f"{size}: bytes and the corpus' characters alone take {found[1]}: choose more.")
    return UserError(f"the tokenizer can't be trained ({' '.join(reason.split())[:200]}): change the corpus.")
