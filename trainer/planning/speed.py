"""What the ranks exchange in a step, and how long it takes, by arithmetic.

Shapes in formulas: P parameters a rank uses, N trained ones, W data-parallel ranks, e bytes of a weight, R
rows of a data-parallel rank in a step, T tokens of a row, A answer tokens of a row, L layers, h hidden width,
t ranks of a tensor-parallel group.

Between data-parallel ranks (Rajbhandari et al. 2020, "ZeRO", section 7; how often, as DeepSpeed 0.19 does):
  - stage 0: the gradients are all-reduced once a step: 2 N;
  - stage 1: the same, since DeepSpeed reduces for all ranks in one call, and the weights are gathered: 3 N;
  - stage 2: gradients are all-reduced behind every row, weights gathered once a step: (2 R + 1) N;
  - stage 3: with every row, weights are gathered forward and backward, gradients reduced: R (2 P + N), of
    which up to 1e9 weights are kept and gathered once;
each times e (1 - 1 / W), for a rank keeps what is its own.

Between tensor-parallel ranks (Shoeybi et al. 2019, "Megatron-LM", section 3; how often, as DeepSpeed 0.19
does): all-reduces of T h e bytes, two a layer forward, one backward for each column-parallel layer (five
in LLaMA, where Megatron has two), one where checkpointing repeats the forward pass; one of the embedding, and
one of A h e behind the output layer. A ring all-reduce moves 2 (1 - 1 / t) of its message.

A step takes its FLOPs, one more forward pass with checkpointing, at `mfu` of the peak, and what the
tensor-parallel ranks exchange and an offloaded update take; what data-parallel ranks exchange goes on beside,
so the longer of the two counts. That thinner layers compute less well is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from recloom.data_shards.errors import UserError
from recloom.trainer.planning.cluster import Cluster
from recloom.trainer.planning.memory import LIVE, Setup
from recloom.trainer.planning.outline import Training
from recloom.trainer.planning.tokens import Corpus

PEAK_FLOPS = 312e12  # an A100's bf16 matrix units
MFU = 0.2  # the run of Llama4Rec's paper comes to at most 0.19
BANDWIDTH = 25.0  # GB/s a GPU between nodes: one 200 Gbit/s adapter each
INSIDE = 300e9  # bytes a second a GPU inside of a node: an A100's NVLink, one way
HOST = 25e9  # bytes a second a GPU to host memory, by PCIe 4.0 x16
UPDATE_BYTES = 28  # a parameter: the CPU's Adam reads gradient, weight and moments, writes the last three


@dataclass(frozen=True)
class Speed:
    """What a plan assumes. mfu: share of an A100's peak, recomputation not counted. bandwidth: GB/s between
    nodes, of each GPU."""

    mfu: float = MFU
    bandwidth: float = BANDWIDTH

    def __str__(self) -> str:
        return f"{self.mfu:.0%} of {PEAK_FLOPS / 1e12:.0f} TFLOP/s, {self.bandwidth:g} GB/s between nodes"


ASSUMED = Speed()


def make_speed(mfu: float, bandwidth: float) -> Speed:
    """Raises UserError for what can't be."""
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu = {mfu:g}: must be above 0 and at most 1, give the share of the peak.")
    if bandwidth <= 0:
        raise UserError(f"--bandwidth = {bandwidth:g}: must be above 0, give GB/s of each GPU between nodes.")
    return Speed(mfu, bandwidth)


def rows_of_rank(setup: Setup, training: Training) -> int:
    """Rows of a data-parallel rank in a step."""
    return -(-training.settings.rows_per_step // setup.data_ranks)


def data_bytes(setup: Setup, rows: int) -> float:
    """Bytes that a rank moves in a step to and from data-parallel ones."""
    times = {0: 2 * setup.trained, 1: 3 * setup.trained, 2: (2 * rows + 1) * setup.trained}
    gathered = 2 * setup.held - min(setup.held, LIVE)
    moved = times.get(setup.zero_stage, rows * (gathered + setup.trained))
    return moved * setup.element * (1 - 1 / setup.data_ranks)


def tensor_bytes(setup: Setup, rows: int) -> float:
    """Bytes that a rank moves in a step inside of its tensor-parallel group."""
    # Of a layer's linear ones all but two are column-parallel.
    each = 2 + len(setup.model.linear_layers) - 2 + setup.checkpointing
    messages = (
        ((setup.model.layers * each + 1) * setup.row_tokens + setup.answer_tokens)
        * setup.model.hidden
        * setup.element
    )
    return rows * messages * 2 * (1 - 1 / setup.tensor)


def step_seconds(setup: Setup, training: Training, corpus: Corpus, cluster: Cluster, speed: Speed) -> float:
    """Of a step on GPUs."""
    rows, between = rows_of_rank(setup, training), speed.bandwidth * 1e9
    compute = step_flops(setup, corpus) / (setup.ranks * PEAK_FLOPS * speed.mfu)
    group_link = INSIDE if cluster.ranks_per_node % setup.tensor == 0 else between
    groups = tensor_bytes(setup, rows) / group_link
    data = data_bytes(setup, rows) / (between if cluster.num_nodes > 1 else INSIDE)
    moved = (UPDATE_BYTES + 2 * setup.element) * setup.share(setup.trained, 1) / HOST
    return max(compute + groups, data) + (moved if setup.offload else 0.0)


def step_flops(setup: Setup, corpus: Corpus) -> float:
    """Of all ranks; with checkpointing a forward pass more, a third of 6 a weight or half of 4."""
    frozen = setup.small is not None
    tokens = corpus.prompts_per_step * corpus.mean_tokens
    flops = setup.model.training_flops(tokens, corpus.mean_tokens, corpus.answer_share, frozen)
    again = (1.5 if frozen else 4 / 3) if setup.checkpointing else 1.0
    return flops * again


def training_hours(setup: Setup, training: Training, corpus: Corpus, cluster: Cluster, speed: Speed) -> float:
    steps = corpus.steps_per_epoch * training.settings.epochs
    return steps * step_seconds(setup, training, corpus, cluster, speed) / 3600
