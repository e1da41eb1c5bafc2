"""Amazon reviews of 1996 to 2014 (McAuley et al. 2015): one category, raw or five-core.

Files: `reviews_NAME.json.gz` or `reviews_NAME_5.json.gz`, and `meta_NAME.json.gz`, whose lines are Python
dicts more often than JSON.
"""

from __future__ import annotations

from pathlib import Path

from recloom.data_shards.sources.amazon import AmazonSettings, load_dump
from recloom.data_shards.tables import Tables


class Settings(AmazonSettings):
    """The `data` block of a config with `source: amazon2014`."""


def load(settings: Settings, cache: Path) -> Tables:
    """Read one category; raises UserError when files are missing or malformed. `cache` is not used."""
    return load_dump(settings, year=2014, literals=True)
