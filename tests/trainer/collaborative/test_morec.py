"""MoRec: item vectors out of texts, padding, what is saved, refusals; SASRec on the same vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recloom.data_shards.artifacts import cache_dir
from recloom.data_shards.errors import UserError
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative import morec, sasrec
from recloom.trainer.collaborative.base import BackboneSettings
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.registry import load_backbone, save_backbone
from recloom.trainer.sentence_encoder import SentenceEncoder, minilm_folder

Make = Callable[..., BackboneSettings]

SMALL = {"embedding": 8, "max_length": 6, "heads": 2}
PAD = 40


@pytest.fixture
def backbone(topk: TopKData, settings_of: Make) -> morec.MoRec:
    torch.manual_seed(0)
    model = morec.MoRec.build(topk, settings_of("morec", **SMALL)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def projected(backbone: morec.MoRec) -> np.ndarray:
    """The two layers written out, with the exact GELU x * Phi(x)."""
    state = {name: value.double() for name, value in backbone.items.state_dict().items()}
    inner_ID = state["text_IW"] @ state["projection.0.weight"].T + state["projection.0.bias"]
    active_ID = inner_ID * (1 + torch.erf(inner_ID / 2**0.5)) / 2
    return (active_ID @ state["projection.2.weight"].T + state["projection.2.bias"]).numpy()


def test_item_vectors_are_projections_of_the_texts(backbone: morec.MoRec, tiny_encoder: Path) -> None:
    titles = ["zero zero", "three nine"]
    with torch.no_grad():
        rows_NW = SentenceEncoder.load(tiny_encoder).encode(
            [f"Title: {t}, Group: {t.split()[0]}" for t in titles]
        )
    text_IW = backbone.items.text_IW
    torch.testing.assert_close(text_IW.mean(0), torch.zeros(32), atol=1e-5, rtol=0)
    assert abs(text_IW.square().mean().item() - 1) < 1e-5
    # centred and scaled alike: differences of texts keep their direction
    between_2W = torch.stack([text_IW[39] - text_IW[0], rows_NW[1] - rows_NW[0]])
    assert torch.nn.functional.cosine_similarity(*between_2W, dim=0) > 1 - 1e-5
    np.testing.assert_allclose(backbone.item_vectors().tolist(), projected(backbone), atol=1e-5)
    items_BL = torch.tensor([[PAD, 3, 39]])
    want_LD = np.stack([np.zeros(8), *projected(backbone)[[3, 39]]])
    np.testing.assert_allclose(backbone.items(items_BL)[0].tolist(), want_LD, atol=1e-5)


def test_is_sasrec_on_these_vectors(backbone: morec.MoRec, topk: TopKData) -> None:
    """The same weights around a table of the projected rows give the same loss and scores."""
    peer = sasrec.SASRec.build(topk, sasrec.Settings(**SMALL)).eval()
    rest = {name: value for name, value in backbone.state_dict().items() if not name.startswith("items.")}
    table_VD = torch.cat([torch.from_numpy(projected(backbone)).float(), torch.zeros(1, 8)])
    peer.load_state_dict({**rest, "items.weight": table_VD})
    batch = next(peer.batches(topk, np.random.default_rng(0)))
    torch.testing.assert_close(backbone.loss(batch), peer.loss(batch))
    histories_BL = torch.tensor([[PAD, PAD, 3, 7, 1, 9], [PAD] * 6])
    users_B = torch.tensor([0, 1])
    torch.testing.assert_close(backbone.score(users_B, histories_BL), peer.score(users_B, histories_BL))


def test_the_gradient_reaches_the_projection_by_inputs_and_targets(
    backbone: morec.MoRec, topk: TopKData
) -> None:
    batch = next(backbone.batches(topk, np.random.default_rng(0)))
    backbone.loss(batch).backward()
    names = {name for name, _ in backbone.named_parameters()}
    assert "items.text_IW" not in names and not backbone.items.text_IW.requires_grad
    both = backbone.items.projection[0].weight.grad.clone()
    backbone.zero_grad()
    with torch.no_grad():
        fixed_ID = backbone.item_vectors().clone()
    hidden_MD = backbone.encode(batch[0])[batch[1] != PAD]
    logits_MI = hidden_MD @ fixed_ID.T
    torch.nn.functional.cross_entropy(logits_MI, batch[1][batch[1] != PAD]).backward()
    of_inputs = backbone.items.projection[0].weight.grad
    assert of_inputs.abs().max() > 0 and (both - of_inputs).abs().max() > 1e-4


def test_loads_without_the_encoder(topk: TopKData, backbone: morec.MoRec, tmp_path: Path) -> None:
    settings = backbone.settings.model_copy(update={"encoder": str(tmp_path / "gone")})
    save_backbone(backbone, settings, tmp_path / "saved")
    loaded = load_backbone(tmp_path / "saved")
    histories_BL, users_B = torch.tensor([[PAD, 3, 7, 1]]), torch.tensor([0])
    assert torch.equal(loaded.score(users_B, histories_BL), backbone.score(users_B, histories_BL))


def test_style_and_attributes_change_the_texts(topk: TopKData, settings_of: Make) -> None:
    variants = [{}, {"style": "plain"}, {"attributes": []}]
    rows = [morec.text_vectors(topk, settings_of("morec", **fields)) for fields in variants]
    assert all((rows[0] - other).abs().max() > 1e-3 for other in rows[1:])


def test_refusals(topk: TopKData, settings_of: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model = 'morec': it reads titles or keys"):
        morec.MoRec.build(replace(topk, tables=None), settings_of("morec"))
    with pytest.raises(UserError, match="'colour' is no attribute"):
        morec.MoRec.build(topk, settings_of("morec", attributes=["colour"]))
    gone = morec.Settings(encoder=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="sentence encoder .*gone': no such folder"):
        morec.MoRec.build(topk, gone)


def test_the_built_in_encoder_on_movielens(ml100k: Tables, topk: TopKData) -> None:
    """Of 200 films the one whose text is nearest is the sequel."""
    try:
        minilm_folder(cache_dir())
    except UserError as error:
        pytest.skip(f"needs the built-in sentence encoder: {error}")
    films = replace(ml100k, items=ml100k.items.slice(0, 200))
    text_IW = morec.text_vectors(replace(topk, tables=films), morec.Settings())
    assert text_IW.shape == (200, 384)
    near_II = torch.nn.functional.normalize(text_IW) @ torch.nn.functional.normalize(text_IW).T
    nearest_I = near_II.fill_diagonal_(-1).argmax(1).tolist()
    titles = films.titles
    found = titles[nearest_I[titles.index("Godfather, The (1972)")]]
    assert found == "Godfather: Part II, The (1974)"
