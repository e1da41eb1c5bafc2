"""Amazon reviews of 1996 to 2018 (Ni et al. 2019): one category, raw or five-core.

Files: `NAME.json.gz` or `NAME_5.json.gz`, and `meta_NAME.json.gz`, all of strict JSON.
"""

from __future__ import annotations

from pathlib import Path

from recloom.data_shards.sources.amazon import AmazonSettings, load_dump
from recloom.data_shards.tables import Tables


class Settings(AmazonSettings):
    """The `data` block of a config with `source: amazon2018`."""


def load(settings: Settings, cache: Path) -> Tables:
    """Read one category; raises UserError when files are missing or malformed. `cache` is not used."""
    return load_dump(settings, year=2018, literals=False)
