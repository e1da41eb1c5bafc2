"""Stage 2's networks and the frozen LLM around them, alone and under ZeRO, against plain PyTorch.

Shapes: N rows, U users, I items, X, D and E widths of vectors, H width of the LLM, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from projected_ranks import PARTS, SAVED_STEP, SlotSamples, make_stream, training_block, vectors
from ranks import run_ranks
from test_a_llmrec_asked import NUM_ITEMS, small_run

from recloom.data_shards.artifacts import write_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import SlotPosition
from recloom.data_shards.stream import build_row
from recloom.trainer.collaborative import mf
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.evaluate import user_vectors
from recloom.trainer.collaborative.registry import load_backbone, save_backbone
from recloom.trainer.config import ModelBlock
from recloom.trainer.config_io import dump_config
from recloom.trainer.engine import load_partitioned
from recloom.trainer.loss import answer_loss, soft_inputs
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec import vectors as soft_vectors
from recloom.trainer.systems.a_llmrec.align import JointEmbeddings
from recloom.trainer.systems.a_llmrec.alignment import Alignment
from recloom.trainer.systems.a_llmrec.prepare import load_task
from recloom.trainer.systems.a_llmrec.projection import (
    ProjectedLM,
    Projection,
    Widths,
    load_projection,
    save_projection,
    standardised,
)
from recloom.trainer.systems.a_llmrec.prompts import load_states, save_states
from recloom.trainer.systems.a_llmrec.settings import AlignBlock, ALLMRecConfig
from recloom.trainer.systems.a_llmrec.vectors import item_table, soft_tables

SCRIPT = Path(__file__).parent.parent / "projected_ranks.py"
CPU = torch.device("cpu")
Networks = dict[str, nn.Sequential]


def plain_networks(parts: str, tokens: int) -> Networks:
    """F_U and F_I as the protocol has them, drawn in the order in which Projection draws them."""
    torch.manual_seed(0)
    made = {}
    for name, width, activation in (("user", 5, nn.LeakyReLU()), ("item", 7, nn.GELU())):
        if PARTS[parts][name == "item"]:
            made[name] = nn.Sequential(
                nn.Linear(width, 12), nn.LayerNorm(12), activation, nn.Linear(12, tokens)
            )
    return made


def parameters(networks: Networks) -> list[nn.Parameter]:
    return [weight for network in networks.values() for weight in network.parameters()]


def named(networks: Networks) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": weight
        for part, network in networks.items()
        for name, weight in network.state_dict().items()
    }


def sample_loss(llm: Any, networks: Networks, source: SlotSamples, index: int) -> Tensor:
    """Summed loss of one sample's answer, the vectors put among the embeddings one by one."""
    users_UD, items_IE = vectors()
    ids_T = torch.from_numpy(source.ids(index)).long()
    rows = list(llm.get_input_embeddings().weight[ids_T])
    for position, kind, id in source.slots(index):
        if kind == "user":
            rows[position] = networks["user"](users_UD[id])
        else:
            rows[position] = networks["item"](items_IE[id])
    logits_TV = llm(inputs_embeds=torch.stack(rows)[None]).logits[0, :-1]
    labels_T = ids_T[1:].clone()
    labels_T[: source.num_prompt_N[index] - 1] = -100
    return nn.functional.cross_entropy(logits_TV, labels_T, reduction="sum")


def load_frozen(folder: Path, attention: str = "eager") -> Any:
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return llm.requires_grad_(False)


@pytest.fixture(scope="module")
def tiny_opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer OPT that drops out a lot in training mode."""
    folder = tmp_path_factory.mktemp("tiny_opt")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    rates = {"dropout": 0.4, "attention_dropout": 0.4, "layerdrop": 0.4}
    config = OPTConfig(vocab_size=49152, word_embed_proj_dim=64, pad_token_id=2, **shape, **rates)
    OPTForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def llm_folder(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


both_models = pytest.mark.parametrize("llm_folder", ["tiny_llama", "tiny_opt"], indirect=True)


# ---- the networks and their inputs


@pytest.mark.parametrize("parts", list(PARTS))
def test_projection_is_two_layers_a_kind(parts: str) -> None:
    torch.manual_seed(0)
    user, item = PARTS[parts]
    projection = Projection(Widths(5 if user else None, 7 if item else None, 12, 64))
    networks = plain_networks(parts, 64)
    assert projection.state_dict().keys() == named(networks).keys()
    projection.load_state_dict(named(networks))
    given = dict(zip(("user", "item"), vectors(), strict=True))
    want_NH = torch.cat([network(given[name]) for name, network in networks.items()])
    torch.testing.assert_close(projection(*vectors()), want_NH)


def test_projection_takes_float32_vectors_in_any_format() -> None:
    projection = Projection(Widths(5, 7, 12, 64)).bfloat16()
    assert projection(*vectors()).dtype == torch.bfloat16


@pytest.mark.parametrize("parts", list(PARTS))
@pytest.mark.parametrize("scale", [0.02, 3.0])
def test_soft_rows_start_as_large_as_tokens(parts: str, scale: float) -> None:
    user, item = PARTS[parts]
    projection = Projection(Widths(5 if user else None, 7 if item else None, 12, 64))
    before = {name: weight.clone() for name, weight in projection.state_dict().items()}
    users_UD, items_IE = vectors()
    projection.match_scale(users_UD * 9, items_IE, scale)
    for network, vectors_NX in ((projection.user, users_UD * 9), (projection.item, items_IE)):
        if network is not None:
            assert network(vectors_NX).square().mean().sqrt().item() == pytest.approx(scale, rel=1e-5)
    changed = {
        name for name, weight in projection.state_dict().items() if not torch.equal(weight, before[name])
    }
    assert changed == {name for name in before if ".3." in name}, "only the last layers"
    assert all(weight.requires_grad for weight in projection.parameters())


VALUES = st.floats(-100, 100, width=32)


@settings(max_examples=100, derandomize=True)
@given(data=st.data())
def test_standardised(data: st.DataObject) -> None:
    """Mean 0 and deviation 1 over `like`; a dimension that is constant there is 0, whatever is asked."""
    count = data.draw(st.integers(2, 8))
    column = st.lists(VALUES, min_size=count, max_size=count).filter(
        lambda found: max(found) - min(found) > 0.1
    )
    columns = data.draw(st.lists(column, min_size=1, max_size=4))
    constant = data.draw(VALUES)
    like_MX = torch.tensor([*columns, [constant] * count]).T
    found_MX = standardised(like_MX, like_MX)
    torch.testing.assert_close(found_MX[:, :-1].mean(0), torch.zeros(len(columns)), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        found_MX[:, :-1].square().mean(0).sqrt(), torch.ones(len(columns)), atol=1e-3, rtol=0
    )
    asked_NX = torch.randn(3, len(columns) + 1) * 10
    by_hand_NX = (asked_NX.double() - like_MX.double().mean(0)) / like_MX.double().std(0, correction=0)
    found_NX = standardised(asked_NX, like_MX)
    torch.testing.assert_close(found_NX[:, :-1].double(), by_hand_NX[:, :-1], rtol=1e-3, atol=1e-3)
    assert found_NX.dtype == torch.float32
    assert not found_NX[:, -1].any() and not found_MX[:, -1].any()


@pytest.mark.parametrize("value", [0.03, 0.111, 0.3, 0.9])
def test_a_constant_dimension_is_nothing_however_torch_rounds(value: float) -> None:
    """Of a table of one column the deviation of equal numbers is not quite 0."""
    like_MX = torch.full((1000, 1), value)
    assert not standardised(torch.tensor([[value], [0.5]]), like_MX).any()


def test_without_standardising_bfloat16_loses_the_items() -> None:
    """Joint embeddings that lie close together behind their sigmoid."""
    torch.manual_seed(0)
    vectors_IE = torch.sigmoid(torch.randn(200, 16) * 1e-3)
    assert len(vectors_IE.unique(dim=0)) == 200
    assert len(vectors_IE.bfloat16().unique(dim=0)) < 5
    kept_IE = standardised(vectors_IE, vectors_IE)
    assert len(kept_IE.bfloat16().unique(dim=0)) == 200
    error = (kept_IE.bfloat16().float() - kept_IE).abs().max() / kept_IE.abs().max()
    assert error < 0.01


KINDS = st.sampled_from(["user", "history", "candidate"])
SLOTS = st.lists(st.tuples(st.integers(0, 19), KINDS, st.integers(0, 5)), unique_by=lambda slot: slot[0])


@settings(max_examples=200, derandomize=True)
@given(slots=SLOTS)
def test_soft_inputs_name_each_vector_once(slots: list[SlotPosition]) -> None:
    found = soft_inputs(slots, 20, CPU)
    users, items = found["user_rows_U"].tolist(), found["items_J"].tolist()
    assert users and items and len(set(users)) == len(users) and len(set(items)) == len(items)
    rows = [("user", id) for id in users] + [("item", id) for id in items]
    soft = found["soft_BT"][0].tolist()
    want = {position: ("user" if kind == "user" else "item", id) for position, kind, id in slots}
    assert {position: rows[row] for position, row in enumerate(soft) if row >= 0} == want
    assert {row for row in soft if row < 0} <= {-1} and found["soft_BT"].shape == (1, 20)
    assert len(users) == max(1, len({id for _, kind, id in slots if kind == "user"}))
    assert len(items) == max(1, len({id for _, kind, id in slots if kind != "user"}))


# ---- what it projects


def by_hand(vectors_NX: Tensor, like_MX: Tensor) -> Tensor:
    like_MX = like_MX.double()
    return ((vectors_NX.double() - like_MX.mean(0)) / like_MX.std(0, correction=0)).float()


def vector_run(folder: Path, **changes: Any) -> Run[ALLMRecConfig]:
    """A run with a random backbone and random user states of stage prompts."""
    run = small_run(folder, **({"backbones": {"direct": {"model": "mf"}}} | changes))
    task, settings = load_task(run), mf.Settings(embedding=4)
    data = TopKData.from_split(task.scenario.splits.topk, task.tables.num_users, task.tables.num_items)
    torch.manual_seed(2)
    save_backbone(mf.MF.build(data, settings), settings, run.path("backbone"))
    save_states(run, torch.randn(30, 4) * 3 + 1, task.cold_I)
    return run


@pytest.fixture
def joint(monkeypatch: pytest.MonkeyPatch) -> JointEmbeddings:
    torch.manual_seed(7)
    found = JointEmbeddings(torch.rand(NUM_ITEMS, 6), torch.rand(NUM_ITEMS, 6))
    monkeypatch.setattr(soft_vectors, "load_joint", lambda folder: found)
    return found


def test_item_vectors_of_each_method(tmp_path: Path, joint: JointEmbeddings) -> None:
    """Items without interactions have q; all are on the scale of the others, which F_I was trained with."""
    run = vector_run(tmp_path)
    cold_I = np.zeros(NUM_ITEMS, bool)
    cold_I[[3, 8, 30]] = True
    known_IE = joint.item_IE.clone()
    known_IE[[3, 8, 30]] = joint.text_IE[[3, 8, 30]]
    close = torch.testing.assert_close
    close(item_table(run, "joint", cold_I), by_hand(known_IE, known_IE[~cold_I]), atol=1e-5, rtol=1e-5)
    close(item_table(run, "text", cold_I), by_hand(joint.text_IE, known_IE[~cold_I]), atol=1e-5, rtol=1e-5)
    own_ID = load_backbone(run.path("backbone")).item_vectors().detach()
    close(item_table(run, "backbone", cold_I), by_hand(own_ID, own_ID[~cold_I]), atol=1e-5, rtol=1e-5)


def test_noise_in_the_items_place(tmp_path: Path, joint: JointEmbeddings) -> None:
    """Row 4 of Table 7: of the same width, the same each time, another with another seed."""
    nothing_I = np.zeros(NUM_ITEMS, bool)
    tables = [
        item_table(
            vector_run(tmp_path / str(n), seed=seed, project={"item_vectors": "random"}), vectors, nothing_I
        )
        for n, (seed, vectors) in enumerate([(1, "joint"), (1, "text"), (2, "joint")])
    ]
    assert tables[0].shape == joint.item_IE.shape
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    plain_IE = by_hand(joint.item_IE, joint.item_IE)
    assert (tables[0] * plain_IE).mean(0).abs().max() < 0.6, "nothing of the joint embeddings is in it"


def test_tables_of_the_users_who_are_asked(tmp_path: Path, joint: JointEmbeddings) -> None:
    run = vector_run(tmp_path)
    task = load_task(run)
    users_N = np.array([4, 2, 4])
    histories = [task.histories[2], task.histories[4], task.train_sequences[4]]
    tables = soft_tables(run, task, "joint", users_N, histories)
    states_ND = user_vectors(load_backbone(run.path("backbone")), users_N, histories)
    want_ND = by_hand(states_ND, load_states(run))
    torch.testing.assert_close(tables.users_ND, want_ND, atol=1e-5, rtol=1e-5)
    assert torch.equal(tables.items_IE, item_table(run, "joint", task.cold_I))


class LengthEncoder:
    """A fake sentence encoder: what it is asked, and numbers that depend on the text."""

    def encode(self, texts: list[str]) -> Tensor:
        self.texts = texts
        return torch.tensor([[len(text) / 20, sum(map(ord, text)) % 17 / 17] for text in texts])


def test_tables_of_another_data_set(
    tmp_path: Path, joint: JointEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items are their texts' q; a user is the mean of the history's items, decoded from q."""
    source = vector_run(tmp_path / "source", item_text={"style": "plain"})
    (source.folder / "config.yaml").write_text(dump_config(source.config))
    (source.folder / "stages").mkdir()
    (source.folder / "stages/rank.json").write_text("{}")
    scenario = {"name": "cross_domain", "trained": str(source.folder)}
    run = small_run(tmp_path / "here", scenario=scenario, methods=["a_llmrec"])
    task, encoder = load_task(run), LengthEncoder()
    torch.manual_seed(0)
    alignment = Alignment(4, 2, AlignBlock(width=6)).requires_grad_(False)
    monkeypatch.setattr(soft_vectors, "load_alignment", lambda folder: (alignment, encoder))
    histories = [task.histories[2], task.histories[4], np.empty(0, dtype=np.int32)]
    tables = soft_tables(run, task, "text", np.array([2, 4, 5]), histories)
    assert encoder.texts == task.tables.titles
    q_IE = torch.sigmoid(alignment.texts.encoder(encoder.encode(task.tables.titles)))
    cold_J = load_task(source).cold_I
    torch.testing.assert_close(tables.items_IE, by_hand(q_IE, joint.item_IE[~cold_J]), atol=1e-5, rtol=1e-5)
    states = [
        torch.stack([alignment.items.decoder(q_IE[item]) for item in items]).mean(0)
        if len(items)
        else torch.zeros(4)
        for items in histories
    ]
    want_ND = by_hand(torch.stack(states), load_states(source))
    torch.testing.assert_close(tables.users_ND, want_ND, atol=1e-5, rtol=1e-5)


# ---- on disk


def saved(folder: Path, **changes: Any) -> Projection:
    torch.manual_seed(3)
    projection = Projection(Widths(**{"user": 5, "item": 7, "hidden": 12, "tokens": 64} | changes))
    save_projection(projection.state_dict(), projection.widths, folder)
    write_manifest(folder, steps=3)
    return projection


@pytest.mark.parametrize("missing", [{}, {"user": None}, {"item": None}])
def test_a_saved_projection_comes_back(tmp_path: Path, missing: dict[str, None]) -> None:
    projection = saved(tmp_path / "model", **missing)
    loaded = load_projection(tmp_path / "model")
    assert loaded.widths == projection.widths and not loaded.training
    assert torch.equal(loaded(*vectors()), projection(*vectors()))


def test_a_projection_trained_in_bfloat16_comes_back_in_float32(tmp_path: Path) -> None:
    projection = Projection(Widths(5, 7, 12, 64)).bfloat16()
    save_projection(projection.state_dict(), projection.widths, tmp_path)
    write_manifest(tmp_path)
    for name, weight in load_projection(tmp_path).state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, projection.state_dict()[name].float())


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    saved(tmp_path / "flipped")
    path = tmp_path / "flipped" / "projection.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="projection.safetensors: the checksum differs"):
        load_projection(tmp_path / "flipped")
    saved(tmp_path / "torn")
    (tmp_path / "torn" / "projection.json").unlink()
    with pytest.raises(UserError, match="projection.json: the file is missing"):
        load_projection(tmp_path / "torn")
    projection = Projection(Widths(5, 7, 12, 64))
    save_projection(projection.state_dict(), projection.widths, tmp_path / "unfinished")
    with pytest.raises(UserError, match=r"no manifest\.json, the folder is incomplete"):
        load_projection(tmp_path / "unfinished")


# ---- around a frozen LLM, in one process


def around(llm: Any, parts: str) -> tuple[ProjectedLM, Networks]:
    """The module, and its networks in plain PyTorch with weights of their own."""
    user, item = PARTS[parts]
    networks = plain_networks(parts, llm.config.hidden_size)
    projection = Projection(Widths(5 if user else None, 7 if item else None, 12, llm.config.hidden_size))
    projection.load_state_dict(named(networks))
    return ProjectedLM(llm, projection, *vectors()), networks


@both_models
@pytest.mark.parametrize("attention", ["packed", "sdpa"])
@pytest.mark.parametrize("parts", list(PARTS))
def test_packed_row_equals_samples_one_by_one(llm_folder: Path, attention: str, parts: str) -> None:
    """Loss and gradients of a row of three prompts, each with its own user."""
    source = SlotSamples(*PARTS[parts])
    model, networks = around(load_frozen(llm_folder, attention), parts)
    row = build_row(source, [0, 3, 5])
    loss = answer_loss(model.eval(), row, attention, CPU)
    loss.backward()
    plain_llm = load_frozen(llm_folder).eval()
    want = torch.stack([sample_loss(plain_llm, networks, source, index) for index in (0, 3, 5)]).sum()
    want.backward()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)
    for got, plain in zip(model.projection.parameters(), parameters(networks), strict=True):
        torch.testing.assert_close(got.grad, plain.grad, rtol=1e-4, atol=1e-6)
        assert got.grad is not None and got.grad.any()
    assert all(weight.grad is None and not weight.requires_grad for weight in model.llm.parameters())


@pytest.mark.parametrize("parts", list(PARTS))
def test_an_empty_row_passes_zeros_to_every_network(tiny_llama: Path, parts: str) -> None:
    """On another rank the same networks get real gradients; collectives must pair up."""
    model, _ = around(load_frozen(tiny_llama, "packed"), parts)
    loss = answer_loss(model, build_row(SlotSamples(*PARTS[parts]), []), "packed", CPU)
    loss.backward()
    assert loss.item() == 0
    for weight in model.projection.parameters():
        assert weight.grad is not None and not weight.grad.any()


def test_only_the_projection_is_cast_with_the_llm(tiny_llama: Path) -> None:
    """bfloat16 engines cast modules; the vectors stay as they are and are no part of the weights."""
    model, _ = around(load_frozen(tiny_llama, "sdpa"), "both")
    model.bfloat16()
    assert {table.dtype for table in model.tables} == {torch.float32}
    assert {name.split(".")[0] for name in model.state_dict()} == {"llm", "projection"}
    ids_BT = torch.arange(12)[None]
    embedded_BTH = model.embed(ids_BT, **soft_inputs([(2, "user", 1)], 12, CPU))
    assert embedded_BTH.dtype == torch.bfloat16 and embedded_BTH.shape == (1, 12, 64)


# ---- a frozen LLM as the engine loads it


@both_models
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_llm_is_steady_and_lets_gradients_through(llm_folder: Path, checkpointing: bool) -> None:
    """In training mode, which checkpointing needs, nothing drops out; the inputs get their gradients."""
    block = ModelBlock(path=str(llm_folder), dtype="float32", attention="sdpa")
    ds_config = {"zero_optimization": {"stage": 2}}
    llm = load_partitioned(str(llm_folder), ds_config, block, checkpointing, frozen=True).train()
    assert not any(weight.requires_grad for weight in llm.parameters())
    grads = []
    for _ in range(2):
        inputs_BTH = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        llm(inputs_embeds=inputs_BTH).logits.square().sum().backward()
        assert inputs_BTH.grad is not None and inputs_BTH.grad.any()
        grads.append(inputs_BTH.grad)
    assert torch.equal(*grads)
    plain_BTH = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    load_frozen(llm_folder, "sdpa").eval()(inputs_embeds=plain_BTH).logits.square().sum().backward()
    torch.testing.assert_close(grads[0], plain_BTH.grad)


def test_an_llm_that_is_tuned_keeps_its_dropout_and_gradients(tiny_opt: Path) -> None:
    block = ModelBlock(path=str(tiny_opt), dtype="float32", attention="sdpa")
    llm = load_partitioned(str(tiny_opt), {"zero_optimization": {"stage": 2}}, block, False).train()
    assert all(weight.requires_grad for weight in llm.parameters())
    ids_BT = torch.arange(9)[None]
    assert not torch.equal(llm(input_ids=ids_BT).logits, llm(input_ids=ids_BT).logits)


# ---- under ZeRO


@pytest.fixture(scope="module")
def plain_loops(tiny_llama: Path) -> dict[str, tuple[list[list[float]], dict[str, Tensor]]]:
    """Losses with gradient norms, and the last weights: one process, one sample at a time, torch's Adam."""
    return {parts: plain_loop(tiny_llama, parts) for parts in PARTS}


def plain_loop(folder: Path, parts: str) -> tuple[list[list[float]], dict[str, Tensor]]:
    training, llm = training_block(), load_frozen(folder).eval()
    scale = llm.get_input_embeddings().weight.square().mean().sqrt()
    networks = plain_networks(parts, llm.config.hidden_size)
    for name, network in networks.items():
        with torch.no_grad():
            ratio = scale / network(vectors()[name == "item"]).square().mean().sqrt()
            network[-1].weight *= ratio
            network[-1].bias *= ratio
    adam = torch.optim.Adam(parameters(networks), lr=training.learning_rate, betas=(0.9, 0.98))
    source, stream, rows = SlotSamples(*PARTS[parts]), make_stream(parts, 0, 1), []
    for _ in range(training.epochs):
        for batch in stream:
            losses = [sample_loss(llm, networks, source, index) for index in batch.sample_ids]
            loss = torch.stack(losses).sum() / batch.num_answer_tokens
            adam.zero_grad()
            loss.backward()
            squares = [
                weight.grad.square().sum() for weight in parameters(networks) if weight.grad is not None
            ]
            rows.append([loss.item(), torch.stack(squares).sum().sqrt().item()])
            adam.step()
    assert len(rows) == 6 and len(batch.sample_ids) == 1, "the last step has three empty rows"
    return rows, named(networks)


@pytest.fixture(scope="module", params=["1 rank, ZeRO-3", "2 ranks, ZeRO-3", "2 ranks, ZeRO-2"])
def launch(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a launch left: told.json, the trained weights, a checkpoint."""
    out = tmp_path_factory.mktemp("launch")
    stage = request.param[-1]
    run_ranks(SCRIPT, int(request.param[0]), str(tiny_llama), str(out), stage, timeout=600)
    return out


def told(launch: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((launch / "told.json").read_text())
    return found


@pytest.mark.parametrize("parts", list(PARTS))
def test_zero_equals_plain_adam(launch: Path, plain_loops: Any, parts: str) -> None:
    want, weights = plain_loops[parts]
    losses_S, norms_S = torch.tensor(told(launch)[parts]["steps"]).T
    want_losses_S, want_norms_S = torch.tensor(want).T
    torch.testing.assert_close(losses_S, want_losses_S, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norms_S, want_norms_S, rtol=1e-4, atol=1e-6)
    assert (want_losses_S[:2] - want_losses_S[3:5]).abs().min() > 1e-3, "the steps changed something"
    trained = load_file(launch / f"{parts}.safetensors")
    assert trained.keys() == {f"projection.{name}" for name in weights}
    for name, weight in weights.items():
        torch.testing.assert_close(trained[f"projection.{name}"], weight, rtol=1e-3, atol=1e-4)


def test_the_llm_is_not_touched(launch: Path, tiny_llama: Path) -> None:
    """Bit for bit, and only the projection takes gradients."""
    digest = hashlib.sha256()
    for name, weight in sorted(load_frozen(tiny_llama).named_parameters()):
        digest.update(name.encode() + weight.numpy().tobytes())
    for name, found in told(launch).items():
        assert found["frozen"] == digest.hexdigest()
        user, item = PARTS.get(name, (True, True))
        want = Projection(Widths(5 if user else None, 7 if item else None, 12, 64)).state_dict()
        assert set(found["trained"]) == {f"projection.{key}" for key in want}


def test_resuming_is_bit_equal(launch: Path) -> None:
    found = told(launch)
    assert found["resumed"]["steps"] == found["both"]["steps"][SAVED_STEP:]
    first, again = (load_file(launch / f"{name}.safetensors") for name in ("both", "resumed"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


def test_a_checkpoint_holds_the_projection_alone(launch: Path) -> None:
    """In all ranks' files together: the weights where they are not partitioned, and what Adam keeps."""
    projected = sum(weight.numel() for weight in Projection(Widths(5, 7, 12, 64)).parameters())
    files = sorted((launch / "checkpoints" / f"step_{SAVED_STEP}").rglob("*.pt"))
    states = [torch.load(path, map_location="cpu", weights_only=False) for path in files]
    for state in states:
        held = {name for name, weight in (state.get("module") or {}).items() if weight.numel()}
        assert all(name.startswith("projection.") for name in held)
    total = sum(tensor.numel() for tensor in tensors_in(states))
    assert 3 * projected <= total < 5 * projected
    assert sum(path.stat().st_size for path in files) < 20 * 4 * projected
