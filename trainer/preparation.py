"""The work of every system's stage prepare: raw files to the three tables, with the dataset card."""

from __future__ import annotations

from recloom.data_shards.artifacts import atomic_write_json
from recloom.data_shards.cards import dataset_card, format_card
from recloom.data_shards.sources.registry import source_module
from recloom.data_shards.splits import Splits, leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer.stages import Run


def prepare_tables(run: Run) -> tuple[Tables, Splits]:
    """Read the source into data/tables, write and print the card."""
    config = run.config
    module = source_module(config.data.source)
    settings = module.Settings(**config.data.model_dump(exclude={"source"}))
    tables = module.load(settings, run.cache)
    splits = leave_one_out(tables, config.positive_rating)
    card = dataset_card(tables, splits)
    tables.save(run.path("data/tables"))
    atomic_write_json(run.path("data/card.json"), card)
    print(format_card(card), flush=True)
    return tables, splits


def run_prepare(run: Run) -> None:
    """The stage itself, where a system adds nothing."""
    prepare_tables(run)


def load_data(run: Run) -> tuple[Tables, Splits]:
    """The prepared tables and their leave-one-out splits."""
    tables = Tables.load(run.path("data/tables"))
    return tables, leave_one_out(tables, run.config.positive_rating)
