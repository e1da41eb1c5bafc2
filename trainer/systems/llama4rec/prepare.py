"""Stage prepare: raw files to the three tables, with the dataset card."""

from __future__ import annotations

from recloom.data_shards.artifacts import atomic_write_json
from recloom.data_shards.cards import dataset_card, format_card
from recloom.data_shards.sources.registry import source_module
from recloom.data_shards.splits import Splits, leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer.stages import Run


def run_prepare(run: Run) -> None:
    config = run.config
    module = source_module(config.data.source)
    settings = module.Settings(**config.data.model_dump(exclude={"source"}))
    tables = module.load(settings, run.cache)
    card = dataset_card(tables, leave_one_out(tables, config.positive_rating))
    tables.save(run.path("data/tables"))
    atomic_write_json(run.path("data/card.json"), card)
    print(format_card(card), flush=True)


def load_data(run: Run) -> tuple[Tables, Splits]:
    """The prepared tables and their leave-one-out splits."""
    tables = Tables.load(run.path("data/tables"))
    return tables, leave_one_out(tables, run.config.positive_rating)
