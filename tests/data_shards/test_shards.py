"""Shards: the same bytes for the same samples, random access, and every kind of damage named."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recloom.data_shards.artifacts import file_sha256
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Entity, Literal, Sample, sample_text
from recloom.data_shards.shards import ShardReader, verify_shards, write_shards

NUM_SAMPLES = 25


def make_samples(count: int = NUM_SAMPLES) -> list[Sample]:
    samples = []
    for k in range(count):
        title = Entity(f"Café {'very ' * (k % 5)}long (19{k:02d})", "item", k)
        prompt = (Literal("Candidate Item: "), title, Literal("\nOutput:\n"))
        samples.append(Sample(f"s-{k}", prompt, (Literal(str(k % 5 + 1)),), {"task": "rating", "user": k}))
    return samples


@pytest.fixture(scope="module")
def renderer(tiny_llama: Path) -> Renderer:
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(tiny_llama))


@pytest.fixture(scope="module")
def written(renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(make_samples(), renderer, folder, samples_per_shard=10, config_digest="abc")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def test_manifest_counts(written: Path, renderer: Renderer) -> None:
    manifest = verify_shards(written)
    rendered = [renderer.render(sample) for sample in make_samples()]
    assert manifest["num_samples"] == NUM_SAMPLES and manifest["num_shards"] == 3
    assert manifest["num_tokens"] == sum(len(r.ids_T) for r in rendered)
    assert manifest["num_answer_tokens"] == sum(len(r.ids_T) - r.num_prompt for r in rendered)
    assert manifest["config_digest"] == "abc" and manifest["tokenizer"] == renderer.fingerprint()
    assert sorted(manifest["files"]) == [
        "index.npy",
        "lengths.npy",
        *(f"shard-0000{k}.tar" for k in range(3)),
    ]


def test_same_samples_same_bytes(written: Path, renderer: Renderer, tmp_path: Path) -> None:
    write_shards(iter(make_samples()), renderer, tmp_path, samples_per_shard=10, config_digest="abc")
    names = sorted(path.name for path in written.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert all(file_sha256(written / name) == file_sha256(tmp_path / name) for name in names)


def test_random_access(written: Path, renderer: Renderer) -> None:
    reader = ShardReader(written)
    samples = make_samples()
    assert len(reader) == NUM_SAMPLES
    for k in np.random.default_rng(0).permutation(NUM_SAMPLES).tolist():
        rendered = renderer.render(samples[k])
        assert reader.ids(k).dtype == np.int32 and np.array_equal(reader.ids(k), rendered.ids_T)
        assert (reader.lengths_N[k], reader.num_prompt_N[k]) == (len(rendered.ids_T), rendered.num_prompt)
        assert reader.sample(k) == samples[k]
        record = reader.record(k)
        assert record["text"] == sample_text(samples[k].prompt + samples[k].answer)
        assert record["entity_spans"] == [list(span) for span in rendered.entity_spans]
    reader.close()


def test_webdataset_reads_our_tars(written: Path, renderer: Renderer) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(written.glob("*.tar"))]
    rows = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [row["__key__"] for row in rows] == [sample.key for sample in make_samples()]
    for row, sample in zip(rows, make_samples(), strict=True):
        assert np.array_equal(row["ids.npy"], renderer.render(sample).ids_T)
        assert Sample.from_json(row["json"]) == sample


def truncate(folder: Path) -> None:
    path = folder / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-3000])


def flip_byte(folder: Path) -> None:
    path = folder / "shard-00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def flip_index(folder: Path) -> None:
    """A wrong index that the manifest vouches for: only reading the tar tells."""
    path = folder / "index.npy"
    index_N5 = np.load(path)
    index_N5[12, 1] += 512
    np.save(path, index_N5)
    digest = file_sha256(path)
    edit_manifest(folder, lambda manifest: manifest["files"]["index.npy"].update(sha256=digest))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (truncate, r"shard-00001\.tar: \d+ bytes, the manifest says"),
    (flip_byte, r"shard-00001\.tar: the checksum differs"),
    (lambda f: (f / "shard-00002.tar").unlink(), r"shard-00002\.tar: the file is missing"),
    (lambda f: (f / "lengths.npy").unlink(), r"lengths\.npy: the file is missing"),
    (lambda f: (f / "manifest.json").unlink(), r"no manifest\.json, the folder is incomplete"),
    (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json: the manifest is no valid JSON"),
    (lambda f: edit_manifest(f, lambda m: m.update(num_samples=24)), "manifest.json: num_samples is 24"),
    (
        lambda f: edit_manifest(f, lambda m: m.pop("num_tokens")),
        "manifest.json: the field num_tokens is missing",
    ),
    (lambda f: edit_manifest(f, lambda m: m["files"].pop("shard-00002.tar")), "disagree on shard-00002.tar"),
    (lambda f: edit_manifest(f, lambda m: m.update(num_shards=4)), "disagree on shard-00003.tar"),
    (flip_index, r"shard-00001\.tar: its members lie elsewhere than index\.npy says"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_found_and_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    verify_shards(folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        verify_shards(folder)


@pytest.mark.parametrize("link", [False, True])
def test_members_that_would_leave_the_folder_are_refused(folder: Path, link: bool) -> None:
    """We read members by their place and unpack none; others who get the folder may unpack it."""
    path = folder / "shard-00000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
        with tarfile.open(folder / "made.tar", "w", format=tarfile.USTAR_FORMAT) as made:
            for member, data in members:
                member.name = f"../{member.name}" if not link else member.name
                member.type, member.linkname = (tarfile.SYMTYPE, "/etc") if link else (member.type, "")
                made.addfile(member, data)
    (folder / "made.tar").replace(path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is no sample's file"):
        verify_shards(folder)


def test_the_reader_notices_what_is_cheap_to_notice(folder: Path) -> None:
    truncate(folder)
    with pytest.raises(UserError, match=r"shard-00001\.tar"):
        ShardReader(folder)


def test_interrupted_writing_leaves_no_manifest(folder: Path, renderer: Renderer) -> None:
    def broken() -> Any:
        yield from make_samples(12)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(broken(), renderer, folder, samples_per_shard=10)
    with pytest.raises(UserError, match="incomplete"):
        ShardReader(folder)
    write_shards(make_samples(12), renderer, folder, samples_per_shard=10)
    assert verify_shards(folder)["num_samples"] == 12
    assert not (folder / "shard-00002.tar").exists()


def test_bad_samples_are_refused(renderer: Renderer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'s-0': it occurs twice"):
        write_shards(make_samples(2) + make_samples(1), renderer, tmp_path)
    odd = Sample("a.b", make_samples(1)[0].prompt, (Literal("4"),), {})
    with pytest.raises(UserError, match=r"'a\.b': only letters"):
        write_shards([odd], renderer, tmp_path)
    with pytest.raises(UserError, match="no sample to write"):
        write_shards([], renderer, tmp_path)


def test_tar_headers_hold_no_time_or_owner(written: Path) -> None:
    with tarfile.open(written / "shard-00000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert [m.name for m in members[:2]] == ["s-0.json", "s-0.ids.npy"]
