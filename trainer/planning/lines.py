"""The arithmetic of a plan in words: steps, memory by part, disk, work."""

from __future__ import annotations

from recloom.trainer.planning.cluster import Cluster, gib
from recloom.trainer.planning.memory import GIB, Setup, host_bytes, training_memory
from recloom.trainer.planning.outline import Outline, Training
from recloom.trainer.planning.speed import (
    Speed,
    data_bytes,
    rows_of_rank,
    step_flops,
    tensor_bytes,
    training_hours,
)
from recloom.trainer.planning.tokens import Corpus

Line = tuple[str, str]


def prompt_lines(outline: Outline, cluster: Cluster) -> list[Line]:
    lines: list[Line] = []
    for training in outline.needed:
        lines.append((labelled("step", training, outline), rows_text(training, cluster)))
        lines += [(f"corpus {corpus.name}", corpus_text(training, corpus)) for corpus in training.corpora]
    return lines


def labelled(name: str, training: Training, outline: Outline) -> str:
    """With the block's name where there are several."""
    return name if len(outline.needed) < 2 else f"{name} {training.block}"


def rows_text(training: Training, cluster: Cluster) -> str:
    settings = training.settings
    is_packed = settings.pack_length > min(corpus.mean_tokens for corpus in training.corpora)
    held = f"{settings.pack_length:,} tokens" if is_packed else "one prompt"
    return f"{settings.rows_per_step} rows of {held} on {cluster.ranks} ranks"


def corpus_text(training: Training, corpus: Corpus) -> str:
    epochs = training.settings.epochs
    count = f"{corpus.num_prompts:,} prompts of about {corpus.mean_tokens:.0f} tokens"
    steps = f"{corpus.steps_per_epoch * epochs:,} steps in {epochs} epoch(s)"
    return f"{count}, {corpus.prompts_per_step:.0f} a step, {steps}"


def memory_lines(setup: Setup, training: Training, outline: Outline, cluster: Cluster) -> list[Line]:
    memory = training_memory(setup)
    parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in memory.parts().items() if value)
    text = f"{parts} (update and what precedes it take turns)"
    lines = [(labelled("GiB a rank", training, outline), text)]
    if setup.small:
        trained = f"{setup.small.parameters:,} parameters, the LLM is frozen"
        lines.insert(0, (labelled("trained", training, outline), trained))
    host = host_bytes(setup, cluster.ranks_per_node)
    if host:
        lines.append(("main memory", f"{gib(host)} a node for what is offloaded: not checked here"))
    return lines


def disk_line(setup: Setup, training: Training, outline: Outline) -> Line:
    """Only what is trained is kept."""
    settings = training.settings
    kept = settings.keep_checkpoints + 1 if settings.checkpoint_every else 0
    trained = setup.small.parameters if setup.small else setup.model.parameters
    state, weights = checkpoint_bytes(setup) * kept, 2 * trained
    text = f"{gib(state)} of checkpoints while a model is tuned"
    if kept:
        text += f" ({settings.keep_checkpoints} kept and the next)"
    text += f", {gib(weights)} exported"
    return labelled("disk", training, outline), text


def checkpoint_bytes(setup: Setup) -> float:
    """Of one checkpoint: what is trained in fp32 with two moments, and beside it the training's own weights,
    which at ZeRO-3 can be made from the former and in float32 without ZeRO are the former."""
    trained = setup.small.parameters if setup.small else setup.model.parameters
    has_both = setup.zero_stage in (1, 2) or (setup.zero_stage == 0 and setup.element == 2)
    return float((12 + setup.element * has_both) * trained)


def work_lines(setup: Setup, training: Training, cluster: Cluster, speed: Speed) -> list[Line]:
    """On GPUs FLOPs, traffic and rough hours."""
    if not cluster.has_gpus:
        return []
    return [
        (f"work {corpus.name}", work_text(setup, training, corpus, cluster, speed))
        for corpus in training.corpora
    ]


def work_text(setup: Setup, training: Training, corpus: Corpus, cluster: Cluster, speed: Speed) -> str:
    rows, steps = rows_of_rank(setup, training), corpus.steps_per_epoch * training.settings.epochs
    tokens = corpus.num_prompts * corpus.mean_tokens * training.settings.epochs
    moved = f"{data_bytes(setup, rows) / 1e9:,.0f} GB moved by a GPU in a step"
    if setup.tensor > 1:
        moved += f" and {tensor_bytes(setup, rows) / 1e9:,.1f} GB inside of its group"
    hours = training_hours(setup, training, corpus, cluster, speed)
    flops = f"{steps * step_flops(setup, corpus):.1e} FLOPs"
    return f"{tokens:,.0f} tokens, {flops}, {moved}: some {hours:.1f} h at {speed}"


def start_line(cluster: Cluster) -> Line:
    command = "deepspeed --hostfile HOSTS launcher/train.py --config CONFIG"
    return "start", f"{command}, on one of the {cluster.num_nodes} nodes; then recloom run CONFIG"
