"""DeepSpeed, and nothing else knows about it: start, step, checkpoint, export.

The JSON that DeepSpeed wants is made from the RunConfig here, with every default that bites
spelled out (its `gradient_clipping`, left unsaid, is 1.0).
"""

from __future__ import annotations

import os
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recloom.data_shards.errors import UserError
from recloom.trainer.checkpoint_ranks import agreed, check_convertible, convert, make_room, seal
from recloom.trainer.checkpoints import Saved, refusal
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.decoder_layers import spare_last_layer
from recloom.trainer.gathering import add_by_exchange, forget_with_trace, layers_gathered_whole
from recloom.trainer.liger import apply_liger
from recloom.trainer.parallel_layout import (
    DIVISIONS,
    EMBEDDING,
    HEAD,
    LOCAL_HEADS,
    RankLayout,
    check_model,
    check_ranks,
    division_of,
)
from recloom.trainer.pickles import data_only
from recloom.trainer.universal import universal_path
from recloom.trainer.vocabulary_loss import VocabularyShard, shard_of
from recloom.trainer.zero_settings import check_machine, piece_of, zero_json

UNREADABLE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError)  # what a file that was cut off raises


def deepspeed_json(
    model: ModelBlock, training: TrainingBlock, parallel: ParallelBlock, world_size: int
) -> dict[str, Any]:
    """DeepSpeed's settings for one packed row a data-parallel rank and micro-step.

    Raises UserError when the rows of a step can't be shared evenly by the ranks.
    """
    check_ranks(parallel.tensor, world_size)
    rows, ranks = training.rows_per_step, world_size // parallel.tensor
    if rows % ranks:
        kind = "ranks" if parallel.tensor == 1 else "data-parallel ranks"
        raise UserError(
            f"training.rows_per_step = {rows}: {ranks} {kind} can't share the rows evenly, "
            f"set it to a multiple of {ranks}."
        )
    adam = {
        "lr": training.learning_rate,
        "betas": list(training.betas),
        "eps": training.eps,
        "weight_decay": training.weight_decay,
    }
    if not parallel.offload_optimizer:
        # No compilation at start, and one pass over the weights; offloading needs DeepSpeed's own CPU Adam.
        adam |= {"torch_adam": True, "fused": True}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": rows // ranks,
        "gradient_clipping": training.gradient_clipping,
        "bf16": {"enabled": model.dtype == "bfloat16"},
        "zero_optimization": zero_json(parallel, torch.cuda.is_available()),
        "optimizer": {"type": "AdamW", "params": adam},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if parallel.tensor > 1:
        settings["tensor_parallel"] = {"autotp_size": parallel.tensor}
    return settings


def tensor_of(ds_config: dict[str, Any]) -> int:
    """Ranks of a tensor-parallel group."""
    return int(ds_config.get("tensor_parallel", {}).get("autotp_size", 1))


def start_ranks(parallel: ParallelBlock) -> tuple[int, int]:
    """Join the process group that the launcher's variables describe; returns (rank, world size)."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed
    from deepspeed import ops

    # The shared-memory all-reduce serves inference only; it leaks a file a rank and its build
    # leaves a lock, when killed, on which every later start hangs.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    quiet_deepspeed()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend, timeout=timedelta(minutes=parallel.collective_timeout), verbose=False
    )
    if backend == "gloo":
        add_by_exchange(deepspeed.comm.comm.cdb)
    check_ranks(parallel.tensor, dist.get_world_size())
    check_machine(parallel, dist.get_world_size(), torch.cuda.is_available())
    check_async_io(parallel)
    return dist.get_rank(), dist.get_world_size()


def check_async_io(parallel: ParallelBlock) -> None:
    """Raises UserError where DeepSpeed could not read or write an offload folder."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if parallel.offload_folder is not None and not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            f"parallel.offload_folder = '{parallel.offload_folder}': DeepSpeed's asynchronous I/O can't be "
            "built on this machine, install libaio with its headers (Debian: libaio-dev), or leave it out."
        )


def quiet_deepspeed() -> None:
    """DeepSpeed's logger writes to standard output; only its warnings are wanted."""
    import logging

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


class Engine:
    """A network under ZeRO with its optimizer; only what requires a gradient is trained and checkpointed.

    Args:
        network: what `load_partitioned` loaded, or a module around it. Under tensor parallelism the language
            model's layers are divided here; what stands around it must be the same on all ranks.
        ds_config: what `deepspeed_json` made.

    Attributes:
        layout: the place of this rank.
        vocabulary: the words whose logits this rank computes, None for all.
    """

    def __init__(self, network: Any, ds_config: dict[str, Any]) -> None:
        import deepspeed

        self.ds_config = ds_config
        self.layout = RankLayout(
            dist.get_rank(), dist.get_world_size(), tensor_of(ds_config), piece_of(ds_config)
        )
        if self.layout.tensor > 1:
            divide_layers(network, self.layout.tensor)
        self.vocabulary = vocabulary_of(network)
        network.train()
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.has_frozen = len(parameters) < sum(1 for _ in network.parameters())
        if self.has_frozen:
            network.register_state_dict_post_hook(without_frozen)
        if self.layout.tensor == 1:
            describe_whole_layers(network)
        if ds_config["zero_optimization"]["stage"] == 3:
            gather_whole(network, layers_gathered_whole(network))
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=network, model_parameters=parameters, config=ds_config
        )
        if ds_config["zero_optimization"]["stage"] == 3:
            forget_with_trace(self.engine.optimizer.parameter_offload.get_param_coordinator())
        self.device = self.engine.device

    def __call__(self, **inputs: Any) -> Any:
        return self.engine(**inputs)

    def train(self, mode: bool) -> None:
        """Training mode, or evaluation mode."""
        self.engine.train(mode)

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss)

    def step(self, learning_rate: float) -> None:
        """Count one micro-step; at the accumulation boundary, clip and update the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()

    def gradient_norm(self) -> float:
        """The gradient's 2-norm before clipping, of the last update."""
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def save(self, folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
        """Write a checkpoint; `latest.json` names it only when all ranks' files are on the disk."""
        make_room(folder / f"step_{step}", self.layout)
        self.engine.save_checkpoint(
            str(folder),
            tag=f"step_{step}",
            client_state=state,
            save_latest=False,
            exclude_frozen_parameters=self.has_frozen,
        )
        seal(folder, step, self.layout, keep)

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Restore the checkpoint in force, converted when other ranks wrote it; its state, None without one.

        Raises UserError, which names the newest good checkpoint, when that one is damaged.
        """
        saved = agreed(folder, self.layout)
        if saved is None:
            return None
        # Without ZeRO all data-parallel ranks hold and load the same.
        is_whole = not self.engine.zero_optimization() and saved.tensor == self.layout.tensor
        if saved.fits(self.layout) or is_whole:
            return self.read(saved, saved.path)
        check_convertible(saved, self.ds_config["zero_optimization"])
        convert(saved, self.layout)
        # DeepSpeed looks at this setting only when it loads, and only now it is known.
        self.engine._config.load_universal_checkpoint = True
        state = self.read(saved, universal_path(saved))
        self.engine._config.load_universal_checkpoint = False
        self.own_step_counts()
        return state

    def read(self, saved: Saved, path: Path) -> dict[str, Any]:
        """Load the files of a folder, which are those of `saved` or were made from them."""
        try:
            with data_only(saved_classes()):
                loaded, state = self.engine.load_checkpoint(
                    str(path.parent), tag=path.name, load_module_strict=not self.has_frozen
                )
        except UNREADABLE as error:
            raise refusal(saved, str(error).partition("\n")[0].rstrip(".")) from None
        if loaded is None:
            raise refusal(saved, "files are missing")
        return dict(state)

    def own_step_counts(self) -> None:
        """Give each part of the optimizer a count of its own.

        DeepSpeed loads one tensor into all of them, which the optimizer would count up once for each.
        """
        for state in self.optimizer.optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The trained weights, whole (called by all ranks; complete on rank 0, in the training's dtype)."""
        if self.engine.zero_optimization_stage() == 3:
            weights = self.engine._zero3_consolidated_16bit_state_dict(
                exclude_frozen_parameters=self.has_frozen
            )
            return dict(weights or {})
        module = self.engine.module
        if self.layout.tensor > 1:
            return gathered_state(module)
        # A head tied to the embeddings is one parameter with two names, and the state has both.
        named = module.named_parameters(remove_duplicate=False)
        frozen = {name for name, p in named if not p.requires_grad}
        return {name: t for name, t in module.state_dict().items() if name not in frozen}

    def export(self, folder: Path, tokenizer: Any) -> None:
        """Write the weights as a Hugging Face safetensors folder with tokenizer (called by all ranks)."""
        weights = self.trained_state()
        if dist.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            module = self.engine.module
            module.config.use_cache = True
            module.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)
        dist.barrier()

    def close(self) -> None:
        self.engine.destroy()


def saved_classes() -> list[type]:
    """What DeepSpeed pickles into a checkpoint beside tensors and plain containers."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def without_frozen(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A state_dict hook. DeepSpeed's own switch forgets the second name of tied weights."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def load_partitioned(
    model_path: str,
    ds_config: dict[str, Any],
    model: ModelBlock,
    gradient_checkpointing: bool,
    frozen: bool = False,
) -> Any:
    """Load a causal language model; under ZeRO-3 each rank keeps only its part from the start.

    gradient_checkpointing: recompute activations in the backward pass. frozen: no weight takes a gradient
    and nothing drops out; gradients still pass through to its inputs.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    from recloom.trainer.models import quiet_transformers

    settings = AutoConfig.from_pretrained(model_path)
    check_model(tensor_of(ds_config), settings)
    # transformers looks this object up while it loads and then creates partitioned parameters. Layers are
    # divided later, but told of it, it refuses every model whose weights it renames.
    zero_only = {name: value for name, value in ds_config.items() if name != "tensor_parallel"}
    partition = HfDeepSpeedConfig(zero_only) if ds_config["zero_optimization"]["stage"] == 3 else None
    with quiet_transformers():
        if frozen:
            without_dropout(settings)
        network = AutoModelForCausalLM.from_pretrained(
            model_path,
            config=settings,
            dtype=getattr(torch, model.dtype),
            attn_implementation=model.attention,
        )
    del partition
    network.config.use_cache = False
    if model.liger:
        apply_liger(network)
    if model.compile:
        from recloom.trainer.compiled_regions import compile_regions

        compile_regions(network)
    spare_last_layer(network)
    if gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return network.requires_grad_(not frozen)


def without_dropout(settings: Any) -> None:
    """Checkpointing works in training mode only, so dropout is switched off by its rates."""
    for name in vars(settings):
        if name.endswith(("dropout", "drop")):
            setattr(settings, name, 0.0)


def divide_layers(network: Any, tensor: int) -> None:
    """Put DeepSpeed's tensor-parallel layers in the place of a language model's, in place.

    DeepSpeed's own walk is not used: it refuses GLM, keeps an untied embedding whole on every rank, and drops
    the low-rank updates of a layer. Called by all ranks, before `deepspeed.initialize`.
    """
    import deepspeed.module_inject.layers as tp
    from deepspeed.accelerator import get_accelerator
    from deepspeed.checkpoint.constants import UNIVERSAL_CHECKPOINT_INFO
    from deepspeed.utils import groups

    get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", "0")))
    tp.set_autotp_mode(training=True)
    groups._init_tp_mesh_device(tensor_model_parallel_size=tensor)
    group, model_type = groups.get_tensor_model_parallel_group(), network.config.model_type
    divide_vocabulary(network, group)
    found = set()
    for name, layer in list(network.named_modules()):
        division = division_of(name, DIVISIONS[model_type])
        if division is None or type(layer) is not torch.nn.Linear:
            continue
        found.add(division)
        make_whole(network, layer)
        if division == "packed":
            made = tp.SubParamLinearLayer(layer, group, shape=(2, -1), name=name)
        else:
            made = (tp.LinearAllreduce if division == "row" else tp.LinearLayer)(layer, group, name=name)
        network.set_submodule(name, made)
    # What is left was partitioned among all ranks; it belongs to data-parallel ones, as divided layers do,
    # else DeepSpeed's converter can't tell who holds what.
    for layer in network.modules():
        make_whole(network, layer)
    # Equal losses would not tell that every rank computes all.
    assert found == set(DIVISIONS[model_type].values()), f"of {model_type} only {found} was divided"
    if model_type in LOCAL_HEADS:
        for module in network.modules():
            if hasattr(module, "q_proj"):
                count = LOCAL_HEADS[model_type]
                setattr(module, count, getattr(module, count) // tensor)
    network.ds_autotp_parsed = True
    setattr(network, UNIVERSAL_CHECKPOINT_INFO, tp.collect_autotp_universal_checkpoint_info(network))


def describe_whole_layers(network: Any) -> None:
    """DeepSpeed's converter asks for a description of divided layers even where none is."""
    from deepspeed.checkpoint.constants import (
        UNIVERSAL_CHECKPOINT_INFO,
        UNIVERSAL_CHECKPOINT_VERSION_KEY,
        UNIVERSAL_CHECKPOINT_VERSION_VALUE,
    )

    version = {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE}
    setattr(network, UNIVERSAL_CHECKPOINT_INFO, version)


def gather_whole(network: Any, kinds: list[str]) -> None:
    """Have ZeRO-3 gather all weights of a layer of these kinds at once."""
    from deepspeed.utils import set_z3_leaf_modules

    if kinds:
        set_z3_leaf_modules(network, kinds)


def divide_vocabulary(network: Any, group: Any) -> None:
    """Divide the rows of the token embedding and of the output layer, which may be one weight."""
    from deepspeed.module_inject.layers import VocabParallelEmbedding, VocabParallelLinear

    named = dict(network.named_modules())
    found = {name.rpartition(".")[2]: name for name, layer in named.items() if is_vocabulary(name, layer)}
    divided = None
    if HEAD in found:
        make_whole(network, named[found[HEAD]])
        whole = named[found[HEAD]].weight
        divided = VocabParallelLinear(named[found[HEAD]], group, name=HEAD)
        network.set_submodule(found[HEAD], divided)
    if EMBEDDING in found:
        embedding = named[found[EMBEDDING]]
        tied = divided if divided is not None and embedding.weight is whole else None
        if tied is None:
            make_whole(network, embedding)
        made = VocabParallelEmbedding(embedding, group, tied_vocab_parallel_linear=tied, name=EMBEDDING)
        network.set_submodule(found[EMBEDDING], made)


def is_vocabulary(name: str, layer: Any) -> bool:
    kinds = {HEAD: torch.nn.Linear, EMBEDDING: torch.nn.Embedding}
    last = name.rpartition(".")[2]
    return last in kinds and isinstance(layer, kinds[last])


def make_whole(network: Any, layer: Any) -> None:
    """Whole weights in place of those that ZeRO-3 has partitioned, wherever the network has them."""
    import deepspeed

    for _, partitioned in list(layer.named_parameters(recurse=False)):
        if not hasattr(partitioned, "ds_id"):
            continue
        with deepspeed.zero.GatheredParameters([partitioned]):
            whole = torch.nn.Parameter(partitioned.data.clone(), requires_grad=partitioned.requires_grad)
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is partitioned:
                    setattr(module, name, whole)


def vocabulary_of(network: Any) -> VocabularyShard | None:
    """The words of the network's output layer, None where it has all, or where there is none."""
    return next((shard for module in network.modules() if (shard := shard_of(module))), None)


def gathered_state(network: Any) -> dict[str, torch.Tensor]:
    """What is trained, whole, on rank 0, below ZeRO-3 (called by all ranks).

    Each weight gets its own memory back: under ZeRO-1 and 2 it is a view into what the optimizer updates, and
    DeepSpeed's own gathering would leave the network with a copy that is never updated again.
    """
    from deepspeed.module_inject.layers import GatherReplacedLayerParams

    state: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}
    for prefix, module in network.named_modules():
        own = {name: p for name, p in module.named_parameters(prefix, recurse=False)}
        if not any(p.requires_grad for p in own.values()):
            continue
        held = [p.data for p in own.values()]
        with GatherReplacedLayerParams(list(own.values()), module):
            for name, parameter in own.items():
                if parameter.requires_grad and dist.get_rank() == 0:
                    state[name] = copies.setdefault(id(parameter), parameter.detach().cpu().clone())
        for parameter, data in zip(own.values(), held, strict=True):
            parameter.data = data
    return state


def embedding_scale(network: Any) -> float:
    """Root mean square of the token embeddings, partitioned or not (called by all ranks)."""
    import deepspeed

    weight = network.get_input_embeddings().weight
    with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
        return float(weight.detach().float().square().mean().sqrt())


def embedding_mean(network: Any) -> torch.Tensor:
    """The mean token embedding (H,), float32, partitioned or not (called by all ranks)."""
    import deepspeed

    weight = network.get_input_embeddings().weight
    with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
        return weight.detach().float().mean(0).cpu()


def embedding_row(network: Any, id: int) -> torch.Tensor:
    """The embedding of one token (H,), float32, partitioned or not (called by all ranks)."""
    import deepspeed

    weight = network.get_input_embeddings().weight
    with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
        return weight[id].detach().float().cpu().clone()
