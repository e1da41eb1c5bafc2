"""A user's own data set: CSV, Parquet or JSON lines files whose columns the YAML maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator

from recloom.data_shards.read_columns import (
    Format,
    check_filled,
    check_unique,
    numbers,
    read_columns,
    timestamps,
)
from recloom.data_shards.sources.k_core import k_core, key_codes
from recloom.data_shards.tables import Tables, assemble_tables, check_keys

RESERVED = {"item", "item_key", "title", "user", "user_key"}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TableFile(Strict):
    """Where a file lies and how to read it."""

    path: str = Field(description="The file.")
    format: Format | None = Field(
        default=None, description="csv, parquet or jsonl; left out, the suffix tells."
    )
    separator: str = Field(
        default=",", min_length=1, max_length=1, description="Between the values of a CSV."
    )
    encoding: str = Field(default="utf-8", description="Text encoding of a CSV or JSON lines file.")

    def read(self, columns: dict[str, str | None]) -> pa.Table:
        """String columns under our names; an unmapped one (None) is left out."""
        wanted = {name: column for name, column in columns.items() if column is not None}
        return read_columns(self.location, self.format, wanted, self.separator, self.encoding)

    @property
    def location(self) -> Path:
        return Path(self.path).expanduser()


class InteractionColumns(Strict):
    """Names of the file's columns."""

    user: str = Field(description="User id, any text.")
    item: str = Field(description="Item id, any text.")
    rating: str | None = Field(default=None, description="A number; left out, the data set has no ratings.")
    timestamp: str | None = Field(
        default=None, description="A number that grows with time; left out, file order is time."
    )
    review: str | None = Field(default=None, description="Review text.")
    summary: str | None = Field(default=None, description="The review's summary or headline.")


class ItemColumns(Strict):
    """Names of the file's columns."""

    item: str = Field(description="Item id, as in the interactions.")
    title: str | None = Field(default=None, description="Title; where it is left out or empty, the item id.")


class UserColumns(Strict):
    """Names of the file's columns."""

    user: str = Field(description="User id, as in the interactions.")


class AttributeFile(TableFile):
    """A file with further columns that become attributes of the same name."""

    attributes: list[str] = Field(default=[], description="Further columns to keep, as text.")

    @field_validator("attributes")
    @classmethod
    def free_names(cls, attributes: list[str]) -> list[str]:
        taken = RESERVED.intersection(attributes)
        if taken or len(set(attributes)) < len(attributes):
            raise ValueError(f"must not repeat a name, nor be one of {', '.join(sorted(RESERVED))}")
        return attributes


class InteractionFile(TableFile):
    columns: InteractionColumns = Field(description="Our names: the file's column names.")


class ItemFile(AttributeFile):
    columns: ItemColumns = Field(description="Our names: the file's column names.")


class UserFile(AttributeFile):
    columns: UserColumns = Field(description="Our names: the file's column names.")


class Settings(Strict):
    """The `data` block of a config with `source: table`."""

    name: str = Field(min_length=1, description="Display name of the data set, as it stands in results.")
    interactions: InteractionFile = Field(description="One row an interaction.")
    items: ItemFile | None = Field(
        default=None, description="One row an item; left out, items have only their id."
    )
    users: UserFile | None = Field(
        default=None, description="One row a user; left out, users have only their id."
    )
    min_interactions: int = Field(
        default=0,
        ge=0,
        description="Users and items with fewer are dropped, again and again (k-core); 0 keeps all.",
    )


def load(settings: Settings, cache: Path) -> Tables:
    """Read the mapped files; raises UserError that names file, row and value of the first bad input.

    Items and users that no interaction names are dropped. `cache` is not used.
    """
    rows = read_interactions(settings.interactions)
    items = read_entities(settings.items, "item", rows)
    users = read_entities(settings.users, "user", rows)
    for column, table in (("item", items), ("user", users)):
        check_keys(settings.name, rows[f"{column}_key"], table[f"{column}_key"], column)
    core = k_core(settings.name, rows, settings.min_interactions)
    return assemble_tables(settings.name, core, items, users)


def read_interactions(file: InteractionFile) -> pa.Table:
    """Checked interactions in file order, with typed rating and timestamp."""
    rows = file.read(file.columns.model_dump()).rename_columns({"user": "user_key", "item": "item_key"})
    for name in ("user", "item"):
        check_filled(file.location, name, rows[f"{name}_key"])
    identity = [key_codes(rows["user_key"]), key_codes(rows["item_key"])]
    columns = {name: rows[name] for name in rows.column_names}
    if "rating" in columns:
        columns["rating"] = pa.array(numbers(file.location, "rating", rows["rating"]), pa.float32())
    if "timestamp" in columns:
        time_N = timestamps(file.location, rows["timestamp"])
        check_unique(file.location, "user, item and timestamp", [*identity, time_N])
    else:
        time_N = np.arange(rows.num_rows)
        check_unique(file.location, "user and item, and no timestamp column is mapped", identity)
    columns["timestamp"] = pa.array(time_N, pa.int64())
    return pa.table(columns)


def read_entities(file: ItemFile | UserFile | None, column: str, rows: pa.Table) -> pa.Table:
    """The items (or users) with their key first; without a file, the keys in order of appearance."""
    key = f"{column}_key"
    if file is None:
        table = pa.table({key: rows[key].unique()})
    else:
        attributes = {name: name for name in file.attributes}
        table = file.read({**file.columns.model_dump(), **attributes}).rename_columns({column: key})
        check_filled(file.location, column, table[key])
        check_unique(file.location, column, [key_codes(table[key])])
    return with_title(table) if column == "item" else table


def with_title(items: pa.Table) -> pa.Table:
    """Items whose title stands after the key and is never empty."""
    title = items["item_key"]
    if "title" in items.column_names:
        given = pc.utf8_trim_whitespace(items["title"])
        title = pc.if_else(pc.equal(given, ""), items["item_key"], given)
        items = items.drop_columns("title")
    return items.add_column(1, "title", title)
