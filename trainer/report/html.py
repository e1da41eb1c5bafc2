"""One self-contained HTML page about a run: it loads nothing, so it reads the same anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recloom.data_shards.artifacts import atomic_write_text
from recloom.data_shards.cards import PAPER_TABLE, difference, number
from recloom.trainer.report.bituning import bituning
from recloom.trainer.report.costs import REFERENCE, costs
from recloom.trainer.report.genres import genre_answers
from recloom.trainer.report.making import Training, alignment_curve, invalid_rows, training, weight_grids
from recloom.trainer.report.overview import results_tables, task_view, tiles
from recloom.trainer.report.read import RunRecord, read_run
from recloom.trainer.report.results import LOWER_IS_BETTER, TASKS, group_results, place
from recloom.trainer.report.tables import ceiling_label, direction, metric_notes

TRAINING = "training.html"


def write_report(run_folder: Path) -> Path:
    """Write report/index.html of a run folder; returns its path.

    The same files give the same bytes. Raises UserError that names a missing or damaged file and the
    stage that writes it.
    """
    return write_page(run_folder, read_run(run_folder))


def write_page(run_folder: Path, record: RunRecord) -> Path:
    """`write_report` for a run that is read already."""
    page = run_folder / "report" / "index.html"
    atomic_write_text(page, render(record))
    return page


def page_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, duration=duration, signed=signed)
    return environment


def render(record: RunRecord) -> str:
    system = record.view
    groups = group_results(record.rows, system)
    views = [task_view(record, group) for group in groups]
    return (
        page_environment()
        .get_template("page.html")
        .render(
            system=system,
            record=record,
            variant=system.variant(record.config),
            views=views,
            tables=results_tables(groups, system),
            direction=direction(groups),
            metric_notes=metric_notes(groups),
            lower_is_better=LOWER_IS_BETTER,
            ceiling_label=ceiling_label,
            tiles=[tile for view in views for tile in tiles(view)],
            meanings={
                g.label(m): system.methods[m] for g in groups for m in g.methods if m in system.methods
            },
            seeds=sorted({seed for group in groups for seed in group.seeds}),
            invalid=invalid_rows(record.rows, groups),
            total_seconds=sum(row["seconds"] for row in record.stages),
            environment_rows=flat(record.environment),
            **card_parts(record.card),
            **llm_parts(record),
        )
    )


def card_parts(card: dict[str, Any]) -> dict[str, Any]:
    paper_table = card.get("paper_table", PAPER_TABLE)  # cards of earlier runs name none
    note = difference(card["measured"], card["paper"], paper_table)
    return {"card": card, "card_note": note, "paper_table": paper_table}


def llm_parts(record: RunRecord) -> dict[str, Any]:
    """What there is to say of the LLM's training, use and costs."""
    view, chosen = record.view, record.aggregate
    return {
        "model": Path(record.config["model"]["path"]).name,
        "reachable_only": record.config.get("rank", {}).get("reachable_only", False),
        "alphas": sorted(chosen.items(), key=lambda pair: place(pair[0], TASKS)),
        "grids": weight_grids(chosen),
        "trainings": trainings(record) if TRAINING in view.sections else [],
        "bituning": bituning(record.parameters, record.curves, view),
        "alignment": alignment_curve(record.alignment),
        "costs": costs(record.times, view),
        "reference": REFERENCE if REFERENCE in record.times else None,
        "genres": genre_answers(record.genres, view),
    }


def trainings(record: RunRecord) -> list[Training]:
    names = record.view.model_names
    return [training(names.get(name, name), rows) for name, rows in record.curves.items()]


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s or 2 h 04 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and text."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat(inner, f"{prefix}{key}.")]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [(prefix.removesuffix("."), text)]
