"""The pre-flight checks of a plan, one function each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recloom.data_shards.errors import UserError
from recloom.data_shards.textualize.template import load_template
from recloom.data_shards.textualize.template_sets import TaskFamily, load_set
from recloom.trainer.config import RunConfig
from recloom.trainer.config_rules import named_paths
from recloom.trainer.parallel_layout import undivided
from recloom.trainer.planning.changes import fitting_changes
from recloom.trainer.planning.cluster import Cluster, gib
from recloom.trainer.planning.memory import RESERVE, Setup, training_memory
from recloom.trainer.planning.outline import Asking, Outline, Training
from recloom.trainer.planning.shapes import ModelSize

Status = Literal["ok", "note", "FAIL"]
TRAINING_MEMORY, RANKING_MEMORY = "training memory", "ranking memory"


@dataclass(frozen=True)
class Check:
    """One pre-flight check. A note is something that can't be checked here, or that a user should know."""

    name: str
    status: Status
    text: str


def named(name: str, training: Training, outline: Outline) -> str:
    """The name of a check; where a config has trainings in several blocks, it says which."""
    return name if len(outline.needed) < 2 else f"{name} of {training.block}"


def check_data(config: RunConfig) -> Check:
    """Missing files are a note: a plan is often made before the data are there."""
    paths = list(named_paths(config.data.model_dump()))
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        return Check("data", "note", f"{', '.join(missing)}: not there yet, needed before the run")
    if paths:
        return Check("data", "ok", f"{', '.join(map(str, paths))}: there")
    return Check("data", "ok", f"no path is set, {config.data.source} fetches its files at first use")


def check_templates(outline: Outline) -> Check:
    try:
        for template, family in outline.templates:
            if isinstance(family, TaskFamily):
                load_set(template, family)
            else:
                load_template(template, family)
    except UserError as error:
        return Check("templates", "FAIL", str(error).rstrip("."))
    shown = outline.templates[: outline.named_templates]
    return Check("templates", "ok", ", ".join(template for template, _ in shown))


def check_tensor(config: RunConfig, model: ModelSize | None, cluster: Cluster) -> Check | None:
    """Whether ranks and heads can be divided; None without tensor parallelism."""
    tensor, name = config.parallel.tensor, "tensor parallel"
    if tensor == 1:
        return None
    if cluster.ranks % tensor:
        text = f"parallel.tensor = {tensor}: {cluster.ranks} ranks can't form groups of {tensor}"
        return Check(name, "FAIL", f"{text}, set it to a divisor of {cluster.ranks}")
    fault = undivided(tensor, model.heads, model.kv_heads) if model is not None else None
    if fault is not None:
        return Check(name, "FAIL", fault)
    text = f"{cluster.ranks // tensor} data-parallel groups of {tensor} ranks"
    if cluster.ranks_per_node % tensor == 0:
        return Check(name, "ok", text)
    slow = f"a group reaches over nodes of {cluster.ranks_per_node} ranks and waits for the network in every"
    return Check(name, "note", f"{text}, but {slow} layer: set parallel.tensor to a divisor of that")


def check_rows(name: str, training: Training, cluster: Cluster, tensor: int = 1) -> Check:
    rows, ranks = training.settings.rows_per_step, max(1, cluster.ranks // tensor)
    kind = "ranks" if tensor == 1 else f"groups of {tensor} ranks"
    if rows % ranks == 0:
        return Check(name, "ok", f"{rows} rows a step, {rows // ranks} on each of {ranks} {kind}")
    near = sorted({max(1, rows // ranks) * ranks, -(-rows // ranks) * ranks})
    return Check(
        name,
        "FAIL",
        f"{training.block}.rows_per_step = {rows} can't be shared evenly by {ranks} {kind}: "
        f"set it to {' or '.join(map(str, near))}",
    )


def check_lengths(config: RunConfig, model: ModelSize | None, outline: Outline) -> Check:
    """Prompts (estimated) and rows against the context, the model and vLLM's limit."""
    positions = model.positions if model else None
    shorter = f"lower {outline.shortened_by}"
    found = [training_lengths(training, positions, shorter) for training in outline.trainings]
    found.append(asking_lengths(config, outline.asking, positions, shorter))
    worst = [check for status in ("FAIL", "note") for check in found if check and check.status == status]
    if worst:
        return worst[0]
    if not outline.trainings:
        return Check("lengths", "ok", f"prompts up to about {outline.asking.longest_tokens} tokens")
    longest = max(training.longest_tokens for training in outline.trainings)
    contexts = dict.fromkeys(str(training.settings.context) for training in outline.trainings)
    return Check("lengths", "ok", f"prompts up to about {longest} tokens, context {' and '.join(contexts)}")


def training_lengths(training: Training, positions: int | None, shorter: str) -> Check | None:
    context, name = training.settings.context, f"{training.block}.context"
    if positions is not None and context > positions:
        text = f"{name} = {context} is beyond the model's {positions} positions"
        return Check("lengths", "FAIL", f"{text}: lower it")
    if training.longest_tokens > context:
        text = f"training prompts may reach {training.longest_tokens} tokens, {name} is {context}"
        return Check("lengths", "note", f"{text}: raise it or {shorter}")
    return None


def asking_lengths(config: RunConfig, asking: Asking, positions: int | None, shorter: str) -> Check | None:
    asked, limit = asking.longest_tokens, config.bulk.max_model_len
    if asking.engine == "hf":
        if positions is None or asked <= positions:
            return None
        text = f"prompt and answer may reach {asked} tokens, the model has {positions} positions"
        return Check("lengths", "note", f"{text}: {shorter}")
    if positions is not None and (limit or 0) > positions:
        text = f"bulk.max_model_len = {limit} is beyond the model's {positions} positions"
        return Check("lengths", "FAIL", f"{text}: lower it")
    if limit is not None and asked > limit:
        text = f"prompt and answer may reach {asked} tokens, bulk.max_model_len is {limit}"
        return Check("lengths", "note", f"{text}: raise it")
    return None


def check_schedule(name: str, training: Training) -> Check:
    settings = training.settings
    fewest = min(corpus.steps_per_epoch for corpus in training.corpora) * settings.epochs
    text = f"{settings.warmup_steps} warm-up steps of about {fewest}"
    if settings.warmup_steps < fewest:
        return Check(name, "ok", text)
    text = f"{text}: the learning rate would never come down, lower {training.block}.warmup_steps"
    return Check(name, "note", text)


def check_model(config: RunConfig, model: ModelSize | None, where: str) -> Check:
    if model is not None:
        return Check("model", "note" if where.startswith("not") else "ok", f"{config.model.path}: {where}")
    text = "its dimensions are not known here, so memory was not checked: download it first"
    return Check("model", "note", f"{config.model.path}: {where}; {text}")


def check_training(name: str, setup: Setup, cluster: Cluster) -> Check:
    memory, usable = training_memory(setup), cluster.usable
    total = memory.total
    text = f"about {gib(total)} a rank of {gib(usable)} usable ({gib(cluster.memory)} less {RESERVE:.0%})"
    if total <= usable:
        return Check(name, "ok", text)
    largest = sorted(memory.parts().items(), key=lambda part: -part[1])[:2]
    text += f", {' and '.join(f'{gib(value)} of {part}' for part, value in largest)} alone"
    if not cluster.has_gpus:
        return Check(name, "FAIL", f"{text}: take a smaller model or fewer parallel.cpu_ranks")
    remedy = "; or with ".join(fitting_changes(setup, usable))
    return Check(name, "FAIL", f"{text}: it does not fit, but would with {remedy}")
