"""Standardised states against numpy, and the files they are kept in.

Shapes: S samples, N states of the longest history, D width of the recommender, M states of many histories.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recloom.data_shards.errors import UserError
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.registry import backbone_class, backbone_module, save_backbone
from recloom.trainer.config_io import build_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser import states
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.states import States, load_states, run_states
from recloom.trainer.systems.laser.task import Example, Task

NUM_USERS, NUM_ITEMS, WIDTH, MAX_LENGTH = 30, 20, 8, 5


def examples() -> list[Example]:
    """Histories of 1 to 9 items, more than the models see."""
    rng = np.random.default_rng(0)
    return [Example(user, rng.integers(0, NUM_ITEMS, 1 + user % 9), 0) for user in range(NUM_USERS)]


def built(name: str, constant: int | None = None) -> tuple[Backbone, Any]:
    """A random backbone; `constant`: a dimension of the items' vectors that is 0.3 for all of them."""
    module, fields = backbone_module(name), {} if name == "mf" else {"max_length": MAX_LENGTH}
    settings = module.Settings(embedding=WIDTH, **fields)
    data: Any = TopKData(
        NUM_USERS,
        NUM_ITEMS,
        [example.history for example in examples()],
        np.full(NUM_USERS, -1),
        [example.history for example in examples()],
    )
    torch.manual_seed(1)
    backbone: Any = backbone_class(module).build(data, settings)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, mean=0.2, std=0.5)
    if constant is not None:
        backbone.items.weight.data[:, constant] = 0.3
    return backbone.eval(), settings


def kept(folder: Path, name: str, constant: int | None = None, **texts: Any) -> Run[LaserConfig]:
    """A run behind stage backbone."""
    raw = {
        "name": "small",
        "system": "laser",
        "data": {"source": "movielens", "variant": "100k"},
        "model": {"path": "none"},
        "backbones": {"sequential": {"model": "sasrec"}},
        "texts": texts,
    }
    config = build_config(raw, "test")
    assert isinstance(config, LaserConfig)
    run = Run(config, folder, folder / "cache")
    save_backbone(*built(name, constant), run.path("backbone"))
    nothing: Any = None
    run_states(run, Task(nothing, nothing, examples(), [], []))
    return run


def by_hand(backbone: Backbone, items: np.ndarray, limit: int) -> np.ndarray:
    """The states of one history, without padding."""
    with torch.no_grad():
        states_1ND, _ = backbone.states(torch.from_numpy(items[-limit:])[None])
    return states_1ND[0].double().numpy()


@pytest.mark.parametrize(
    ("name", "shown", "limit"), [("bert4rec", 3, 4), ("sasrec", 3, 5), ("mf", 3, 3), ("mf", 50, 50)]
)
@pytest.mark.parametrize("chunk", [7, 512])
def test_states_are_standardised_over_the_training_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shown: int, limit: int, chunk: int
) -> None:
    """A recommender's own limit counts, else the text's; padding counts for nothing."""
    monkeypatch.setattr(states, "CHUNK", chunk)
    found = load_states(kept(tmp_path, name, history_items=shown))
    backbone, _ = built(name)
    parts = [by_hand(backbone, example.history, limit) for example in examples()]
    every_MD = np.concatenate(parts)
    np.testing.assert_allclose(found.mean_D, every_MD.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.deviation_D, every_MD.std(0), atol=1e-5)
    assert found.width == WIDTH
    C_SND, real_SN = found.of([example.history.tolist() for example in examples()])
    assert C_SND.dtype == torch.float32 and real_SN.dtype == torch.bool and not C_SND.requires_grad
    for part, C_ND, real_N in zip(parts, C_SND, real_SN, strict=True):
        want_ND = (part - every_MD.mean(0)) / every_MD.std(0)
        np.testing.assert_allclose(C_ND[real_N], want_ND, atol=1e-4)
    real_MD = C_SND[real_SN]
    assert real_MD.mean(0).abs().max() < 1e-4
    assert (real_MD.std(0, correction=0) - 1).abs().max() < 1e-4
    assert C_SND.shape[1] == max(map(len, parts)), "no wider than the longest"


def test_a_state_depends_on_its_own_history_alone(tmp_path: Path) -> None:
    """Whatever lies in the row beside it: packing does not change what M-Former reads."""
    found = load_states(kept(tmp_path, "bert4rec"))
    lists = [example.history.tolist() for example in examples()[:9]]
    C_SND, real_SN = found.of(lists)
    for row, items in enumerate(lists):
        alone_1ND, real_1N = found.of([items])
        assert real_1N.all()
        torch.testing.assert_close(C_SND[row][real_SN[row]], alone_1ND[0], atol=1e-5, rtol=0)


def test_a_constant_dimension_becomes_zero(tmp_path: Path) -> None:
    found = load_states(kept(tmp_path, "mf", constant=2))
    C_SND, real_SN = found.of([[1, 2, 3], [4]])
    flat_MD = C_SND[real_SN]
    assert (flat_MD[:, 2] == 0).all() and (flat_MD[:, [0, 1, 3]] != 0).all() and flat_MD.isfinite().all()


def test_the_backbone_stays_as_it_is(tmp_path: Path) -> None:
    """Nothing of it is trained, nothing drops out, and its file is only read."""
    run = kept(tmp_path, "bert4rec")
    before = {path.name: path.read_bytes() for path in run.path("backbone").iterdir()}
    found = load_states(run)
    assert not found.backbone.training and not any(p.requires_grad for p in found.backbone.parameters())
    one, other = found.of([[1, 2]]), found.of([[1, 2]])
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert before == {path.name: path.read_bytes() for path in run.path("backbone").iterdir()}


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("states/standard.safetensors", "flip", "the checksum differs from the manifest's"),
        ("states/standard.safetensors", "cut", "bytes, the manifest says"),
        ("states/manifest.json", "remove", "no manifest.json, the folder is incomplete"),
        ("backbone/backbone.safetensors", "flip", "the checksum differs from the manifest's"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str, damage: str, told: str) -> None:
    run = kept(tmp_path, "mf")
    path = run.path(name)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(UserError) as caught:
        load_states(run)
    assert (
        told in str(caught.value) and str(path.parent) in str(caught.value) and "\n" not in str(caught.value)
    )


def test_a_second_start_writes_the_same(tmp_path: Path) -> None:
    """Over a manifest that would not fit while the file is new."""
    run = kept(tmp_path, "sasrec")
    first = {path.name: path.read_bytes() for path in run.path("states").iterdir()}
    nothing: Any = None
    run_states(run, Task(nothing, nothing, examples(), [], []))
    assert first == {path.name: path.read_bytes() for path in run.path("states").iterdir()}


def test_real_films_have_states(tmp_path: Path, shared_data: Path) -> None:
    """A direct backbone on MovieLens: histories of hundreds are cut to the text's."""
    from recloom.data_shards.sources import movielens

    tables: Tables = movielens.load(movielens.Settings(path=str(shared_data / "ml-100k")), shared_data)
    sequences = leave_one_out(tables, None).topk.train.sequences(tables.num_users)
    vectors_ID: Tensor = torch.randn(tables.num_items, WIDTH, generator=torch.Generator().manual_seed(0))
    backbone, _ = built("mf")
    backbone.num_items, items = tables.num_items, torch.nn.Embedding.from_pretrained(vectors_ID)
    backbone.items = items
    found = States(backbone, torch.zeros(WIDTH), torch.ones(WIDTH), 50)
    longest = max(sequences, key=len)
    C_SND, real_SN = found.of([longest.tolist(), longest[:2].tolist()])
    assert len(longest) > 500 and C_SND.shape == (2, 50, WIDTH)
    assert torch.equal(C_SND[0], vectors_ID[torch.from_numpy(longest[-50:].astype(np.int64))])
    assert real_SN.sum(1).tolist() == [50, 2]
