"""The results table for the console."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from recloom.trainer.report.results import CEILING, Group, Row, group_results
from recloom.trainer.report.system_view import SystemView

MARK = "*"


def results_table(rows: Sequence[Row], view: SystemView) -> str:
    """Plain text of the test rows of results.jsonl that a system's view shows.

    One block a kind of metric, a line a method (mean ± standard deviation where there are several
    seeds), the best of each task or scenario marked; below it what a reader needs to judge them:
    ceilings, invalid rates, users, protocols, seeds. What was not measured is left out. Raises UserError
    when a measurement is there twice.
    """
    groups = group_results(rows, view)
    if not groups:
        return "no test results yet"
    blocks = [
        results_block(dataset, metrics, list(part))
        for (dataset, metrics), part in groupby(groups, key=lambda group: (group.dataset, group.metrics))
        if metrics
    ]
    notes = [
        f"{MARK} best of the {view.contest}. {direction(groups)}.",
        *explained(groups),
        *(f"{name}: {text}." for name, text in metric_notes(groups).items()),
        *(protocol_lines(groups) if view.by_scenario else []),
        f"Seeds: {seeds_text(groups)}.",
    ]
    return "\n\n".join([*blocks, context_block(groups), "\n".join(notes)])


def results_block(dataset: str, metrics: Sequence[str], groups: Sequence[Group]) -> str:
    """One header, then the lines of every group that has these metrics."""
    lines = [[dataset, *(f"{metric} " for metric in metrics)]]
    for group in groups:
        lines.append([group.title])
        for method in group.methods:
            lines.append([f"  {group.label(method)}", *(cell(group, method, metric) for metric in metrics)])
    return aligned(lines)


def cell(group: Group, method: str, metric: str) -> str:
    value = group.values.get((method, metric))
    if value is None:
        return "- "
    return f"{value}{MARK if group.is_best(method, metric) else ' '}"


def context_block(groups: Sequence[Group]) -> str:
    """Users, ceilings and invalid rates, a line a task."""
    ceilings = list(dict.fromkeys(pair for group in groups for pair in group.ceilings))
    asked = list(dict.fromkeys(method for group in groups for method in group.invalid))
    names = [f"ceiling {ceiling_label(*pair)}" for pair in ceilings] + [
        f"invalid {method}" for method in asked
    ]
    lines = [["", "users", *names]]
    for group in groups:
        values = [group.ceilings.get(pair) for pair in ceilings] + [
            group.invalid.get(method) for method in asked
        ]
        users = "/".join(f"{count:,}" for count in group.users)
        lines.append([group.title, users, *("-" if value is None else str(value) for value in values)])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right, a rule below the first line."""
    widths = [max(len(line[i]) for line in lines if len(line) > i) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=False))]
        )
        for line in lines
    ]
    rule = "-" * max(map(len, text))
    return "\n".join([text[0].rstrip(), rule, *(line.rstrip() for line in text[1:])])


def explained(groups: Sequence[Group]) -> list[str]:
    """One sentence for each kind of number in the context block."""
    notes = []
    if any(group.ceilings for group in groups):
        notes.append("Ceiling: share of users whose test item is a candidate; no re-ranking can hit more.")
    if any(group.invalid for group in groups):
        notes.append("Invalid: share of the LLM's answers that could not be read as asked.")
    return notes


def metric_notes(groups: Sequence[Group]) -> dict[str, str]:
    """What the system's own metrics mean, of those that are there."""
    return {
        metric: text
        for group in groups
        for metric, text in group.view.metric_notes.items()
        if metric in group.metrics
    }


def protocol_lines(groups: Sequence[Group]) -> list[str]:
    """A line a protocol, with the scenarios that it is of."""
    found: dict[str, list[str]] = {}
    for group in groups:
        for protocol in group.protocols:
            found.setdefault(protocol, []).append(group.scenario)
    return [f"{', '.join(dict.fromkeys(names))}: {protocol}." for protocol, names in found.items()]


def direction(groups: Sequence[Group]) -> str:
    """Which way is better, of the metrics that are there."""
    metrics = {metric for group in groups for metric in group.metrics}
    names = "H, N and MRR" if "MRR" in metrics else "H and N"
    ranking = f"{names}: higher is better" if any("@" in metric for metric in metrics) else ""
    rating = "RMSE and MAE: lower is better" if metrics & {"RMSE", "MAE"} else ""
    texts = "BLEU and ROUGE: higher is better" if any(name.startswith("ROUGE") for name in metrics) else ""
    return "; ".join(text for text in (ranking, rating, texts) if text)


def ceiling_label(method: str, metric: str) -> str:
    """`H@10`, with what tells several ceilings of a task apart (method "Ceiling+DA": `H@10 +DA`)."""
    return f"{metric} {method.removeprefix(CEILING)}".strip()


def seeds_text(groups: Sequence[Group]) -> str:
    seeds = sorted({seed for group in groups for seed in group.seeds})
    listed = ", ".join(map(str, seeds))
    return f"{listed} (one seed: no spread can be given)" if len(seeds) == 1 else f"{listed} (mean ± std)"
