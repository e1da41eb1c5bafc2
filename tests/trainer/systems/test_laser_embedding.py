"""Vectors of all texts: equal to texts read one by one, in order, in chunks that outlive a kill.

Shapes: N texts, H width of the LLM, D width of the recommender.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from random_llm import random_llm

from recloom.data_shards.errors import UserError
from recloom.data_shards.stream import build_row
from recloom.trainer.collaborative import mf
from recloom.trainer.packed_attention import PACKED
from recloom.trainer.systems.laser.bituning import BiTuning, BiTuningOutput
from recloom.trainer.systems.laser.embedding import FILE, embed, part_path, read_vectors, write_vectors
from recloom.trainer.systems.laser.methods import METHODS
from recloom.trainer.systems.laser.mformer import MFormerSettings
from recloom.trainer.systems.laser.network import make_network
from recloom.trainer.systems.laser.objective import RowReader
from recloom.trainer.systems.laser.settings import BiTuneBlock, EmbedBlock, MethodName
from recloom.trainer.systems.laser.states import States

VOCABULARY, H, D, EOS, NUM_ITEMS = 50, 16, 5, 2, 12
BITUNE = BiTuneBlock(mformer=MFormerSettings(experts=3, tokens=2, blocks=2, hidden=8, heads=2))


class Texts:
    """Random ids of 3 to 30 tokens; a history of 1 to 4 items each."""

    has_slots = False

    def __init__(self, count: int = 23) -> None:
        rng = np.random.default_rng(count)
        self.lengths_N = rng.integers(3, 31, count).astype(np.int32)
        self.num_prompt_N = self.lengths_N
        self._ids = [rng.integers(3, VOCABULARY, n).astype(np.int32) for n in self.lengths_N]
        self._histories = [rng.integers(0, NUM_ITEMS, rng.integers(1, 5)).tolist() for _ in range(count)]

    def __len__(self) -> int:
        return len(self.lengths_N)

    def ids(self, index: int) -> np.ndarray:
        return self._ids[index]

    def record(self, index: int) -> dict[str, Any]:
        return {"meta": {"history": self._histories[index], "target": None}}


@cache
def network(name: MethodName = "laser") -> BiTuning:
    llm = random_llm(PACKED, vocab_size=VOCABULARY, hidden_size=H)
    mean_H = llm.embed_tokens.weight.detach().mean(0)
    return make_network(llm, METHODS[name], BITUNE, D, 0.3, mean_H, EOS).eval()


@cache
def states() -> States:
    torch.manual_seed(2)
    sizes = {"num_users": 4, "num_items": NUM_ITEMS}
    backbone = mf.MF(mf.Settings(embedding=D), sizes).eval().requires_grad_(False)
    return States(backbone, torch.zeros(D), torch.full((D,), 0.1), 3)


def reader_of(texts: Any, name: MethodName = "laser") -> RowReader:
    return RowReader(texts, states() if METHODS[name].prefix == "mformer" else None, torch.device("cpu"))


def one_by_one(texts: Texts, name: MethodName = "laser") -> Tensor:
    """(N, H): a row for each text."""
    reader = reader_of(texts, name)
    with torch.no_grad():
        rows = [reader.read(network(name), build_row(texts, [n])).states_SH for n in range(len(texts))]
    return torch.cat(rows)


class Counting:
    """The network; counts the texts it reads and dies at one."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.read, self.dies_at = 0, dies_at

    def __call__(self, **inputs: Any) -> BiTuningOutput:
        if self.dies_at is not None and self.read >= self.dies_at:
            raise KeyboardInterrupt
        self.read += len(inputs["boundaries"]) - 1
        output: BiTuningOutput = network()(**inputs)
        return output


class Nobody:
    """Must not be called."""

    def __call__(self, **inputs: Any) -> BiTuningOutput:
        raise AssertionError("nothing is left to read")


SIZES = EmbedBlock(pack_length=64, chunk=5)


@pytest.mark.parametrize("name", ["laser", "no_moe", "no_mformer", "no_prefix", "average", "hard_eos"])
def test_packed_texts_equal_texts_one_by_one(name: MethodName, tmp_path: Path) -> None:
    texts = Texts()
    got_NH = embed(network(name), reader_of(texts, name), SIZES, tmp_path / "v", "v")
    want_NH = one_by_one(texts, name)
    assert got_NH.dtype == torch.float32 and not got_NH.requires_grad and len(want_NH) == 23
    torch.testing.assert_close(got_NH, want_NH, atol=1e-5, rtol=0)
    assert torch.cdist(want_NH, want_NH).add(torch.eye(23) * 9).min() > 1e-2, "a wrong order would show"


@settings(max_examples=20, derandomize=True, deadline=None)
@given(count=st.integers(1, 12), pack_length=st.integers(16, 200), chunk=st.integers(1, 30))
def test_any_sizes_give_the_same_in_the_same_order(
    count: int, pack_length: int, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where a text is longer than a row, or a chunk holds all."""
    texts, folder = Texts(count), tmp_path_factory.mktemp("sizes") / "v"
    sizes = EmbedBlock(pack_length=pack_length, chunk=chunk)
    got_NH = embed(network(), reader_of(texts), sizes, folder, "v")
    torch.testing.assert_close(got_NH, one_by_one(texts), atol=1e-5, rtol=0)
    assert [path.name for path in folder.parent.iterdir()] == ["v"], "no parts are left"


def test_a_complete_folder_is_read(tmp_path: Path) -> None:
    first_NH = embed(network(), reader_of(Texts()), SIZES, tmp_path / "v", "v")
    assert torch.equal(embed(Nobody(), reader_of(Texts()), SIZES, tmp_path / "v", "v"), first_NH)


def interrupted(folder: Path, dies_at: int) -> list[Path]:
    """What a start leaves that dies when so many texts have been read: its parts."""
    with pytest.raises(KeyboardInterrupt):
        embed(Counting(dies_at), reader_of(Texts()), SIZES, folder, "v")
    assert not folder.exists()
    parts = part_path(folder, 0).parent
    return sorted(parts.glob("*.safetensors")) if parts.is_dir() else []


def nothing(folder: Path) -> None:
    pass


def flip_second(folder: Path) -> None:
    path = part_path(folder, 1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def tear_third(folder: Path) -> None:
    path = part_path(folder, 2)
    path.write_bytes(path.read_bytes()[:-9])


def lose_first(folder: Path) -> None:
    part_path(folder, 0).unlink()


def lose_third_checksum(folder: Path) -> None:
    part_path(folder, 2).with_suffix(".sha256").unlink()


@pytest.mark.parametrize(
    ("damage", "left"),
    [(nothing, 3), (flip_second, 1), (tear_third, 2), (lose_first, 0), (lose_third_checksum, 2)],
)
def test_whole_parts_are_kept_and_the_others_done_again(
    damage: Callable[[Path], None], left: int, tmp_path: Path
) -> None:
    """15 of 23 texts lie in three whole parts; `left` of them are still good."""
    folder = tmp_path / "v"
    assert len(interrupted(folder, 15)) == 3
    damage(folder)
    again = Counting()
    got_NH = embed(again, reader_of(Texts()), SIZES, folder, "v")
    assert again.read == 23 - 5 * left
    torch.testing.assert_close(got_NH, one_by_one(Texts()), atol=1e-5, rtol=0)
    undisturbed_NH = embed(network(), reader_of(Texts()), SIZES, tmp_path / "w", "w")
    torch.testing.assert_close(got_NH, undisturbed_NH, atol=1e-6, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v", "w"]


def test_a_folder_without_its_manifest_is_joined_again(tmp_path: Path) -> None:
    """A kill between the matrix and its manifest: the parts are all there."""
    folder = tmp_path / "v"
    interrupted(folder, 20)
    folder.mkdir()
    (folder / FILE).write_bytes(b"torn")
    again = Counting()
    got_NH = embed(again, reader_of(Texts()), SIZES, folder, "v")
    assert again.read == 3
    torch.testing.assert_close(got_NH, one_by_one(Texts()), atol=1e-5, rtol=0)


def test_read_back_bit_by_bit(tmp_path: Path) -> None:
    vectors_NH = torch.randn(7, 3)[:, [2, 0, 1]]
    write_vectors(tmp_path, vectors_NH.T.contiguous().T)
    assert torch.equal(read_vectors(tmp_path), vectors_NH)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_vectors_that_are_not_finite_are_one_sentence(tmp_path: Path, value: float) -> None:
    vectors_NH = torch.randn(7, 3)
    vectors_NH[4, 1] = value
    write_vectors(tmp_path, vectors_NH)
    with pytest.raises(UserError, match=r"its vectors are not finite: lower learning_rate, .*\.$"):
        read_vectors(tmp_path)


def test_infinities_of_both_signs_are_not_finite_either(tmp_path: Path) -> None:
    write_vectors(tmp_path, torch.tensor([[1.0, float("inf")], [float("-inf"), 1.0]]))
    with pytest.raises(UserError, match="not finite"):
        read_vectors(tmp_path)


def test_a_damaged_matrix_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    embed(network(), reader_of(Texts()), SIZES, folder, "v")
    data = bytearray((folder / FILE).read_bytes())
    data[-1] ^= 1
    (folder / FILE).write_bytes(data)
    with pytest.raises(UserError, match="the checksum differs from the manifest's"):
        embed(Nobody(), reader_of(Texts()), SIZES, folder, "v")


def test_an_empty_row_is_read(tmp_path: Path) -> None:
    """Ranks without a text of their own go through the same network."""
    output = reader_of(Texts()).read(network(), build_row(Texts(), []))
    assert output.states_SH.shape == (1, H) and output.router is not None


def test_a_row_whose_samples_are_told_reads_them_no_more() -> None:
    texts = Texts()
    reader, row = reader_of(texts), build_row(texts, [3, 0, 7])
    with torch.no_grad():
        want = reader.read(network(), row)
        metas = reader.metas(row.sample_indices)
        texts.record = None  # type: ignore[assignment]
        got = reader.read(network(), row, metas)
    assert torch.equal(got.states_SH, want.states_SH)
