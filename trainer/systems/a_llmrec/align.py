"""Stage 1 of A-LLMRec from end to end (Kim et al. 2024, section 4.1): train, then write what stage 2 reads.

The folder it leaves: `alignment.safetensors` and `alignment.json` (f_I and f_T), `encoder/` (the sentence
encoder, a sentence-transformers folder), `joint.safetensors` (the joint embeddings), `metrics.jsonl` (a line
a step), and the manifest, written last.

Shapes: I items, D width of the recommender, E width of the joint embeddings.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from recloom.data_shards.artifacts import (
    MANIFEST,
    atomic_write_bytes,
    atomic_write_json,
    read_manifest,
    write_manifest,
)
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.tasks import NegativeSampler
from recloom.trainer.models import quiet_transformers
from recloom.trainer.sentence_encoder import SentenceEncoder
from recloom.trainer.systems.a_llmrec.align_checkpoint import digest_of_run, remove_checkpoint
from recloom.trainer.systems.a_llmrec.align_data import Examples, States, TextVectors
from recloom.trainer.systems.a_llmrec.align_loop import AlignLoop, Inputs
from recloom.trainer.systems.a_llmrec.alignment import Alignment, freeze_recommender
from recloom.trainer.systems.a_llmrec.settings import AlignBlock

WEIGHTS, DESCRIPTION, JOINT, ENCODER = (
    "alignment.safetensors",
    "alignment.json",
    "joint.safetensors",
    "encoder",
)
SMALL_FILES = (".json", ".txt", ".model")
"""Of a sentence-transformers folder: its configs and the tokenizer's files."""


@dataclass(frozen=True)
class JointEmbeddings:
    """Joint embeddings of every item (I, E), float32 on the CPU: from its vector (e) and its text (q)."""

    item_IE: Tensor
    text_IE: Tensor


def train_alignment(
    backbone: Backbone,
    sequences: list[np.ndarray],
    texts: list[str],
    settings: AlignBlock,
    encoder_folder: Path,
    seed: int,
    folder: Path,
) -> None:
    """Train f_I, f_T and the sentence encoder with the recommender frozen; write `folder`, manifest last.

    sequences: each user's training items in time order; texts: each item's. A run that was killed goes on
    from the checkpoint in `folder`; on a CPU with as many threads it ends with the same bytes. The backbone
    and the caller's random state are left alone. The recommender runs on the CPU, the rest on a GPU where
    there is one.
    Raises UserError when no user can be learned from, or the training diverges.
    """
    if (len(sequences), len(texts)) != (backbone.num_users, backbone.num_items):
        raise ValueError(
            f"{len(sequences)} sequences and {len(texts)} texts for {backbone.num_users} users and "
            f"{backbone.num_items} items: one each."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    run_digest = digest_of_run(backbone, sequences, texts, settings, encoder_folder, seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        loop = build_loop(backbone, sequences, texts, settings, encoder_folder, seed, device)
        loop.run(folder, run_digest)
    save_outcome(loop, encoder_folder, folder)
    remove_checkpoint(folder)
    write_manifest(folder, digest=run_digest)


def build_loop(
    backbone: Backbone,
    sequences: list[np.ndarray],
    texts: list[str],
    settings: AlignBlock,
    encoder_folder: Path,
    seed: int,
    device: torch.device,
) -> AlignLoop:
    """All that the first step needs; reseeds torch."""
    # a copy, so that the caller's own keeps its mode and its gradients
    recommender = copy.deepcopy(backbone).eval()
    with torch.no_grad():
        items_ID = recommender.item_vectors().clone()  # no backbone has dropout on these
    autocast = settings.text_dtype == "bfloat16"
    encoder = SentenceEncoder.load(encoder_folder, not settings.train_text_encoder, autocast).to(device)
    torch.manual_seed(seed)
    alignment = Alignment(items_ID.shape[1], encoder.width, settings).to(device)
    freeze_recommender(recommender, settings)
    examples = Examples.make(sequences, backbone.num_items, settings, seed)
    inputs = Inputs(
        examples,
        NegativeSampler(sequences, backbone.num_items),
        States(recommender, sequences, examples, settings.recommender_dropout),
        items_ID,
        TextVectors(encoder, texts),
    )
    return AlignLoop(alignment, encoder, inputs, settings, seed)


def save_outcome(loop: AlignLoop, encoder_folder: Path, folder: Path) -> None:
    """Everything but the manifest."""
    alignment, encoder = loop.alignment.eval(), loop.encoder.eval()
    joint = joint_embeddings(alignment, loop.inputs)
    state = {name: value.cpu().contiguous() for name, value in alignment.state_dict().items()}
    atomic_write_bytes(folder / WEIGHTS, safetensors.torch.save(state))
    item_width = loop.inputs.items_ID.shape[1]
    described = {"item_width": item_width, "text_width": encoder.width}
    atomic_write_json(folder / DESCRIPTION, {**described, "settings": loop.settings.model_dump(mode="json")})
    save_encoder(encoder, encoder_folder, folder / ENCODER)
    atomic_write_bytes(folder / JOINT, safetensors.torch.save(vars(joint)))


@torch.no_grad()
def joint_embeddings(alignment: Alignment, inputs: Inputs) -> JointEmbeddings:
    """e and q of the whole catalogue."""
    text_IW = inputs.texts.all()
    e_IE = alignment.items.encode(inputs.items_ID.to(text_IW.device))
    return JointEmbeddings(e_IE.cpu(), alignment.texts.encode(text_IW).cpu())


def save_encoder(encoder: SentenceEncoder, source: Path, folder: Path) -> None:
    """A sentence-transformers folder like `source`, with the encoder's own weights."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        # an index of weight shards would lead to shards that are not here
        is_wanted = (
            path.suffix in SMALL_FILES and path.name != MANIFEST and not path.name.endswith(".index.json")
        )
        if path.is_file() and is_wanted:
            copied = folder / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
    model: Any = encoder.model
    with quiet_transformers():
        model.save_pretrained(folder / encoder.layout.transformer.relative_to(source))


def load_joint(folder: Path) -> JointEmbeddings:
    """The joint embeddings of a finished stage. Raises UserError when the folder is incomplete or damaged."""
    read_manifest(folder, verify=True)
    return JointEmbeddings(**safetensors.torch.load_file(folder / JOINT))


def load_alignment(folder: Path) -> tuple[Alignment, SentenceEncoder]:
    """f_I, f_T and the sentence encoder of a finished stage, frozen, in evaluation mode, on the CPU.

    With them another catalogue's texts get joint embeddings (section 5.2.5):
    `alignment.texts.encode(encoder.encode(texts))`. Raises UserError when the folder is incomplete or
    damaged.
    """
    read_manifest(folder, verify=True)
    description = json.loads((folder / DESCRIPTION).read_text())
    settings = AlignBlock(**description["settings"])
    alignment = Alignment(description["item_width"], description["text_width"], settings)
    alignment.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    alignment.requires_grad_(False)
    return alignment.eval(), SentenceEncoder.load(folder / ENCODER, frozen=True)
