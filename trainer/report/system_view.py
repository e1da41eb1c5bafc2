"""What the report must know of a system beyond its files; `systems/NAME.py` holds a system's VIEW."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recloom.data_shards.errors import UserError

FOLDER = Path(__file__).parent / "systems"
BASELINE = "Base"
TASK_NAMES = {
    "direct": "Direct recommendation",
    "sequential": "Sequential recommendation",
    "rating": "Rating prediction",
    "explanation": "Explanation",
    "review": "Review summarisation",
}


def no_variant(config: dict[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class SystemView:
    """How a system's runs are shown.

    Attributes:
        title: the system's name. lead, measures: the page's words on the question and on its metrics;
            `{model}` in lead stands for the LLM.
        methods: meaning by method, in the order of rows.
        ours: the first of these that was measured is compared with all others.
        rivals: the figures of the paper are gains over the best of these.
        beside: methods shown beside a table of the paper that lacks them. Where there are any, a table with
            further methods (an ablation) is shown to runs alone that measured one of those.
        note: below the comparison with the paper.
        needed: the files without which there is no report, each with the stage that writes it.
        optional: files that are read where they are.
        sections: the page's templates behind the results.
        purposes: tasks of the data set card that the system uses, and what each is for.
        headline: the metric that users are compared by; empty: absolute error, or NDCG at the largest k.
        metric_notes: meaning of a metric of the system's own.
        abbreviations: behind the caption of the paired comparison.
        training_title: above the curves of tune/; training_note: which losses they show.
        scenario_text: a scenario in words, and a table a scenario. None: `overall` alone, a table for all
            tasks of the same metrics.
        backbones: backbones by name; Base is called after its own. Empty: Base is called Base.
        model_names: what a name in files (tune/NAME) is called.
        variant: what a config switches off, "" for nothing: the label of an ablation in the paper's file.
        variant_lead: before it, on the page.
    """

    title: str
    lead: str
    measures: str
    methods: Mapping[str, str]
    ours: tuple[str, ...]
    rivals: tuple[str, ...]
    beside: tuple[str, ...]
    note: str
    needed: Mapping[str, str]
    optional: tuple[str, ...]
    sections: tuple[str, ...]
    purposes: tuple[tuple[str, str], ...]
    training_title: str
    training_note: str = (
        "Mean loss of the answer's tokens. The validation loss is on prompts that were not trained on."
    )
    headline: str = ""
    metric_notes: Mapping[str, str] = field(default_factory=dict)
    abbreviations: str = ""
    scenario_text: Callable[[str], str] | None = None
    backbones: Mapping[str, str] = field(default_factory=dict)
    model_names: Mapping[str, str] = field(default_factory=dict)
    variant: Callable[[dict[str, Any]], str] = no_variant
    variant_lead: str = "An ablation of the system"

    @property
    def by_scenario(self) -> bool:
        return self.scenario_text is not None

    @property
    def contest(self) -> str:
        """Within what the best value is marked."""
        return "scenario" if self.by_scenario else "task"

    @property
    def results_stage(self) -> str:
        return self.needed["results.jsonl"]

    def heading(self, task: str, scenario: str) -> str:
        """What tells one result of a run from the others."""
        return TASK_NAMES.get(task, task) if self.scenario_text is None else self.scenario_text(scenario)

    def label(self, method: str, backbone: str) -> str:
        """A method as tables name it: a recommender by its name."""
        if method != BASELINE or not self.backbones:
            return self.backbones.get(method, method)
        return f"{self.backbones.get(backbone, backbone)} (backbone)"


def view_of(system: str) -> SystemView:
    """Raises UserError for a system without a view."""
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    if system not in names:
        raise UserError(
            f"config.yaml: system is {system!r}, which no report shows: use {' or '.join(names)}."
        )
    view: SystemView = importlib.import_module(f"recloom.trainer.report.systems.{system}").VIEW
    return view
