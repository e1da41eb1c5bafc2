"""What stands around the language model: tables, logits, which weights learn, saving and loading.

Shapes: T tokens, V words, H.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from blank_networks import (
    HIDDEN,
    IDS,
    RATE,
    WORDS,
    all_logits,
    random_masked,
    row_of,
    small_llm,
    small_network,
)

from recloom.data_shards.artifacts import write_manifest
from recloom.data_shards.blank_rows import BlankRow
from recloom.data_shards.errors import UserError
from recloom.data_shards.masking import Masked
from recloom.data_shards.stream import IGNORE
from recloom.trainer.config_io import build_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.attention import BLANKS
from recloom.trainer.systems.recsysllm.methods import METHODS
from recloom.trainer.systems.recsysllm.network import (
    DESCRIPTION,
    MARKS,
    TABLES,
    BlankInfiller,
    Sizes,
    load_tables,
    mask_ids,
    save_tables,
)
from recloom.trainer.systems.recsysllm.objective import BlankLoss
from recloom.trainer.systems.recsysllm.saved import ADAPTER, adapt, load_model, out_folder, save_model
from recloom.trainer.systems.recsysllm.settings import LoraBlock, RecSysLLMConfig

TABLE_NAMES = {"marks.weight", "intra.weight"}
LORA = LoraBlock(r=3)
LOSS = BlankLoss(torch.device("cpu"))


def plain_text(length: int) -> Masked:
    """A text without blanks, whose intra ids say that it has entities."""
    ids_T = np.random.default_rng(0).integers(0, WORDS, length)
    return Masked(ids_T, np.full(length, IGNORE), np.arange(length), np.arange(length), length, "entity", ())


def trained(network: BlankInfiller) -> dict[str, Tensor]:
    """As `Engine.trained_state`: what requires a gradient, a tied weight by both names."""
    named = network.named_parameters(remove_duplicate=False)
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def adapted_network() -> BlankInfiller:
    """Low-rank updates in a frozen model, as `make_network` puts them there."""
    network = small_network()
    network.llm.requires_grad_(False)
    adapt(network.llm, LORA)
    return network


def learn(network: BlankInfiller, steps: int = 1) -> set[str]:
    """Steps of AdamW on one row; the names that got a gradient which is not zero."""
    row = row_of([random_masked(np.random.default_rng(n), 12) for n in range(3)])
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.05)
    touched: set[str] = set()
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS.loss(network, row).backward()
        named = network.named_parameters()
        touched |= {name for name, p in named if p.grad is not None and p.grad.any()}
        optimizer.step()
    return touched


# --- reading and predicting ---------------------------------------------------------------------------


def test_the_marks_lie_behind_the_words() -> None:
    assert vars(mask_ids(WORDS)) == dict(entity=40, sentence=41, document=42, start=43, end=44)
    assert len(MARKS) == 5


@torch.no_grad()
def test_a_text_without_blanks_reads_at_first_as_the_bare_model() -> None:
    """Under full attention: its intra rows are zero, and its logits are the model's."""
    text, llm = plain_text(20), small_llm("sdpa")
    sees_all = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    wanted = llm(input_ids=torch.from_numpy(text.ids_T)[None], attention_mask=sees_all).logits[0]
    found = all_logits(small_network(learned=False), row_of([text]))
    torch.testing.assert_close(found[:, :WORDS], wanted, atol=1e-6, rtol=0)
    later = all_logits(small_network(), row_of([text]))[:, :WORDS]
    assert (later - wanted).abs().max() > 1e-2, "once the tables have learned, they show"


def test_token_rows_are_word_or_mark_with_the_intra_row_on_top() -> None:
    network = small_network()
    ids = torch.tensor([[3, WORDS - 1, IDS.entity, IDS.start, IDS.end]])
    intra = torch.tensor([[0, 5, 0, 1, 2]])
    found = network.embed(ids, intra)[0]
    words, marks = network.llm.get_input_embeddings().weight, RATE * network.marks.weight
    rows = [words[3], words[WORDS - 1], marks[0], marks[3], marks[4]]
    wanted = torch.stack(rows) + RATE * network.intra.weight[intra[0]]
    torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_of_the_marks_only_end_is_predicted() -> None:
    network = small_network()
    hidden_AH = torch.randn(6, HIDDEN)
    logits_AV = network.logits(hidden_AH)
    assert logits_AV.shape == (6, WORDS + len(MARKS))
    torch.testing.assert_close(logits_AV[:, :WORDS], network.llm.lm_head(hidden_AH))
    assert (logits_AV[:, WORDS : IDS.end] == -torch.inf).all()
    torch.testing.assert_close(logits_AV[:, IDS.end], hidden_AH @ (RATE * network.marks.weight[4]))


def test_where_the_marks_start() -> None:
    """[START] and [END] at the end token, the three masks about the mean token and apart from each other."""
    network = BlankInfiller(small_llm(BLANKS), Sizes(WORDS, HIDDEN, 64, RATE))
    mean_H, end_H = torch.full((HIDDEN,), 0.3), torch.arange(HIDDEN) / HIDDEN
    network.start_marks(mean_H, end_H, scale=0.1, seed=4)
    rows = network.marks.weight.detach() * RATE
    torch.testing.assert_close(rows[3:], end_H.expand(2, -1))
    masks = rows[:3] - mean_H
    assert masks.std().item() == pytest.approx(0.05, rel=0.35)
    assert min((masks[i] - masks[j]).norm().item() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1
    again = BlankInfiller(small_llm(BLANKS), Sizes(WORDS, HIDDEN, 64, 1.0))
    again.start_marks(mean_H, end_H, scale=0.1, seed=4)
    torch.testing.assert_close(again.marks.weight, rows), "a rate changes how they learn, not where they are"
    assert not network.intra.weight.any()


# --- what learns --------------------------------------------------------------------------------------


def test_all_weights_learn() -> None:
    network = small_network(learned=False)
    names = {name for name, _ in network.named_parameters()}
    assert names > TABLE_NAMES and learn(network) == names


def test_used_rows_of_the_tables_learn_and_others_stay() -> None:
    network = small_network()
    row = row_of([random_masked(np.random.default_rng(2), 12, level="sentence")])
    assert isinstance(row, BlankRow)
    LOSS.loss(network, row).backward()
    marks, intra = network.marks.weight.grad, network.intra.weight.grad
    assert marks is not None and intra is not None
    assert marks.any(dim=1).tolist() == [False, True, False, True, True]
    assert set(torch.nonzero(intra.any(dim=1))[:, 0].tolist()) == set(row.intra_T.tolist())


def test_low_rank_updates_leave_the_model_bit_for_bit_as_it_was() -> None:
    network = adapted_network()
    before = {
        name: tensor.clone() for name, tensor in network.llm.state_dict().items() if "lora_" not in name
    }
    names = set(trained(network))
    assert names > TABLE_NAMES and all("lora_" in name for name in names - TABLE_NAMES)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names - TABLE_NAMES}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert learn(network, steps=2) == names, "A moves once B is no longer zero"
    after = {name: tensor for name, tensor in network.llm.state_dict().items() if "lora_" not in name}
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_an_update_changes_nothing_until_it_has_learned() -> None:
    row = row_of([random_masked(np.random.default_rng(0))])
    network = adapted_network()
    assert torch.equal(all_logits(network, row), all_logits(small_network(), row))
    learn(network, steps=1)
    assert not torch.equal(all_logits(network, row), all_logits(small_network(), row))


def test_only_named_layers_are_adapted() -> None:
    network = small_network()
    network.llm.requires_grad_(False)
    adapt(network.llm, LoraBlock(r=2, modules=("q_proj",)))
    names = set(trained(network)) - TABLE_NAMES
    assert len(names) == 4 and all(".q_proj.lora_" in name for name in names)


# --- saving and loading -------------------------------------------------------------------------------


def tiny_run(folder: Path, model: Path, lora: LoraBlock | None) -> Run[RecSysLLMConfig]:
    raw: dict[str, Any] = {
        "name": "tiny",
        "system": "recsysllm",
        "data": {"source": "movielens", "variant": "100k"},
        "model": {"path": str(model), "dtype": "float32"},
        "pretrain": {"lora": None if lora is None else lora.model_dump()},
    }
    config = build_config(raw, "test")
    assert isinstance(config, RecSysLLMConfig)
    return Run(config, folder, folder / "cache")


def tiny_network(model: Path, lora: LoraBlock | None) -> BlankInfiller:
    """A network with the real vocabulary, every trained weight moved by noise."""
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_pretrained(model, attn_implementation=BLANKS, dtype=torch.float32)
    if lora is not None:
        adapt(llm.requires_grad_(False), lora)
    words = llm.get_input_embeddings()
    network = BlankInfiller(llm, Sizes(words.num_embeddings, words.embedding_dim, 9, RATE))
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_saved_model_is_loaded_bit_for_bit(
    lora: LoraBlock | None, tiny_llama: Path, tmp_path: Path
) -> None:
    run, method = tiny_run(tmp_path, tiny_llama, lora), METHODS["recsysllm"]
    network, folder = tiny_network(tiny_llama, lora), out_folder(run, METHODS["recsysllm"]) / "model"
    weights = trained(network)
    save_model(network, weights, lora, str(tiny_llama), folder)
    write_manifest(folder)
    loaded = load_model(run, method)
    assert not loaded.training and loaded.sizes == network.sizes
    state = loaded.state_dict()
    assert set(state) == set(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert (folder / "model.safetensors").is_file() == (lora is None), "an update is saved without its base"
    if lora is not None:
        assert set(path.name for path in folder.iterdir()) == {
            TABLES,
            DESCRIPTION,
            ADAPTER,
            "adapter.json",
            "manifest.json",
        }


def test_an_update_with_a_layer_missing_is_one_sentence(tiny_llama: Path, tmp_path: Path) -> None:
    run, method = tiny_run(tmp_path, tiny_llama, LORA), METHODS["recsysllm"]
    network, folder = tiny_network(tiny_llama, LORA), out_folder(run, METHODS["recsysllm"]) / "model"
    weights = {name: tensor for name, tensor in trained(network).items() if "layers.1" not in name}
    save_model(network, weights, LORA, str(tiny_llama), folder)
    write_manifest(folder)
    with pytest.raises(
        UserError, match=r"model: the update of model\.layers\.1\..* is missing: train again\.$"
    ):
        load_model(run, method)


def test_tables_are_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    network = small_network()
    save_tables(network.state_dict(), network.sizes, tmp_path)
    assert json.loads((tmp_path / DESCRIPTION).read_text()) == vars(network.sizes)
    loaded = load_tables(small_llm(BLANKS), tmp_path)
    for name in TABLE_NAMES:
        assert torch.equal(loaded.state_dict()[name], network.state_dict()[name])
    row = row_of([random_masked(np.random.default_rng(0))])
    assert torch.equal(all_logits(loaded, row), all_logits(network, row))


@pytest.mark.parametrize("changes", [{"vocab_size": 41}, {"hidden_size": 24}])
def test_tables_of_another_model_are_one_sentence(changes: dict[str, int], tmp_path: Path) -> None:
    network = small_network()
    save_tables(network.state_dict(), network.sizes, tmp_path)
    with pytest.raises(UserError, match=r"its tables are of a model of 40 x 16, this one is .* trained\.$"):
        load_tables(small_llm(BLANKS, **changes), tmp_path)
