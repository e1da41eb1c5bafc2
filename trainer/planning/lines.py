"""The arithmetic of a plan in words: steps, memory by part, disk, work."""

from __future__ import annotations

from recloom.trainer.config import RunConfig
from recloom.trainer.planning.cluster import Cluster, gib
from recloom.trainer.planning.memory import BYTES, GIB, Setup, host_bytes, training_memory
from recloom.trainer.planning.outline import Outline, Training
from recloom.trainer.planning.tokens import Corpus

PEAK_FLOPS = 312e12  # an A100's bf16 matrix units
MFU = 0.2  # the run of Llama4Rec's paper comes to at most 0.19
LINK_BYTES = 25e9  # bytes a second and GPU: one 200 Gbit/s adapter each

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
    state, weights = 14 * trained * kept, 2 * trained
    text = f"{gib(state)} of checkpoints while a model is tuned, {gib(weights)} exported"
    return labelled("disk", training, outline), text


def work_lines(config: RunConfig, setup: Setup, training: Training, cluster: Cluster) -> list[Line]:
    """On GPUs FLOPs, traffic and rough hours."""
    if not cluster.has_gpus:
        return []
    return [
        (f"work {corpus.name}", work_text(config, setup, training, corpus, cluster))
        for corpus in training.corpora
    ]


def work_text(config: RunConfig, setup: Setup, training: Training, corpus: Corpus, cluster: Cluster) -> str:
    """The larger of computing and, between nodes, of moving weights and gradients."""
    epochs = training.settings.epochs
    tokens = corpus.num_prompts * corpus.mean_tokens * epochs
    frozen = setup.small is not None
    flops = setup.model.training_flops(tokens, corpus.mean_tokens, corpus.answer_share, frozen)
    traffic = step_traffic(config, setup, training, cluster)
    seconds = flops / (cluster.ranks * PEAK_FLOPS * MFU)
    speed = f"{MFU:.0%} of {PEAK_FLOPS / 1e12:.0f} TFLOP/s"
    if cluster.num_nodes > 1:
        seconds = max(seconds, corpus.steps_per_epoch * epochs * traffic / LINK_BYTES)
        speed += f", {LINK_BYTES / 1e9:.0f} GB/s between nodes"
    moved = f"{traffic / 1e9:,.0f} GB moved by a GPU in a step"
    return f"{tokens:,.0f} tokens, {flops:.1e} FLOPs, {moved}: some {seconds / 3600:.1f} h at {speed}"


def step_traffic(config: RunConfig, setup: Setup, training: Training, cluster: Cluster) -> float:
    """Bytes that a GPU receives in a step (Rajbhandari et al. 2020, section 7).

    Per row, ZeRO-3 gathers the weights twice and reduces the gradients of the trained ones; the other
    stages move twice the trained weights' size a step. What tensor-parallel ranks exchange stays in the node.
    """
    rows = -(-training.settings.rows_per_step // setup.data_ranks)
    moved = rows * (2 * setup.held + setup.trained) if config.parallel.zero_stage == 3 else 2 * setup.trained
    return moved * BYTES[config.model.dtype] * (1 - 1 / setup.data_ranks)


def start_line(cluster: Cluster) -> Line:
    command = "deepspeed --hostfile HOSTS launcher/train.py --config CONFIG"
    return "start", f"{command}, on one of the {cluster.num_nodes} nodes; then recloom run CONFIG"
