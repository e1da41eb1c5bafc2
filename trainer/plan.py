"""Pre-flight: does a config fit a cluster, and if not, why and what to change.

Pure arithmetic over the config and the model's dimensions (planning/): nothing is downloaded, no data
are read, no GPU is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from recloom.data_shards.errors import UserError
from recloom.trainer.config import RunConfig
from recloom.trainer.planning.checks import (
    Check,
    check_bulk,
    check_data,
    check_lengths,
    check_model,
    check_rows,
    check_schedule,
    check_templates,
    check_training,
)
from recloom.trainer.planning.cluster import Cluster, gib, make_cluster
from recloom.trainer.planning.memory import BYTES, GIB, Setup, host_bytes, training_memory
from recloom.trainer.planning.model_size import ModelSize, find_model
from recloom.trainer.planning.tokens import Corpus, corpora
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig

PEAK_FLOPS = 312e12  # an A100's bf16 matrix units
MFU = 0.2  # the paper's own run comes to at most 0.19
LINK_BYTES = 25e9  # bytes a second and GPU: one 200 Gbit/s adapter each


@dataclass(frozen=True)
class Plan:
    """The outcome of `make_plan`. `arithmetic` holds (name, text) lines for people."""

    title: str
    checks: tuple[Check, ...]
    arithmetic: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        """True when no check failed; notes do not count."""
        return all(check.status != "FAIL" for check in self.checks)


def make_plan(config: RunConfig, num_gpus: int, gpu_memory_gib: float, gpus_per_node: int = 8) -> Plan:
    """Check a config against a cluster.

    Args:
        num_gpus: GPUs in all; 0 plans the CPU ranks of `parallel.cpu_ranks`.
        gpu_memory_gib: GiB of one GPU; for 0 GPUs, of the machine.

    Raises UserError for a system other than Llama4Rec, and for a cluster that can't be.
    """
    if not isinstance(config, Llama4RecConfig):
        raise UserError(f"system = '{config.system}': no plan yet, start it with `recloom run`.")
    cluster = make_cluster(config, num_gpus, gpu_memory_gib, gpus_per_node)
    model, where = find_model(config.model.path)
    prompts = corpora(config)
    tunes = config.model.tuned is None
    checks = [
        check_data(config),
        check_templates(config),
        *([check_rows(config, cluster)] if tunes else []),
        check_lengths(config, model, prompts),
        *([check_schedule(config, prompts)] if tunes else []),
        check_model(config, model, where),
    ]
    if tunes:
        arithmetic = prompt_lines(config, prompts, cluster)
    else:
        arithmetic = [("tuning", f"none: the models of {config.model.tuned} answer")]
    if model is not None and tunes:
        setup = make_setup(config, model, prompts, cluster)
        checks.append(check_training(setup, cluster))
        arithmetic += memory_lines(setup, cluster) + work_lines(config, model, prompts, cluster)
    if model is not None:
        checks.append(check_bulk(config, model, cluster))
    return Plan(f"{config.name} on {cluster}", tuple(checks), tuple(arithmetic))


def make_setup(config: Llama4RecConfig, model: ModelSize, prompts: list[Corpus], cluster: Cluster) -> Setup:
    row = max(config.training.pack_length, *(corpus.longest_tokens for corpus in prompts))
    share = max(corpus.answer_share for corpus in prompts)
    return Setup(
        model=model,
        dtype=config.model.dtype,
        zero_stage=config.parallel.zero_stage,
        ranks=cluster.ranks,
        row_tokens=row,
        answer_tokens=int(share * row),
        longest_prompt=max(corpus.longest_tokens for corpus in prompts),
        checkpointing=config.training.gradient_checkpointing,
        offload=config.parallel.offload_optimizer and cluster.has_gpus,
    )


def prompt_lines(config: Llama4RecConfig, prompts: list[Corpus], cluster: Cluster) -> list[tuple[str, str]]:
    training = config.training
    rows = f"{training.rows_per_step} rows of {training.pack_length:,} tokens on {cluster.ranks} ranks"
    lines = [("step", rows)]
    for corpus in prompts:
        count = f"{corpus.num_prompts:,} prompts of about {corpus.mean_tokens:.0f} tokens"
        steps = f"{corpus.steps_per_epoch * training.epochs:,} steps in {training.epochs} epoch(s)"
        lines.append((f"corpus {corpus.name}", f"{count}, {corpus.prompts_per_step:.0f} a step, {steps}"))
    return lines


def memory_lines(setup: Setup, cluster: Cluster) -> list[tuple[str, str]]:
    model, memory = setup.model, training_memory(setup)
    parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in memory.parts().items() if value)
    lines = [
        ("parameters", f"{model.parameters:,} ({model.layers} layers, hidden {model.hidden})"),
        ("GiB a rank", f"{parts} (update and what precedes it take turns)"),
    ]
    host = host_bytes(setup, cluster.ranks_per_node)
    if host:
        lines.append(("main memory", f"{gib(host)} a node for the offloaded optimizer: not checked here"))
    return lines


def work_lines(
    config: Llama4RecConfig, model: ModelSize, prompts: list[Corpus], cluster: Cluster
) -> list[tuple[str, str]]:
    """Disk, and on GPUs FLOPs, traffic and rough hours."""
    training = config.training
    kept = training.keep_checkpoints + 1 if training.checkpoint_every else 0
    state, weights = 14 * model.parameters * kept, 2 * model.parameters
    lines = [("disk", f"{gib(state)} of checkpoints while a model is tuned, {gib(weights)} exported")]
    if not cluster.has_gpus:
        return lines
    lines += [(f"work {corpus.name}", work_text(config, model, corpus, cluster)) for corpus in prompts]
    if cluster.num_nodes > 1:
        command = "deepspeed --hostfile HOSTS launcher/train.py --config CONFIG"
        lines.append(
            ("start", f"{command}, on one of the {cluster.num_nodes} nodes; then recloom run CONFIG")
        )
    return lines


def work_text(config: Llama4RecConfig, model: ModelSize, corpus: Corpus, cluster: Cluster) -> str:
    """The larger of computing and, between nodes, of moving weights and gradients."""
    epochs = config.training.epochs
    tokens = corpus.num_prompts * corpus.mean_tokens * epochs
    flops = model.training_flops(tokens, corpus.mean_tokens, corpus.answer_share)
    traffic = step_traffic(config, model, cluster)
    seconds = flops / (cluster.ranks * PEAK_FLOPS * MFU)
    speed = f"{MFU:.0%} of {PEAK_FLOPS / 1e12:.0f} TFLOP/s"
    if cluster.num_nodes > 1:
        seconds = max(seconds, corpus.steps_per_epoch * epochs * traffic / LINK_BYTES)
        speed += f", {LINK_BYTES / 1e9:.0f} GB/s between nodes"
    moved = f"{traffic / 1e9:,.0f} GB moved by a GPU in a step"
    return f"{tokens:,.0f} tokens, {flops:.1e} FLOPs, {moved}: some {seconds / 3600:.1f} h at {speed}"


def step_traffic(config: Llama4RecConfig, model: ModelSize, cluster: Cluster) -> float:
    """Bytes that a GPU receives in a step (Rajbhandari et al. 2020, section 7).

    Per row, ZeRO-3 gathers the weights twice and reduces the gradients; the other stages move twice
    the weights' size a step.
    """
    rows = -(-config.training.rows_per_step // cluster.ranks)
    times = 3 * rows if config.parallel.zero_stage == 3 else 2
    return times * BYTES[config.model.dtype] * model.parameters * (1 - 1 / cluster.ranks)


def format_plan(plan: Plan) -> str:
    """The plan as text: numbered checks, the arithmetic, the verdict."""
    width = max(len(check.name) for check in plan.checks)
    lines = [plan.title, "", "Checks"]
    for number, check in enumerate(plan.checks, 1):
        lines.append(f"{number:3}. {check.status:<4} {check.name:<{width}}  {check.text}.")
    wide = max(len(name) for name, _ in plan.arithmetic)
    lines += ["", "Arithmetic (estimates)"]
    lines += [f"     {name:<{wide}}  {text}" for name, text in plan.arithmetic]
    return "\n".join([*lines, "", f"Verdict: {verdict(plan)}."])


def verdict(plan: Plan) -> str:
    named = {status: [c.name for c in plan.checks if c.status == status] for status in ("FAIL", "note")}
    if named["FAIL"]:
        return f"does not fit: {', '.join(named['FAIL'])}"
    was_checked = any(check.name == "training memory" for check in plan.checks)
    outcome = "fits" if was_checked else "nothing wrong found, but memory was not checked"
    return outcome + (f" (see the notes: {', '.join(named['note'])})" if named["note"] else "")
