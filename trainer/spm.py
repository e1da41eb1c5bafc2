"""SentencePiece models (`tokenizer.model`) as fast tokenizers with the ids of the `sentencepiece` library.

transformers converts such a file when no tokenizer.json lies beside it, but not faithfully (5.19): without a
tokenizer_config.json the space before the text and the start token are lost; as LlamaTokenizer runs of spaces
merge in another order, and a text that begins with a space gets no second one. Each changes ids silently, so
the conversion is made here, from what the file itself says:

- `add_dummy_prefix` puts one space before a text, whatever the text begins with (LLaMA's "legacy" space);
- merges are ordered by the score of the piece they make, which is what SentencePiece's BPE goes by;
- control, unknown and byte pieces are never made out of text that happens to read like them.

For BPE the ids are the library's. Of two equally probable splits of a word ("..." as ".." and ".", or the
other way round) a Unigram model may take the other: the library's choice hangs on the rounding of its sums.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recloom.data_shards.artifacts import atomic_write_json, atomic_write_text
from recloom.data_shards.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer, normalizers

MODEL = "tokenizer.model"
FAST = "tokenizer.json"
CONFIG = "tokenizer_config.json"
BESIDE = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
# What would make transformers choose a class of its own, or run code of the folder.
CLASS_SETTINGS = ("tokenizer_class", "auto_map", "backend", "legacy", "sp_model_kwargs", "add_prefix_space")
SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")
REMEDY = f"put the model's {FAST} beside it."
PROBES = (
    "a",
    " a  b   c    d ",
    "The Été (1995)\n\n¿Qué?: 4\t東京\r\n🎬 \n x",
    "=====-----     ,,,,,aaaaaaa ▁c  ",
)
RESERVED_PROBE = "</s> <s>a<unk><0x0A>b "


def is_sentencepiece_only(folder: Path) -> bool:
    """True where a tokenizer.model is all that gives the vocabulary, and it is no tiktoken file (LLaMA-3)."""
    path = folder / MODEL
    if not path.is_file() or (folder / FAST).exists():
        return False
    with open(path, "rb") as file:
        return not TIKTOKEN_LINE.match(file.read(4096))


def load_sentencepiece(folder: Path) -> Any:
    """The fast tokenizer of a folder with a tokenizer.model and, where it has one, a tokenizer_config.json.

    Without a config the tokens are the model's own, and a text begins with its start token, as LLaMA's do.
    Raises UserError for a file that is no SentencePiece model, or one that can't be followed exactly.
    """
    from transformers import PreTrainedTokenizerFast

    config = read_config(folder / CONFIG)
    with tempfile.TemporaryDirectory() as work:
        made = Path(work)
        for name in BESIDE:
            if (folder / name).is_file():
                shutil.copy(folder / name, made / name)
        write_fast_files(folder / MODEL, made, config)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(made)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def read_config(path: Path) -> dict[str, Any]:
    """The tokenizer_config.json, empty where there is none."""
    try:
        config = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path}: it is no valid JSON: fetch the file again.") from None
    return {key: value for key, value in config.items() if key not in CLASS_SETTINGS}


def write_fast_files(model: Path, folder: Path, config: dict[str, Any]) -> None:
    """Write into `folder` what transformers reads: tokenizer.json and tokenizer_config.json.

    config: settings that go before the model's own (bos_token, add_bos_token, ...). Errors as for `backend`.
    """
    proto = read_proto(model)
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    own |= {"add_bos_token": proto.trainer_spec.bos_id >= 0, "add_eos_token": False}
    settings = {**own, **special_tokens(proto), **config}
    made = backend(model)
    made.post_processor = sequence_template(model, made, settings)
    atomic_write_text(folder / FAST, made.to_str())
    atomic_write_json(folder / CONFIG, settings)


def sequence_template(model: Path, made: Tokenizer, settings: dict[str, Any]) -> Any:
    """Start and end token around a text where the settings add them.

    transformers goes by this template, not by add_bos_token, where there is a tokenizer.json.
    Raises UserError for a token that the model lacks.
    """
    from tokenizers import processors

    start = added_tokens(settings, "bos")
    end = added_tokens(settings, "eos")
    for token in start + end:
        if made.token_to_id(token) is None:
            raise UserError(f"{model}: it has no piece {token!r}, which {CONFIG} adds to texts: {REMEDY}")
    return processors.TemplateProcessing(
        single=[*start, "$A", *end],
        pair=[*start, "$A", *end, *start, "$B", *end],
        special_tokens=[(token, made.token_to_id(token)) for token in dict.fromkeys(start + end)],
    )


def added_tokens(settings: dict[str, Any], name: str) -> list[str]:
    """The token that stands at a text's start (bos) or end (eos), if one is to be put there."""
    token = settings.get(f"{name}_token")
    if token is None or not settings[f"add_{name}_token"]:
        return []
    return [token["content"] if isinstance(token, dict) else token]


def special_tokens(proto: Any) -> dict[str, str]:
    """The tokens that the model has for start, end, unknown and padding."""
    spec = proto.trainer_spec
    ids = {"bos": spec.bos_id, "eos": spec.eos_id, "unk": spec.unk_id, "pad": spec.pad_id}
    return {f"{name}_token": proto.pieces[k].piece for name, k in ids.items() if 0 <= k < len(proto.pieces)}


def backend(model: Path) -> Tokenizer:
    """The Rust tokenizer with the ids of `sentencepiece` for any text.

    Raises UserError for a file that is no SentencePiece model, and for what Rust tokenizers can't follow.
    """
    from tokenizers import AddedToken, Tokenizer

    proto = read_proto(model)
    check_supported(model, proto)
    made = Tokenizer(rust_model(proto))
    made.normalizer = rust_normalizer(proto)
    if proto.trainer_spec.model_type == UNIGRAM:
        made.pre_tokenizer = unigram_cuts(proto)
    made.decoder = rust_decoder(proto)
    # Symbols of one character are found without being matched first: no longer piece holds them.
    symbols = [p.piece for p in proto.pieces if p.type == USER_DEFINED and len(p.piece) > 1]
    made.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in symbols])
    special = [p.piece for p in proto.pieces if p.type in (CONTROL, UNKNOWN)]
    made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    check_same_ids(model, made)
    return made


def read_proto(model: Path) -> Any:
    """The parsed file. Raises UserError when it is no SentencePiece model."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    generated: Any = sentencepiece_model_pb2  # its names come to be at run time, mypy sees none
    proto = generated.ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except DecodeError:
        proto.Clear()
    if not proto.pieces:
        raise UserError(f"{model}: it is no SentencePiece model, or a damaged one: fetch the file again.")
    return proto


def check_supported(model: Path, proto: Any) -> None:
    """Raises UserError for what no conversion can follow."""
    spec, rules = proto.trainer_spec, proto.normalizer_spec
    symbols = [p.piece for p in proto.pieces if p.type == USER_DEFINED and len(p.piece) > 1]
    reasons = {
        "it is neither BPE nor Unigram": spec.model_type not in (UNIGRAM, BPE),
        "it puts spaces behind words": spec.treat_whitespace_as_suffix,
        "it keeps plain spaces": not rules.escape_whitespaces,
        "some of its pieces are marked as unused": any(p.type == UNUSED for p in proto.pieces),
        "it has symbols of several characters and a space before the text": symbols
        and rules.add_dummy_prefix,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{model}: {reason}, which can't be converted: {REMEDY}")


def rust_model(proto: Any) -> Any:
    from tokenizers import models

    spec = proto.trainer_spec
    if spec.model_type == UNIGRAM:
        scores = [(p.piece, p.score) for p in proto.pieces]
        return models.Unigram(scores, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    return models.BPE(
        vocab={p.piece: k for k, p in enumerate(proto.pieces)},
        merges=merges(proto),
        unk_token=proto.pieces[spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )


def merges(proto: Any) -> list[tuple[str, str]]:
    """All pairs of pieces that join into a piece, the joined piece with the highest score first."""
    normal = {p.piece: (-p.score, k) for k, p in enumerate(proto.pieces) if p.type == NORMAL}
    ranked = [
        (rank, cut, piece)
        for piece, rank in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    return [(piece[:cut], piece[cut:]) for _, cut, piece in sorted(ranked)]


def rust_normalizer(proto: Any) -> normalizers.Normalizer:
    """SentencePiece's own order: character map, superfluous spaces, space before the text, escaping."""
    from tokenizers import Regex, normalizers

    rules = proto.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def unigram_cuts(proto: Any) -> Any:
    """Cuts that a Unigram model needs, which types of pieces and lines mean nothing to.

    One is behind the first character of what reads like a piece that text must not become: it would make
    `</s>` of these four characters. Bytes of unknown characters get the offsets of their whole run, so lines
    are parted where no piece holds a newline and more.
    """
    from tokenizers import Regex, pre_tokenizers

    reserved = [p.piece for p in proto.pieces if p.type in (CONTROL, UNKNOWN, BYTE)]
    pattern = "|".join(f"{re.escape(piece[0])}(?={re.escape(piece[1:])})" for piece in reserved)
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated")]
    if proto.trainer_spec.byte_fallback and not any(
        "\n" in p.piece and p.piece != "\n" for p in proto.pieces
    ):
        cuts.append(pre_tokenizers.Split("\n", "isolated"))
    return pre_tokenizers.Sequence(cuts)


def rust_decoder(proto: Any) -> Any:
    from tokenizers import decoders

    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def check_same_ids(model: Path, made: Tokenizer) -> None:
    """Compare with the library itself on odd texts; raises UserError where ids differ."""
    from sentencepiece import SentencePieceProcessor

    library = SentencePieceProcessor(model_file=str(model))
    # Where it has no bytes to fall back on, a cut of `unigram_cuts` parts a run of unknown characters.
    cuts = made.pre_tokenizer is not None and made.token_to_id("<0x00>") is None
    made.encode_special_tokens = True
    for text in PROBES if cuts else (*PROBES, RESERVED_PROBE):
        if made.encode(text, add_special_tokens=False).ids != library.encode(text):
            raise UserError(f"{model}: its conversion gives other ids for {text!r}: {REMEDY}")
    made.encode_special_tokens = False
