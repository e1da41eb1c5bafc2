"""Stage prepare: raw files to the three tables, the dataset card, the scenario's candidate lists.

Shapes: I items.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recloom.data_shards.candidates import Candidates, Part, stored_candidates
from recloom.data_shards.errors import UserError
from recloom.data_shards.scenarios import Scenario, scenarios
from recloom.data_shards.splits import Splits
from recloom.data_shards.tables import Tables
from recloom.trainer.config_io import read_config
from recloom.trainer.preparation import load_data, prepare_tables
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

CROSS_DOMAIN = "cross_domain"


@dataclass(frozen=True)
class Task:
    """What a scenario learns from and asks.

    train_sequences[u]: the items learned from, empty for users who are not. histories[u]: what may be shown
    of user u at test. cold_I: items without a training interaction.
    """

    tables: Tables
    scenario: Scenario
    train_sequences: list[np.ndarray]
    histories: list[np.ndarray]
    cold_I: np.ndarray


def run_prepare(run: Run[ALLMRecConfig]) -> None:
    models_run(run)  # a wrong one is told before anything is written
    draw_lists(run, *prepare_tables(run))


def draw_lists(run: Run[ALLMRecConfig], tables: Tables, splits: Splits) -> dict[Part, Candidates]:
    """The candidate lists of the whole data set, drawn and stored by the first call."""
    scenario = run.config.scenario
    parts: tuple[Part, ...] = ("valid", "test")
    return {
        part: stored_candidates(
            run.path(f"data/candidates_{part}.bin"),
            splits,
            part,
            tables.num_items,
            scenario.negatives,
            scenario.seed,
        )
        for part in parts
    }


def models_run(run: Run[ALLMRecConfig]) -> Run[ALLMRecConfig]:
    """The run whose models answer: this one, or for cross_domain the one it names."""
    trained = run.config.scenario.trained
    if trained is None:
        return run
    folder = Path(trained).expanduser()
    path = folder / "config.yaml"
    config = read_config(path) if path.is_file() else None
    if not isinstance(config, ALLMRecConfig) or not (folder / "stages" / "rank.json").is_file():
        raise UserError(
            f"scenario.trained = '{trained}': no finished run of a_llmrec: finish it, or name another "
            "(of a run with several seeds one of its seed folders)."
        )
    return Run(config, folder, run.cache)


def load_task(run: Run[ALLMRecConfig]) -> Task:
    """The prepared data as the scenario cuts them."""
    tables, splits = load_data(run)
    drawn = draw_lists(run, tables, splits)
    settings = run.config.scenario
    # Another run's models answer: what this data set would be learned from is not looked at.
    name = "overall" if settings.name == CROSS_DOMAIN else settings.name
    found = scenarios(splits, tables.num_items, [name], settings.seed, drawn, settings.truncated_cold_users)[
        name
    ]
    train = found.splits.topk.train
    return Task(
        tables,
        found,
        train.sequences(tables.num_users),
        found.history.sequences(tables.num_users),
        np.bincount(train.item_N, minlength=tables.num_items) == 0,
    )
