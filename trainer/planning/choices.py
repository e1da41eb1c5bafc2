"""The ways to divide a training among given ranks, side by side, and the one to take.

ZeRO stage and tensor parallelism make a line; gradient checkpointing and an offloaded optimizer its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from recloom.trainer.config import RunConfig
from recloom.trainer.parallel_layout import undivided
from recloom.trainer.planning.cluster import Cluster, gib
from recloom.trainer.planning.memory import GIB, Setup, training_memory
from recloom.trainer.planning.outline import Training
from recloom.trainer.planning.speed import (
    HOST,
    INSIDE,
    Speed,
    data_bytes,
    rows_of_rank,
    tensor_bytes,
    training_hours,
)

COLUMNS = {
    (False, False): "plain",
    (True, False): "checkpointing",
    (False, True): "offload",
    (True, True): "both",
}
NEAR = 0.1  # hours that differ by less count as the same: the arithmetic is no better


@dataclass(frozen=True)
class Choice:
    """memory: bytes on a rank's device. moved: bytes of a rank in a step. hours: of all models of the
    training, 0 on CPUs."""

    setup: Setup
    memory: float
    moved: float
    hours: float

    @property
    def place(self) -> tuple[int, int]:
        return self.setup.zero_stage, self.setup.tensor

    @property
    def column(self) -> tuple[bool, bool]:
        return self.setup.checkpointing, self.setup.offload

    @property
    def simplicity(self) -> tuple[int, int, int, int]:
        """Of equally fast ones the least of this is taken."""
        return self.setup.offload, self.setup.tensor, self.setup.zero_stage, self.setup.checkpointing


def make_choices(
    config: RunConfig, setup: Setup, training: Training, cluster: Cluster, speed: Speed
) -> list[Choice]:
    """All that these ranks and this model allow; what the config sets besides is kept."""
    return [
        make_choice(other, training, cluster, speed)
        for tensor in tensor_sizes(config, setup, cluster)
        for other in stages(replace(setup, tensor=tensor), config, cluster)
    ]


def tensor_sizes(config: RunConfig, setup: Setup, cluster: Cluster) -> list[int]:
    """Powers of two inside of a node that divide ranks and heads, and what the config says."""
    sizes = [1]
    by_rank = config.parallel.hpz_size > 1 or config.parallel.quantized_gradients
    while not by_rank and cluster.ranks_per_node % (2 * sizes[-1]) == 0:
        if setup.ranks % (2 * sizes[-1]) or undivided(2 * sizes[-1], setup.model.heads, setup.model.kv_heads):
            break
        sizes.append(2 * sizes[-1])
    return sorted({*sizes, setup.tensor})


def stages(setup: Setup, config: RunConfig, cluster: Cluster) -> list[Setup]:
    """Every stage with and without checkpointing and, of what ZeRO divides, offloading."""
    overlaps = bool(config.parallel.overlap_communication)
    found = []
    for stage in range(4):
        divided = replace(setup, zero_stage=stage, buckets=2 if overlaps and stage in (1, 2) else 1)
        if stage < 3:
            divided = replace(divided, offload_parameters=False, hpz_size=1)
        for checkpointing, offload in COLUMNS:
            if not offload or (cluster.has_gpus and stage > 0):
                found.append(replace(divided, checkpointing=checkpointing, offload=offload))
    return found


def make_choice(setup: Setup, training: Training, cluster: Cluster, speed: Speed) -> Choice:
    rows = rows_of_rank(setup, training)
    hours = 0.0
    if cluster.has_gpus:
        hours = sum(training_hours(setup, training, corpus, cluster, speed) for corpus in training.corpora)
    moved = data_bytes(setup, rows) + tensor_bytes(setup, rows)
    return Choice(setup, training_memory(setup).total, moved, hours)


def recommended(choices: Sequence[Choice], usable: float) -> Choice | None:
    """The fastest that fits; of equally fast ones the simplest. None where none fits."""
    fitting = [choice for choice in choices if choice.memory <= usable]
    if not fitting:
        return None
    fastest = min(choice.hours for choice in fitting)
    near = [choice for choice in fitting if choice.hours <= (1 + NEAR) * fastest]
    return min(near, key=lambda choice: choice.simplicity)


def choice_lines(choices: Sequence[Choice], configured: Setup, cluster: Cluster, speed: Speed) -> list[str]:
    """The table, what it assumes, and the recommended line's settings."""
    best = recommended(choices, cluster.usable)
    shown = [key for key in COLUMNS if any(choice.column == key for choice in choices)]
    rows = [["ZeRO", "tensor", "GB moved", *(COLUMNS[key] for key in shown)]]
    for place in dict.fromkeys(choice.place for choice in choices):
        own = {choice.column: choice for choice in choices if choice.place == place}
        moved = own[configured.checkpointing, False].moved
        cells = [cell(own[key], best, configured, cluster) if key in own else "" for key in shown]
        rows.append([str(place[0]), str(place[1]), f"{moved / 1e9:,.1f}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(text.ljust(wide) for text, wide in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return [*lines, *assumptions(cluster, speed), advice(best, configured, cluster)]


def cell(choice: Choice, best: Choice | None, configured: Setup, cluster: Cluster) -> str:
    marks = (">" if choice is best else "") + ("*" if same(choice.setup, configured) else "")
    hours = f", {choice.hours:.1f} h" if cluster.has_gpus else ""
    if choice.memory > cluster.usable:
        hours = " -"
    return f"{marks:>2} {choice.memory / GIB:,.1f}{hours}"


def same(setup: Setup, other: Setup) -> bool:
    names = ("zero_stage", "tensor", "checkpointing", "offload")
    return all(getattr(setup, name) == getattr(other, name) for name in names)


def assumptions(cluster: Cluster, speed: Speed) -> list[str]:
    marks = "> recommended, * configured, - does not fit; GB moved: by a rank in a step"
    lines = [f"cells: GiB a rank, of {gib(cluster.usable)} usable; {marks}"]
    if cluster.has_gpus:
        links = f"{INSIDE / 1e9:.0f} inside of one, {HOST / 1e9:.0f} to main memory"
        lines.append(f"hours: {speed} (--mfu, --bandwidth), {links}")
    return lines


def advice(best: Choice | None, configured: Setup, cluster: Cluster) -> str:
    if best is None:
        return "recommended: none, no choice fits these ranks; what would is said above"
    setup, flag = best.setup, {True: "true", False: "false"}
    wanted = {
        "parallel.zero_stage": (str(setup.zero_stage), setup.zero_stage == configured.zero_stage),
        "parallel.tensor": (str(setup.tensor), setup.tensor == configured.tensor),
        "parallel.offload_optimizer": (flag[setup.offload], setup.offload == configured.offload),
        f"{setup.block}.gradient_checkpointing": (
            flag[setup.checkpointing],
            setup.checkpointing == configured.checkpointing,
        ),
    }
    changed = " ".join(f"--{name} {value}" for name, (value, is_set) in wanted.items() if not is_set)
    hours = f", {best.hours:.1f} h" if cluster.has_gpus else ""
    return f"recommended: {changed or 'what is configured'} ({gib(best.memory)} a rank{hours})"
