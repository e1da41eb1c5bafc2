"""Finding, saving and loading backbones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import recloom.trainer.collaborative as package
from recloom.data_shards.artifacts import read_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative import registry
from recloom.trainer.collaborative.base import Backbone, BackboneSettings
from recloom.trainer.collaborative.data import RatingData, TopKData, pad_histories
from recloom.trainer.collaborative.fit import fit
from recloom.trainer.collaborative.tasks import DirectBackbone, RatingBackbone, SequentialBackbone

KINDS = {"direct": DirectBackbone, "sequential": SequentialBackbone, "rating": RatingBackbone}
NAMES = registry.backbone_names()
Make = Callable[..., BackboneSettings]

NEW_FILE = """
import torch
from recloom.trainer.collaborative.base import BackboneSettings, Task
from recloom.trainer.collaborative.tasks import DirectBackbone

TASK: Task = "direct"


class Settings(BackboneSettings):
    model: str = "favourites"
    max_epochs: int = 2


class Favourites(DirectBackbone):
    def __init__(self, settings, sizes):
        super().__init__(settings, sizes)
        self.users = torch.nn.Parameter(torch.ones(self.num_users, 1))
        self.items = torch.nn.Parameter(torch.zeros(self.num_items, 1))

    def ego_vectors(self):
        return self.users, self.items

    def all_vectors(self):
        return self.ego_vectors()
"""

LOAD_AND_SCORE = """
import sys, torch, numpy as np
from pathlib import Path
from recloom.trainer.collaborative.registry import load_backbone
torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    backbone = load_backbone(folder)
    with torch.no_grad():
        scores = backbone.score(torch.arange(backbone.num_users), torch.load(sys.argv[2]))
    np.save(sys.argv[3] + "/" + folder.name, scores.numpy())
"""


def test_names_and_tasks() -> None:
    assert set(NAMES) >= {"deepfm", "lightgcn", "mf", "sasrec"} and sorted(NAMES) == NAMES
    assert registry.backbone_names("rating") == ["afm", "autoint", "dcn", "deepfm", "nfm", "xdeepfm"]
    assert sorted(name for task in KINDS for name in registry.backbone_names(task)) == NAMES
    for name in NAMES:
        module = registry.backbone_module(name)
        assert module.Settings.model_fields["model"].default == name
        # what is not trained at all is of no kind
        kind = Backbone if name == "vectors" else KINDS[module.TASK]
        assert issubclass(registry.backbone_class(module), kind)


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(UserError, match="'LightGNC', no such backbone, did you mean 'lightgcn'"):
        registry.backbone_module("LightGNC")
    with pytest.raises(UserError, match=f"choose from {', '.join(NAMES)}."):
        registry.backbone_module("base")


def test_settings_are_strict() -> None:
    settings = registry.backbone_module("lightgcn").Settings
    for bad in ({"layer": 2}, {"layers": 0}, {"learning_rate": -1.0}, {"patience": 0}):
        with pytest.raises(ValidationError):
            settings(**bad)
    with pytest.raises(ValidationError, match="embedding is 64, heads is 3"):
        registry.backbone_module("sasrec").Settings(heads=3)


def test_a_new_backbone_is_one_new_file(
    topk: TopKData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "favourites.py").write_text(NEW_FILE)
    (tmp_path / "helper.py").write_text("TASKS = 3\n")
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert registry.backbone_names() == ["favourites"]
    module = registry.backbone_module("favourites")
    backbone, result = fit(module, topk, module.Settings(), seed=0, progress=False)
    assert len(result.curve) == 2
    registry.save_backbone(backbone, module.Settings(), tmp_path / "saved")
    loaded = registry.load_backbone(tmp_path / "saved")
    assert torch.equal(loaded.state_dict()["items"], backbone.state_dict()["items"])
    sys.modules.pop(module.__name__)


def test_scores_are_bit_equal_in_a_new_process(
    topk: TopKData, rating: RatingData, settings_of: Make, tmp_path: Path
) -> None:
    histories_BL = pad_histories(topk.sequences, 50, topk.num_items)
    torch.save(histories_BL, tmp_path / "histories.pt")
    (tmp_path / "scores").mkdir()
    want = {}
    for name in NAMES:
        module = registry.backbone_module(name)
        settings = settings_of(name, embedding=8, max_epochs=2)
        data = rating if module.TASK == "rating" else topk
        backbone, result = fit(module, data, settings, seed=0, progress=False)
        registry.save_backbone(backbone, settings, tmp_path / "saved" / name, best_value=result.best_value)
        assert read_manifest(tmp_path / "saved" / name)["best_value"] == result.best_value
        with torch.no_grad():
            want[name] = backbone.score(torch.arange(topk.num_users), histories_BL).numpy()
    arguments = [str(tmp_path / part) for part in ("saved", "histories.pt", "scores")]
    subprocess.run([sys.executable, "-c", LOAD_AND_SCORE, *arguments], check=True, cwd=tmp_path)
    for name, scores_UI in want.items():
        assert np.isfinite(scores_UI).all() and scores_UI.std() > 0
        np.testing.assert_array_equal(np.load(tmp_path / "scores" / f"{name}.npy"), scores_UI)


def test_damage_is_found(topk: TopKData, tmp_path: Path) -> None:
    module = registry.backbone_module("mf")
    backbone = registry.backbone_class(module).build(topk, module.Settings(embedding=4))
    registry.save_backbone(backbone, module.Settings(embedding=4), tmp_path / "mf")
    weights = tmp_path / "mf" / registry.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UserError, match="checksum"):
        registry.load_backbone(tmp_path / "mf")
    (tmp_path / "mf" / "manifest.json").unlink()
    with pytest.raises(UserError, match="incomplete"):
        registry.load_backbone(tmp_path / "mf")
