"""MoRec: Yuan et al. 2023, "Where to Go Next for Recommender Systems? ID- vs. Modality-based Recommender
Models Revisited", with SASRec as its user encoder (as in A-LLMRec, Kim et al. 2024, appendix C).

Shapes: B sequences, L length, I items, W width of the text embeddings, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recloom.data_shards.artifacts import cache_dir
from recloom.trainer.collaborative.base import Batch, Sizes, Task
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.transformer import TransformerBackbone, TransformerSettings
from recloom.trainer.item_texts import TextStyle, item_texts
from recloom.trainer.sentence_encoder import MINILM, SentenceEncoder, resolve_encoder

TASK: Task = "sequential"


class Settings(TransformerSettings):
    model: str = "morec"
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-5
    batch_size: PositiveInt = 64
    encoder: str = Field(
        default=MINILM, description=f"{MINILM} (built in) or a local sentence-transformers folder"
    )
    style: TextStyle = Field(default="labelled", description='"Title: t, Description: d" or "t, d"')
    attributes: tuple[str, ...] | None = Field(
        default=None, description="item columns in the texts; None: the description, where there is none, all"
    )


class TextItems(nn.Module):
    """Stands where other backbones have their table of items: an item's vector is its text's, projected.

    text_IW: embeddings of the items' texts, a constant that is saved with the weights. Padding is 0.
    """

    text_IW: Tensor

    def __init__(self, num_items: int, text_width: int, width: int) -> None:
        super().__init__()
        self.embedding_dim = width
        self.register_buffer("text_IW", torch.zeros(num_items, text_width))
        self.projection = nn.Sequential(nn.Linear(text_width, width), nn.GELU(), nn.Linear(width, width))

    @property
    def weight(self) -> Tensor:
        """The vectors of the catalogue (I, D)."""
        vectors_ID: Tensor = self.projection(self.text_IW)
        return vectors_ID

    def forward(self, items_BL: Tensor) -> Tensor:
        """The vectors of these items (B, L, D); only theirs are projected."""
        padding_BL = items_BL == len(self.text_IW)
        texts_BLW = F.embedding(items_BL.masked_fill(padding_BL, 0), self.text_IW)
        vectors_BLD: Tensor = self.projection(texts_BLW)
        return vectors_BLD.masked_fill(padding_BL[..., None], 0.0)


class MoRec(TransformerBackbone):
    """Scores are dot products of SASRec's last hidden state and the projections of the items' texts.

    The sentence encoder is frozen and read once, when the backbone is built: saved weights load without it.
    MoRec itself trains its encoder end to end, on a few sampled items a step; the softmax over the catalogue
    that next-item backbones share would read every text at every step. On ML-100K's validation (one seed) a
    linear projection gave N@10 0.076 (0.092 with embeddings as they come), this one 0.100.
    """

    items: TextItems  # type: ignore[assignment]

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.items = TextItems(self.num_items, sizes["text_width"], settings.embedding)

    @classmethod
    def build(cls, data: TopKData, settings: Settings) -> Self:  # type: ignore[override]
        """Raises UserError for a sentence encoder or an attribute that is not there."""
        text_IW = text_vectors(data, settings)
        backbone = cls(settings, {**cls.sizes_of(data), "text_width": text_IW.shape[1]})
        backbone.items.text_IW.copy_(text_IW)
        return backbone

    def loss(self, batch: Batch) -> Tensor:
        return self.next_item_loss(*batch)


def input_files(settings: Settings) -> list[Path]:
    """The sentence encoder's folder where it is the user's own."""
    folder = Path(settings.encoder).expanduser()
    return [folder] if folder.is_dir() else []


def text_vectors(data: TopKData, settings: Settings) -> Tensor:
    """Embeddings of the items' texts (I, W), with mean 0 and standard deviation 1.

    Embeddings of texts have much in common. As they come, the same fit took twice the epochs (ML-100K, one
    seed: best N@10 0.098 at epoch 31; so 0.100 at epoch 11).
    """
    texts = item_texts(data.known_tables(settings.model), settings.style, settings.attributes)
    encoder = SentenceEncoder.load(resolve_encoder(settings.encoder, cache_dir()), frozen=True)
    centred_IW = encoder.encode(texts)
    centred_IW = centred_IW - centred_IW.mean(0)
    return centred_IW / centred_IW.square().mean().sqrt().clamp(min=1e-6)
