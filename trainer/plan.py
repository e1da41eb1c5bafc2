"""Pre-flight: does a config fit a cluster, and if not, why and what to change.

Pure arithmetic over the config and the model's dimensions (planning/), and over what a system says of its
own prompts and trainings (systems/NAME/planning.py): nothing is downloaded, no data are read, no GPU is
needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from recloom.trainer.config import RunConfig
from recloom.trainer.planning.asking_checks import check_asking
from recloom.trainer.planning.checks import (
    RANKING_MEMORY,
    TRAINING_MEMORY,
    Check,
    check_data,
    check_lengths,
    check_model,
    check_rows,
    check_schedule,
    check_templates,
    check_tensor,
    check_training,
    named,
)
from recloom.trainer.planning.choices import choice_lines, make_choices
from recloom.trainer.planning.cluster import Cluster, make_cluster
from recloom.trainer.planning.lines import (
    Line,
    disk_line,
    labelled,
    memory_lines,
    prompt_lines,
    start_line,
    work_lines,
)
from recloom.trainer.planning.memory import Setup
from recloom.trainer.planning.model_size import find_model
from recloom.trainer.planning.outline import Outline, Training, outline_of
from recloom.trainer.planning.shapes import ModelSize
from recloom.trainer.planning.speed import ASSUMED, Speed


@dataclass(frozen=True)
class Plan:
    """The outcome of `make_plan`. `arithmetic` holds (name, text) lines for people, `choices` a table a
    training, with its title."""

    title: str
    checks: tuple[Check, ...]
    arithmetic: tuple[Line, ...]
    choices: tuple[tuple[str, list[str]], ...] = ()

    @property
    def ok(self) -> bool:
        """True when no check failed; notes do not count."""
        return all(check.status != "FAIL" for check in self.checks)


def make_plan(
    config: RunConfig,
    num_gpus: int,
    gpu_memory_gib: float,
    gpus_per_node: int = 8,
    speed: Speed = ASSUMED,
) -> Plan:
    """Check a config against a cluster.

    Args:
        num_gpus: GPUs in all; 0 plans the CPU ranks of `parallel.cpu_ranks`.
        gpu_memory_gib: GiB of one GPU; for 0 GPUs, of the machine.

    Raises UserError for a system that has no `planning.py`, and for a cluster that can't be.
    """
    cluster = make_cluster(config, num_gpus, gpu_memory_gib, gpus_per_node)
    model, where = find_model(config.model.path)
    outline = outline_of(config, model)
    needed = outline.needed
    checks = [
        check_data(config),
        check_templates(outline),
        *(check for check in [check_tensor(config, model, cluster)] if check is not None),
        *(check_rows(named("batch", t, outline), t, cluster, config.parallel.tensor) for t in needed),
        check_lengths(config, model, outline),
        *(check_schedule(named("schedule", training, outline), training) for training in needed),
        check_model(config, model, where),
    ]
    arithmetic = [*outline.lines, *prompt_lines(outline, cluster)]
    if outline.untrained:
        arithmetic.append(("tuning", f"none: {outline.untrained}"))
    tables: list[tuple[str, list[str]]] = []
    if model is not None:
        setups = [make_setup(config, model, training, cluster) for training in needed]
        checks += [
            check_training(named(TRAINING_MEMORY, training, outline), setup, cluster)
            for training, setup in zip(needed, setups, strict=True)
        ]
        checks.append(check_asking(config, outline.asking, model, cluster))
        arithmetic += training_lines(model, outline, setups, cluster, speed)
        for training, setup in zip(needed, setups, strict=True):
            choices = make_choices(config, setup, training, cluster, speed)
            title = labelled("Choices", training, outline)
            tables.append((title, choice_lines(choices, setup, cluster, speed)))
    return Plan(f"{config.name} on {cluster}", tuple(checks), tuple(arithmetic), tuple(tables))


def make_setup(config: RunConfig, model: ModelSize, training: Training, cluster: Cluster) -> Setup:
    row = max(training.settings.pack_length, training.longest_tokens)
    share = max(corpus.answer_share for corpus in training.corpora)
    parallel = config.parallel
    return Setup(
        model=model,
        dtype=config.model.dtype,
        zero_stage=parallel.zero_stage,
        ranks=cluster.ranks,
        row_tokens=row,
        answer_tokens=int(share * row),
        longest_prompt=training.longest_tokens,
        checkpointing=training.settings.gradient_checkpointing,
        offload=parallel.offload_optimizer and cluster.has_gpus,
        block=training.block,
        small=training.small,
        tensor=parallel.tensor,
        offload_parameters=parallel.offload_parameters and cluster.has_gpus,
        hpz_size=parallel.hpz_size,
        rows_per_step=training.settings.rows_per_step,
        buckets=2 if parallel.overlap_communication and parallel.zero_stage in (1, 2) else 1,
    )


def training_lines(
    model: ModelSize, outline: Outline, setups: list[Setup], cluster: Cluster, speed: Speed
) -> list[Line]:
    """Memory, disk and work of every training; nothing where there is none."""
    if not setups:
        return []
    size = f"{model.parameters:,} ({model.layers} layers, hidden {model.hidden})"
    lines: list[Line] = [("parameters", size)]
    for setup, training in zip(setups, outline.needed, strict=True):
        lines += memory_lines(setup, training, outline, cluster)
        lines.append(disk_line(setup, training, outline))
        lines += work_lines(setup, training, cluster, speed)
    return lines + ([start_line(cluster)] if cluster.num_nodes > 1 else [])


def format_plan(plan: Plan) -> str:
    """The plan as text: numbered checks, the arithmetic, the choices, the verdict."""
    width = max(len(check.name) for check in plan.checks)
    lines = [plan.title, "", "Checks"]
    for number, check in enumerate(plan.checks, 1):
        lines.append(f"{number:3}. {check.status:<4} {check.name:<{width}}  {check.text}.")
    wide = max(len(name) for name, _ in plan.arithmetic)
    lines += ["", "Arithmetic (estimates)"]
    lines += [f"     {name:<{wide}}  {text}" for name, text in plan.arithmetic]
    for title, table in plan.choices:
        lines += ["", title, *(f"     {line}" for line in table)]
    return "\n".join([*lines, "", f"Verdict: {verdict(plan)}."])


def verdict(plan: Plan) -> str:
    found = {status: [c.name for c in plan.checks if c.status == status] for status in ("FAIL", "note")}
    if found["FAIL"]:
        return f"does not fit: {', '.join(found['FAIL'])}"
    was_checked = any(check.name.startswith((TRAINING_MEMORY, RANKING_MEMORY)) for check in plan.checks)
    outcome = "fits" if was_checked else "nothing wrong found, but memory was not checked"
    return outcome + (f" (see the notes: {', '.join(found['note'])})" if found["note"] else "")
