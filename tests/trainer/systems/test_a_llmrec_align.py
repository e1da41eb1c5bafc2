"""A-LLMRec's stage 1 from end to end, with small fitted backbones and a tiny random sentence encoder.

Shapes: I items, D width of the recommender, E of the joint embeddings, T targets.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from recloom.data_shards.artifacts import MANIFEST, cache_dir, read_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative import bert4rec, evaluate, gru4rec, lightgcn, mf, ncf, nextitnet, sasrec
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.fit import fit
from recloom.trainer.collaborative.registry import backbone_class
from recloom.trainer.collaborative.tasks import NegativeSampler
from recloom.trainer.sentence_encoder import SentenceEncoder, minilm_folder
from recloom.trainer.systems.a_llmrec import align_data
from recloom.trainer.systems.a_llmrec.align import load_alignment, load_joint, train_alignment
from recloom.trainer.systems.a_llmrec.align_checkpoint import CHECKPOINT
from recloom.trainer.systems.a_llmrec.align_data import AlignBatch, Examples, States, epoch_batches
from recloom.trainer.systems.a_llmrec.align_loop import METRICS, AlignLoop
from recloom.trainer.systems.a_llmrec.alignment import Profile, Targets
from recloom.trainer.systems.a_llmrec.settings import AlignBlock

NUM_USERS, NUM_ITEMS, NUM_GROUPS = 24, 40, 4
KINDS = ("action", "comedy", "drama", "western")
TEXTS = [f"Title: {KINDS[item // 10]} number {item}" for item in range(NUM_ITEMS)]
LOSSES = ("matching", "item_recon", "text_recon", "rec")


def walks() -> list[np.ndarray]:
    """Users of a group walk through the group's ten items; a few have too little to learn from."""
    rng = np.random.default_rng(0)
    lengths = {3: 0, 5: 1, 6: 10}  # user 6 has more than a backbone sees
    sequences = []
    for user in range(NUM_USERS):
        start, length = int(rng.integers(10)), lengths.get(user, int(rng.integers(2, 8)))
        sequences.append((10 * (user % NUM_GROUPS) + (start + np.arange(length)) % 10).astype(np.int32))
    return sequences


SEQUENCES = walks()


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer BERT with MiniLM's tokenizer; as in real folders, the pooling has its own folder."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**shape, intermediate_size=16, max_position_embeddings=32)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder(cache_dir())).save_pretrained(folder)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 16}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    (folder / "README.md").write_text("not needed")
    return folder


def topk_data() -> TopKData:
    """The item that a walk would come to next is validation."""
    following = [items[-1] // 10 * 10 + (items[-1] + 1) % 10 if len(items) else -1 for items in SEQUENCES]
    valid = np.array(following, dtype=np.int64)
    nothing = [np.empty(0, dtype=np.int64)] * NUM_USERS
    return TopKData(NUM_USERS, NUM_ITEMS, SEQUENCES, valid, seen=nothing)


@pytest.fixture(scope="module")
def fitted_sasrec() -> Backbone:
    settings = sasrec.Settings(
        embedding=8, max_length=6, heads=2, max_epochs=80, patience=80, learning_rate=0.01
    )
    return fit(sasrec, topk_data(), settings, seed=0, progress=False)[0]


@pytest.fixture(scope="module")
def fitted_mf() -> Backbone:
    return fit(mf, topk_data(), mf.Settings(embedding=8, max_epochs=80, patience=80), seed=0, progress=False)[
        0
    ]


def random_backbone(module: ModuleType, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    backbone = backbone_class(module).build(topk_data(), module.Settings(embedding=8, **settings))
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone.eval()


def block(profile: Profile = "paper", **changes: Any) -> AlignBlock:
    small = {"width": 8, "epochs": 2, "batch_size": 5, "learning_rate": 3e-3, "checkpoint_every": 4}
    return AlignBlock.of(profile, **{**small, **changes})


def train(backbone: Backbone, settings: AlignBlock, encoder: Path, folder: Path, seed: int = 0) -> Path:
    train_alignment(backbone, SEQUENCES, TEXTS, settings, encoder, seed, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def mean_losses(folder: Path, epoch: int) -> np.ndarray:
    found = [[row[name] for name in (*LOSSES, "total")] for row in rows(folder) if row["epoch"] == epoch]
    return np.mean(found, axis=0)


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_losses_fall_and_items_meet_their_texts(
    fitted_sasrec: Backbone, encoder_folder: Path, tmp_path: Path, profile: Profile
) -> None:
    settings = block(profile, targets="all", epochs=40, learning_rate=1e-2, checkpoint_every=0)
    folder = train(fitted_sasrec, settings, encoder_folder, tmp_path / "out")
    first, last = mean_losses(folder, 1), mean_losses(folder, 40)
    assert (last[[1, 2, 3, 4]] < 0.95 * first[[1, 2, 3, 4]]).all()
    joint = load_joint(folder)
    group_I = torch.arange(NUM_ITEMS) // 10
    near_II = torch.cdist(joint.text_IE, joint.item_IE).topk(3, largest=False).indices
    hits = (group_I[near_II] == group_I[:, None]).float().mean()
    assert hits > 0.45, "texts lie near the items of their kind (by chance: a quarter)"


def test_what_is_frozen_and_what_is_the_callers(
    fitted_sasrec: Backbone, encoder_folder: Path, tmp_path: Path
) -> None:
    backbone = copy.deepcopy(fitted_sasrec)
    before = copy.deepcopy(backbone.state_dict())
    sequences, source = copy.deepcopy(SEQUENCES), contents(encoder_folder)
    torch.manual_seed(7)
    random = torch.get_rng_state()
    folder = train(backbone, block("released"), encoder_folder, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not backbone.training and all(weight.requires_grad for weight in backbone.parameters())
    assert all(np.array_equal(*pair) for pair in zip(SEQUENCES, sequences, strict=True))
    assert contents(encoder_folder) == source
    assert read_manifest(folder, verify=True)["files"].keys() == contents(folder).keys() - {MANIFEST}
    assert not any(name.endswith((".pt", ".tmp", ".md")) for name in contents(folder))


def test_the_encoder_is_trained_unless_it_is_frozen(
    fitted_sasrec: Backbone, encoder_folder: Path, tmp_path: Path
) -> None:
    start = SentenceEncoder.load(encoder_folder).state_dict()
    for trained in (True, False):
        settings = block(train_text_encoder=trained, negatives_too=True)
        folder = train(fitted_sasrec, settings, encoder_folder, tmp_path / f"{trained}")
        end = load_alignment(folder)[1].state_dict()
        moved = {name for name, value in end.items() if not torch.equal(value, start[name])}
        assert ("model.encoder.layer.0.attention.self.value.weight" in moved) is trained
        assert moved == set() or trained
        assert rows(folder)[-1]["total"] < rows(folder)[0]["total"]


def test_products_in_bfloat16_train_nearly_the_same(
    fitted_sasrec: Backbone, encoder_folder: Path, tmp_path: Path
) -> None:
    """And what is written down is the trained encoder's in float32."""
    exact, rounded = (
        train(fitted_sasrec, block(text_dtype=dtype), encoder_folder, tmp_path / dtype)
        for dtype in ("float32", "bfloat16")
    )
    totals = [np.array([row["total"] for row in rows(folder)]) for folder in (exact, rounded)]
    assert not np.array_equal(*totals)
    np.testing.assert_allclose(*totals, rtol=0.02)
    alignment, encoder = load_alignment(rounded)
    assert torch.equal(load_joint(rounded).text_IE, alignment.texts.encode(encoder.encode(TEXTS)))


def test_a_frozen_encoder_reads_each_text_once(
    fitted_mf: Backbone, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = SentenceEncoder.forward

    def noted(self: SentenceEncoder, texts: list[str]) -> Tensor:
        read.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(SentenceEncoder, "forward", noted)
    train(fitted_mf, block(train_text_encoder=False), encoder_folder, tmp_path / "frozen")
    assert sorted(read) == sorted(TEXTS)
    read.clear()
    train(fitted_mf, block(epochs=1, batch_size=99, negatives_too=True), encoder_folder, tmp_path / "one")
    step, end = read[:-NUM_ITEMS], read[-NUM_ITEMS:]
    assert sorted(end) == sorted(TEXTS) and len(set(step)) == len(step), "one step: no text twice"


class Killed(Exception):
    """Stands for the end of the process."""


def train_until(step: int, monkeypatch: pytest.MonkeyPatch, *given: Any) -> list[int]:
    """Train and be killed inside a step, or to the end; the steps that were begun."""
    begun: list[int] = []
    original = AlignLoop.train_step

    def watched(loop: AlignLoop, batch: Any) -> Any:
        begun.append(loop.step + 1)
        if loop.step + 1 == step:
            torch.rand(3)
            loop.targets(batch)
            raise Killed
        return original(loop, batch)

    with monkeypatch.context() as patch:
        patch.setattr(AlignLoop, "train_step", watched)
        try:
            train(*given)
        except Killed:
            assert begun[-1] == step
    return begun


@pytest.mark.parametrize(
    "settings",
    [
        block(),
        block("released", targets="all"),
        block(train_text_encoder=False),
        block(users=9, batch_size=1, checkpoint_every=5),
    ],
)
def test_a_killed_run_ends_with_the_same_bytes(
    fitted_sasrec: Backbone,
    encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: AlignBlock,
) -> None:
    whole = contents(train(fitted_sasrec, settings, encoder_folder, tmp_path / "whole"))
    cut = (fitted_sasrec, settings, encoder_folder, tmp_path / "cut")
    every, total = settings.checkpoint_every, whole[METRICS].count(b"\n")
    assert total > every + 2
    train_until(every + 3, monkeypatch, *cut)
    assert len(rows(tmp_path / "cut")) == every + 2
    with open(tmp_path / "cut" / METRICS, "a") as file:
        file.write('{"step": 99, "torn')
    assert not (tmp_path / "cut" / MANIFEST).exists()
    torch.manual_seed(99)
    assert train_until(0, monkeypatch, *cut)[0] == every + 1
    assert contents(tmp_path / "cut") == whole


def test_a_run_killed_at_the_end_takes_no_further_step(
    fitted_sasrec: Backbone, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (fitted_sasrec, block(checkpoint_every=7), encoder_folder)
    whole = contents(train(*given, tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("recloom.trainer.systems.a_llmrec.align.save_outcome", raise_killed)
        train(*given, tmp_path / "cut")
    assert train_until(0, monkeypatch, *given, tmp_path / "cut") == []
    assert contents(tmp_path / "cut") == whole


def raise_killed(*_: Any) -> None:
    raise Killed


@pytest.mark.parametrize("what", ["torn", "garbage", "settings", "seed", "texts", "sequences", "backbone"])
def test_a_torn_or_foreign_checkpoint_is_ignored(
    fitted_sasrec: Backbone,
    encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    folder, checkpoint = tmp_path / "out", tmp_path / "out" / CHECKPOINT
    backbone, settings, seed = fitted_sasrec, block(epochs=1, checkpoint_every=2), 0
    train_until(4, monkeypatch, backbone, settings, encoder_folder, folder, seed)
    assert checkpoint.is_file()
    if what in ("torn", "garbage"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100] if what == "torn" else b"no checkpoint")
    elif what == "settings":
        settings = settings.model_copy(update={"learning_rate": 2e-3})
    elif what == "seed":
        seed = 1
    elif what == "texts":
        monkeypatch.setitem(globals(), "TEXTS", [*TEXTS[:-1], "another"])
    elif what == "sequences":
        monkeypatch.setitem(globals(), "SEQUENCES", [SEQUENCES[0][::-1], *SEQUENCES[1:]])
    else:
        backbone = random_backbone(sasrec, max_length=6)
    begun = train_until(0, monkeypatch, backbone, settings, encoder_folder, folder, seed)
    assert begun[0] == 1
    assert contents(folder) == contents(train(backbone, settings, encoder_folder, tmp_path / "new", seed))


def test_another_encoder_is_another_run(
    fitted_mf: Backbone, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(encoder_folder, tmp_path / "other"))
    settings = block(epochs=1, checkpoint_every=2)
    train_until(4, monkeypatch, fitted_mf, settings, other, tmp_path / "out")
    assert train_until(5, monkeypatch, fitted_mf, settings, encoder_folder, tmp_path / "out")[0] == 3
    (other / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 4}))
    assert train_until(0, monkeypatch, fitted_mf, settings, other, tmp_path / "out")[0] == 1


def test_the_same_seed_gives_the_same_bytes(
    fitted_mf: Backbone, encoder_folder: Path, tmp_path: Path
) -> None:
    made = [
        contents(train(fitted_mf, block("released"), encoder_folder, tmp_path / f"{k}", seed))
        for k, seed in enumerate((3, 3, 4))
    ]
    assert made[0] == made[1]
    for name in ("alignment.safetensors", "joint.safetensors", "encoder/model.safetensors", METRICS):
        assert made[0][name] != made[2][name]


@pytest.mark.parametrize("off", [*((name,) for name in LOSSES), ("item_recon", "text_recon")])
def test_every_ablation_runs(
    fitted_mf: Backbone, encoder_folder: Path, tmp_path: Path, off: tuple[str, ...]
) -> None:
    folder = train(fitted_mf, block(**dict.fromkeys(off, False)), encoder_folder, tmp_path / "out")
    for row in rows(folder):
        assert {name for name in LOSSES if row[name] == 0} == set(off)
    assert load_joint(folder).item_IE.isfinite().all()


def test_what_is_written_reads_back(fitted_sasrec: Backbone, encoder_folder: Path, tmp_path: Path) -> None:
    folder = train(fitted_sasrec, block(), encoder_folder, tmp_path / "out")
    joint, (alignment, encoder) = load_joint(folder), load_alignment(folder)
    assert joint.item_IE.shape == joint.text_IE.shape == (NUM_ITEMS, 8)
    assert joint.item_IE.dtype == joint.text_IE.dtype == torch.float32
    assert not alignment.training and not encoder.training
    assert not any(weight.requires_grad for weight in (*alignment.parameters(), *encoder.parameters()))
    assert alignment.settings == block() and encoder.max_length == 12 and encoder.layout.normalise
    text_IW = encoder.encode(TEXTS)
    assert torch.equal(joint.text_IE, alignment.texts.encode(text_IW))
    assert torch.equal(joint.item_IE, alignment.items.encode(fitted_sasrec.item_vectors()).detach())
    before_IW = SentenceEncoder.load(encoder_folder, frozen=True).encode(TEXTS)
    assert (text_IW - before_IW).abs().max() > 1e-3
    (folder / "joint.safetensors").write_bytes((folder / "joint.safetensors").read_bytes()[:-1] + b"x")
    for load in (load_joint, load_alignment):
        with pytest.raises(UserError, match="checksum differs"):
            load(folder)


@pytest.mark.parametrize("subfolder", ["", "0_Transformer"])
def test_the_saved_encoder_is_the_trained_one(
    fitted_mf: Backbone,
    encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subfolder: str,
) -> None:
    """Also where the transformer lies in a folder of its own and its weights came in shards."""
    source = Path(shutil.copytree(encoder_folder, tmp_path / "source"))
    if subfolder:
        (source / subfolder).mkdir()
        for path in [p for p in source.iterdir() if p.is_file() and p.name != "modules.json"]:
            path.rename(source / subfolder / path.name)
        modules = json.loads((source / "modules.json").read_text())
        modules[0]["path"] = subfolder
        (source / "modules.json").write_text(json.dumps(modules))
        (source / subfolder / "pytorch_model.bin.index.json").write_text("{}")
    kept: list[Tensor] = []
    original = align_data.TextVectors.all

    def noted(self: align_data.TextVectors) -> Tensor:
        kept.append(original(self))
        return kept[-1]

    monkeypatch.setattr(align_data.TextVectors, "all", noted)
    folder = train(fitted_mf, block(), source, tmp_path / "out")
    loaded = SentenceEncoder.load(folder / "encoder", frozen=True)
    assert torch.equal(loaded.encode(TEXTS), kept[0])
    assert not list((folder / "encoder").rglob("*.index.json"))


def slow_state(backbone: Backbone, user: int, before: np.ndarray) -> Tensor:
    """x by the models' own parts, one history at a time, without padding and chunks."""
    items = torch.from_numpy(before[-backbone.history_length :].astype(np.int64))[None]
    if isinstance(backbone, bert4rec.BERT4Rec):
        asked = torch.cat([items, torch.tensor([[backbone.mask_token]])], 1)
        return backbone.project(backbone.encode(asked)[0, -1])
    if isinstance(backbone, sasrec.SASRec | gru4rec.GRU4Rec | nextitnet.NextItNet):
        return backbone.encode(items)[0, -1]
    vectors: Any = backbone
    return vectors.all_vectors()[0][user]


MODELS: list[tuple[ModuleType, dict[str, Any]]] = [
    (sasrec, {"max_length": 6}),
    (bert4rec, {"max_length": 7}),
    (gru4rec, {"max_length": 6}),
    (nextitnet, {"max_length": 6}),
    (mf, {}),
    (ncf, {}),
    (lightgcn, {}),
]


@pytest.mark.parametrize(("module", "given"), MODELS)
@pytest.mark.parametrize("targets", ["last", "all"])
def test_states_are_those_after_the_items_before_the_target(
    module: ModuleType, given: dict[str, Any], targets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "SCORES_PER_CHUNK", 42)  # several chunks
    backbone = random_backbone(module, **given)
    examples = Examples.make(SEQUENCES, NUM_ITEMS, block(targets=targets), seed=0)
    got_TD = States(backbone, SEQUENCES, examples, dropout=False).of(np.arange(len(examples.user_T)))
    want, row = [], 0
    for user, items in enumerate(SEQUENCES):
        if len(items) < 2:
            continue
        for place in range(1, len(items)) if targets == "all" else [len(items) - 1]:
            assert (examples.user_T[row], examples.item_T[row]) == (user, items[place])
            want.append(slow_state(backbone, user, items[:place]).detach())
            row += 1
    assert row == len(examples.user_T)
    torch.testing.assert_close(got_TD, torch.stack(want), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("module", [ncf, lightgcn, bert4rec])
@pytest.mark.parametrize("targets", ["last", "all"])
def test_every_kind_of_backbone_trains(
    encoder_folder: Path, tmp_path: Path, module: ModuleType, targets: str
) -> None:
    backbone = random_backbone(module)
    folder = train(backbone, block("released", targets=targets), encoder_folder, tmp_path / "out")
    item_width = load_alignment(folder)[0].items.encoder.in_features
    assert item_width == (16 if module is ncf else 8) == backbone.item_vectors().shape[1]


def test_the_recommenders_dropout(fitted_sasrec: Backbone) -> None:
    """Off: the same state each time. On: drawn anew each time, and never up front."""
    examples = Examples.make(SEQUENCES, NUM_ITEMS, block(), seed=0)
    all_T = np.arange(len(examples.user_T))
    still = States(fitted_sasrec, SEQUENCES, examples, dropout=False)
    assert torch.equal(still.of(all_T[4:7]), still.of(all_T)[4:7])
    moving = copy.deepcopy(fitted_sasrec).train()
    drawn = States(moving, SEQUENCES, examples, dropout=True)
    one_TD, other_TD = drawn.of(all_T), drawn.of(all_T)
    assert ((one_TD - other_TD).abs().amax(1) > 1e-3).all() and not one_TD.requires_grad


def test_dropout_while_training(
    fitted_sasrec: Backbone, fitted_mf: Backbone, encoder_folder: Path, tmp_path: Path
) -> None:
    """Of a trained encoder always, of a frozen one never, of the recommender by `recommender_dropout`."""

    def first(backbone: Backbone, **changes: Any) -> dict[str, float]:
        """The losses before any weight moved."""
        settings = block(**changes, epochs=1, batch_size=99)
        out = train(backbone, settings, encoder_folder, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        (row,) = rows(out)
        return row

    still = first(fitted_sasrec)
    moved = first(fitted_sasrec, recommender_dropout=True)
    assert moved["rec"] != still["rec"] and moved["item_recon"] == still["item_recon"]
    assert first(fitted_mf) == first(fitted_mf, recommender_dropout=True), "vectors without dropout"
    frozen = first(fitted_sasrec, train_text_encoder=False)
    assert frozen["matching"] != still["matching"] and frozen["rec"] == still["rec"]


def test_batches() -> None:
    """Each target once an epoch, whole sequences, negatives that the user never had, all fresh."""
    settings = block(targets="all")
    examples = Examples.make(SEQUENCES, NUM_ITEMS, settings, seed=0)
    sampler = NegativeSampler(SEQUENCES, NUM_ITEMS)
    epochs = [
        list(epoch_batches(examples, sampler, 5, seed, epoch)) for seed, epoch in [(0, 1), (0, 1), (0, 2)]
    ]
    orders = [np.concatenate([batch.rows_N for batch in batches]) for batches in epochs]
    negatives = [np.concatenate([batch.negatives_N for batch in batches]) for batches in epochs]
    assert np.array_equal(orders[0], orders[1]) and np.array_equal(negatives[0], negatives[1])
    assert not np.array_equal(orders[0], orders[2])
    by_target = [drawn[np.argsort(order)] for drawn, order in zip(negatives, orders, strict=True)]
    assert (by_target[0] != by_target[2]).mean() > 0.8
    assert np.array_equal(np.sort(orders[0]), np.arange(len(examples.user_T)))
    for batch in epochs[0]:
        users = [sorted({*examples.user_T[batch.rows_N].tolist()})]
        assert len(users[0]) == len(batch.mask_BL) <= 5
        owner_N = batch.mask_BL.nonzero()[:, 0].numpy()
        for row, negative in zip(batch.rows_N, batch.negatives_N, strict=True):
            assert negative not in SEQUENCES[examples.user_T[row]]
        for sequence in range(len(batch.mask_BL)):
            mine = batch.rows_N[owner_N == sequence]
            items = SEQUENCES[examples.user_T[mine[0]]]
            assert np.array_equal(examples.item_T[mine], items[1:])


def watch_targets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[AlignBatch, Targets]]:
    """Every step's batch and what is made of it, as they come."""
    seen: list[tuple[AlignBatch, Targets]] = []
    original = AlignLoop.targets

    def noted(loop: AlignLoop, batch: AlignBatch) -> Targets:
        seen.append((batch, original(loop, batch)))
        return seen[-1][1]

    monkeypatch.setattr(AlignLoop, "targets", noted)
    return seen


def test_a_step_sees_the_vectors_and_texts_of_its_items(
    fitted_sasrec: Backbone, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_targets(monkeypatch)
    settings = block(targets="all", negatives_too=True, train_text_encoder=False, epochs=1)
    train(fitted_sasrec, settings, encoder_folder, tmp_path / "out")
    examples = Examples.make(SEQUENCES, NUM_ITEMS, settings, seed=0)
    text_IW = SentenceEncoder.load(encoder_folder, frozen=True).encode(TEXTS)
    items_ID = fitted_sasrec.item_vectors().detach()
    for batch, made in seen:
        items_N, negatives_N = examples.item_T[batch.rows_N], batch.negatives_N
        assert torch.equal(made.positives_ND, items_ID[items_N])
        assert torch.equal(made.negatives_ND, items_ID[negatives_N])
        assert torch.equal(made.positive_text_NW, text_IW[items_N])
        assert made.negative_text_NW is not None
        assert torch.equal(made.negative_text_NW, text_IW[negatives_N])


@pytest.mark.parametrize("dropout", [False, True])
def test_an_epoch_has_its_own_order_and_dropout(
    fitted_sasrec: Backbone,
    encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dropout: bool,
) -> None:
    seen = watch_targets(monkeypatch)
    train(fitted_sasrec, block(targets="all", recommender_dropout=dropout), encoder_folder, tmp_path / "out")
    halves = (seen[: len(seen) // 2], seen[len(seen) // 2 :])
    orders = [np.concatenate([batch.rows_N for batch, _ in half]) for half in halves]
    states = [torch.cat([made.users_ND for _, made in half]) for half in halves]
    assert not np.array_equal(*orders) and np.array_equal(*(np.sort(order) for order in orders))
    one_TD, other_TD = (part[np.argsort(order)] for part, order in zip(states, orders, strict=True))
    assert torch.equal(one_TD, other_TD) is not dropout


def test_users_are_a_seeded_sample_of_those_that_can_be_learned_from() -> None:
    def users(count: int | None, seed: int = 0) -> list[int]:
        examples = Examples.make(SEQUENCES, NUM_ITEMS, block(users=count), seed)
        return examples.user_T.tolist()

    able = [user for user in range(NUM_USERS) if user not in (3, 5)]
    assert users(None) == users(22) == users(999) == able
    assert users(8) == users(8) != users(8, seed=1) and len(set(users(8))) == 8
    assert set(users(8)) < set(able)
    has_all = [np.arange(3), np.array([0, 1])]
    assert Examples.make(has_all, 3, block(), seed=0).user_T.tolist() == [1], "no item is left for a negative"
    with pytest.raises(UserError, match="no user has two training items"):
        Examples.make([np.empty(0), np.array([1])], 3, block(), seed=0)


def test_what_cannot_be_trained(fitted_mf: Backbone, encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="24 sequences and 39 texts for 24 users and 40 items"):
        train_alignment(fitted_mf, SEQUENCES, TEXTS[1:], block(), encoder_folder, 0, tmp_path)
    with pytest.raises(
        UserError, match=r"align.learning_rate = 1e\+30: the training diverged, the loss of step 2"
    ):
        train(fitted_mf, block(learning_rate=1e30), encoder_folder, tmp_path / "out")
