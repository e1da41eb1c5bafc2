"""The folder of checkpoints: which one is in force, what is kept, and sentences for what is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recloom.data_shards.errors import UserError
from recloom.trainer.checkpoint_ranks import check_convertible
from recloom.trainer.checkpoints import (
    LATEST,
    UNIVERSAL,
    Saved,
    complete,
    fault_in_share,
    flushed_share,
    in_force,
    refusal,
)
from recloom.trainer.parallel_layout import RankLayout
from recloom.trainer.universal import is_converted

LAYOUT = RankLayout(0, 4, tensor=2)
FILES = {f"rank_{rank}.pt": bytes([rank]) * 50 for rank in range(4)}


def write(folder: Path, step: int, keep: int = 2) -> Saved:
    """A checkpoint as four ranks leave it."""
    path = folder / f"step_{step}"
    path.mkdir(parents=True)
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    files = {name: entry for rank in range(4) for name, entry in flushed_share(path, rank, 4).items()}
    assert set(files) == set(FILES)
    complete(folder, step, LAYOUT, files, keep)
    saved = in_force(folder)
    assert saved is not None
    return saved


def fault(saved: Saved, ranks: int = 2) -> str | None:
    return next((found for rank in range(ranks) if (found := fault_in_share(saved, rank, ranks))), None)


def test_the_newest_is_in_force_and_the_oldest_go(tmp_path: Path) -> None:
    assert in_force(tmp_path) is None
    for step in (2, 4, 6):
        saved = write(tmp_path, step)
        assert (saved.step, saved.world_size, saved.tensor, fault(saved)) == (step, 4, 2, None)
    assert {path.name for path in tmp_path.iterdir()} == {LATEST, "step_4", "step_6"}
    assert saved.fits(LAYOUT) and not saved.fits(RankLayout(0, 4)) and not saved.fits(RankLayout(0, 2, 2))
    assert not saved.fits(RankLayout(0, 4, 2, piece=1000))


def test_what_was_made_for_other_ranks_goes_with_the_next(tmp_path: Path) -> None:
    write(tmp_path, 2)
    for name in (UNIVERSAL, f"{UNIVERSAL}.torn"):
        (tmp_path / name / "step_2").mkdir(parents=True)
    write(tmp_path, 4)
    assert {path.name for path in tmp_path.iterdir()} == {LATEST, "step_2", "step_4"}


def test_a_torn_checkpoint_is_not_in_force(tmp_path: Path) -> None:
    """A kill before the manifest, and one between the manifest and `latest.json`."""
    write(tmp_path, 2)
    (tmp_path / "step_4").mkdir()
    (tmp_path / "step_4/rank_0.pt").write_bytes(b"torn")
    saved = in_force(tmp_path)
    assert saved is not None and saved.step == 2
    (tmp_path / LATEST).unlink()
    saved = in_force(tmp_path)
    assert saved is not None and saved.step == 2 and fault(saved) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda path: (path / "rank_3.pt").write_bytes(b"\3" * 49),
            r"rank_3.pt: 49 bytes, the manifest says 50",
        ),
        (
            lambda path: (path / "rank_1.pt").write_bytes(b"\1" * 49 + b"\0"),
            "rank_1.pt: the checksum differs",
        ),
        (lambda path: (path / "rank_2.pt").unlink(), "rank_2.pt: the file is missing"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing or was changed"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is missing or was changed"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_newest_good_one(
    damage: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    for step in (2, 4, 6):
        saved = write(tmp_path, step, keep=3)
    damage(saved.path)
    found = fault(saved)
    assert found is not None and said in found
    (tmp_path / "step_4/rank_0.pt").write_bytes(b"\1" * 50)  # so that the second newest is bad too
    told = str(refusal(saved, found))
    assert f"step_6: the checkpoint can't be loaded ({said}" in told
    assert told.endswith("delete it, the same command continues from step_2, the newest good checkpoint.")
    (tmp_path / "step_2/rank_0.pt").unlink()
    assert str(refusal(saved, found)).endswith(f"delete {tmp_path}, the same command starts anew.")


def test_the_remedy_works(tmp_path: Path) -> None:
    """With the damaged checkpoint gone, the one before is in force, and is looked through as well."""
    for step in (2, 4):
        write(tmp_path, step)
    (tmp_path / "step_4").rename(tmp_path / "gone")
    saved = in_force(tmp_path)
    assert saved is not None and saved.step == 2 and fault(saved) is None
    (tmp_path / "step_2/rank_3.pt").write_bytes(b"\4" * 50)
    assert "rank_3.pt" in str(fault(saved))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"step": null}', '{"step": 2}'])
def test_a_damaged_latest_file(text: str, tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / LATEST).write_text(text)
    with pytest.raises(UserError, match="latest.json: .* continues from step_2, the newest good"):
        in_force(tmp_path)


def test_a_checkpoint_of_a_version_without_manifests(tmp_path: Path) -> None:
    """Taken as it is; the ranks of one that knew no tensor parallelism held the whole model."""
    (tmp_path / "step_1").mkdir()
    (tmp_path / LATEST).write_text(json.dumps({"tag": "step_1", "step": 1, "world_size": 4}))
    saved = in_force(tmp_path)
    assert saved is not None and saved.fits(RankLayout(0, 4)) and fault(saved) is None


def test_what_cannot_be_converted() -> None:
    saved = Saved(Path("ck"), 4, 4, 2, 10**9)
    check_convertible(saved, {"stage": 3, "offload_optimizer": {"device": "cpu"}})
    with pytest.raises(
        UserError, match="4 ranks with parallel.tensor = 2 without ZeRO .* start 4 ranks with"
    ):
        check_convertible(saved, {"stage": 0})
    with pytest.raises(UserError, match="parallel.offload_folder .* can't be converted"):
        check_convertible(saved, {"stage": 3, "offload_optimizer": {"device": "nvme"}})


def test_a_universal_form_belongs_to_one_checkpoint(tmp_path: Path) -> None:
    from recloom.data_shards.artifacts import write_manifest
    from recloom.trainer.universal import source_of, universal_path

    saved = write(tmp_path, 2)
    assert not is_converted(saved)
    made = universal_path(saved)
    made.mkdir(parents=True)
    (made / "weight.pt").write_bytes(b"weight")
    write_manifest(made, source=source_of(saved.path))
    assert is_converted(saved)
    (saved.path / "manifest.json").write_text("{}")  # the same step, written again
    assert not is_converted(saved)
