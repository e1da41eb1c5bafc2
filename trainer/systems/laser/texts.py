"""Stage texts: items and histories as shards of text, by the unified template (section 3.1.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Sample
from recloom.data_shards.shards import write_shards
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize import browsing
from recloom.data_shards.textualize.browsing import browsing_sample, item_details
from recloom.data_shards.textualize.next_item import cut_titles
from recloom.data_shards.textualize.template import TextOptions, load_template, one_line_titles
from recloom.trainer.item_texts import cell_text, known_attributes
from recloom.trainer.models import load_tokenizer, resolve_model
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.settings import LaserConfig, TextsBlock
from recloom.trainer.systems.laser.task import Example, load_task

PAPER_ATTRIBUTES = ("brand", "category")
LEARNED_PARTS = ("items", "train", "valid")
SAMPLES_PER_SHARD = 2000


class Writer:
    """Writes histories and items in words."""

    def __init__(self, texts: TextsBlock, tables: Tables) -> None:
        self.texts = texts
        titles = cut_titles(one_line_titles(tables.titles), texts.title_words)
        self.options = TextOptions(titles, texts.item_noun)
        self.details = details_of(tables, texts)
        self.template = load_template(texts.template, browsing.FAMILY)
        self.item_template = load_template(texts.item_template or texts.template, browsing.FAMILY)

    def user(self, example: Example) -> Sample:
        """The text shows the latest items; M-Former reads the whole history, which costs no tokens."""
        history = example.history.tolist()
        shown = history[-self.texts.history_items :]
        return browsing_sample(
            self.template, example.user, shown, self.options, self.details, example.target, history
        )

    def item(self, item: int) -> Sample:
        """An item is a history of itself alone."""
        return browsing_sample(self.item_template, "item", [item], self.options, self.details)


def details_of(tables: Tables, texts: TextsBlock) -> list[str]:
    """What stands in brackets behind every title. Raises UserError for a column that is no attribute."""
    known = known_attributes(tables)
    names = texts.attributes
    if names is None:
        names = tuple(name for name in PAPER_ATTRIBUTES if name in known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"texts.attributes: {unknown[0]} named, no attribute of {tables.name}: "
            f"choose from {', '.join(known) or 'none'}."
        )
    columns = {name: [cell_text(cell) for cell in tables.items[name].to_pylist()] for name in names}
    return item_details(columns, texts.attribute_words) if columns else [""] * tables.num_items


def make_renderer(run: Run[LaserConfig]) -> Renderer:
    """With a start token: the position that decoders rest their attention on is not the prefix's."""
    tokenizer = load_tokenizer(resolve_model(run.config.model.path, run.cache))
    return Renderer(tokenizer, start=run.config.texts.start_token or True)


def run_texts(run: Run[LaserConfig], names: Sequence[str]) -> None:
    """Write some of the four parts; a sample's meta holds its items and its target."""
    task, renderer = load_task(run), make_renderer(run)
    writer = Writer(run.config.texts, task.tables)
    parts: dict[str, Iterable[Sample]] = {
        "items": (writer.item(item) for item in range(task.tables.num_items)),
        "train": map(writer.user, task.train),
        "valid": map(writer.user, task.valid),
        "test": map(writer.user, task.test),
    }
    for part in names:
        manifest = write_shards(
            parts[part], renderer, run.path(f"texts/{part}"), SAMPLES_PER_SHARD, answered=False, part=part
        )
        lengths = np.load(run.path(f"texts/{part}/lengths.npy"))[:, 0]
        print(
            f"texts {part}: {manifest['num_samples']:,} texts, {lengths.mean():.0f} tokens each, "
            f"longest {lengths.max():,}",
            flush=True,
        )
