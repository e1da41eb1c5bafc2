"""AutoInt's prediction with attention written field by field and head by head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative.autoint import Interacting
from recloom.trainer.collaborative.fields import FieldBackbone

USERS_N, ITEMS_N = torch.tensor([3, 17, 40]), torch.tensor([8, 39, 2])


def interacted(layer: Interacting, fields_FD: np.ndarray, heads: int) -> np.ndarray:
    """Eqs. 5 to 8 for one pair of user and item."""
    state = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    query, key, value = (np.split(state[f"{name}.weight"], heads) for name in ("query", "key", "value"))
    rows = []
    for own_D in fields_FD:
        found = []
        for head in range(heads):
            similar = [np.exp((query[head] @ own_D) @ (key[head] @ other_D)) for other_D in fields_FD]
            terms = [s * (value[head] @ other_D) for s, other_D in zip(similar, fields_FD, strict=True)]
            found += (sum(terms) / sum(similar)).tolist()
        rows.append(np.maximum(np.array(found) + state["residual.weight"] @ own_D, 0))
    return np.array(rows)


def test_prediction_field_by_field(rating_backbone: Callable[..., FieldBackbone]) -> None:
    backbone = rating_backbone("autoint", layers=2, heads=2, attention=3, embedding=5, dropout=0.5)
    factors_NFD = backbone.fields(backbone.factors, USERS_N, ITEMS_N).detach().numpy()
    first_N = backbone.first_order(USERS_N, ITEMS_N).tolist()
    head = backbone.head.weight[0].detach().numpy()
    assert len(backbone.interacting) == 2 and head.shape == (4 * 2 * 3,)
    for row, got in enumerate(backbone(USERS_N, ITEMS_N).tolist()):
        fields_FD = factors_NFD[row]
        for layer in backbone.interacting:
            fields_FD = interacted(layer, fields_FD, heads=2)
        assert got == pytest.approx(first_N[row] + float(head @ fields_FD.ravel()))


def test_equal_fields_keep_equal_vectors() -> None:
    """Attention has no position: equal inputs give equal outputs, and they are averages of one value."""
    torch.manual_seed(0)
    layer = Interacting(width=4, heads=2, attention=3)
    fields_NFD = torch.randn(2, 1, 4).expand(2, 5, 4)
    out_NFD = layer(fields_NFD)
    torch.testing.assert_close(out_NFD, out_NFD[:, :1].expand_as(out_NFD))
    torch.testing.assert_close(out_NFD, torch.relu(layer.value(fields_NFD) + layer.residual(fields_NFD)))
