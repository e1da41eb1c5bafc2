"""Laser small enough for tests: a few users of a shop of our own, a random LLaMA, every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recloom.trainer.config_io import laid_over

METHODS = ("laser", "no_moe", "no_mformer", "no_prefix", "no_stage_1", "no_stage_2", "average", "hard_eos")
NUM_USERS, NUM_ITEMS = 24, 20
COLOURS = ("red", "blue", "green", "grey")


def small_config(run_dir: Path, shop: Path, model: Path, **blocks: Any) -> dict[str, Any]:
    """Every method, dropout on; `blocks` are laid over it as one YAML over another."""
    training = {
        "learning_rate": 1e-3,
        "pack_length": 300,
        "rows_per_step": 2,
        "checkpoint_every": 0,
        "tensorboard": False,
    }
    config: dict[str, Any] = {
        "name": "small",
        "system": "laser",
        "seed": 5,
        "run_dir": str(run_dir),
        "methods": list(METHODS),
        "baselines": ["mf"],
        "data": shop_block(shop),
        "model": {"path": str(model), "dtype": "float32"},
        "backbones": {
            "sequential": {
                "model": "bert4rec",
                "heads": 2,
                "embedding": 16,
                "max_length": 6,
                "max_epochs": 2,
            }
        },
        "texts": {"history_items": 3},
        "bitune": {"mformer": {"experts": 3, "tokens": 2, "blocks": 2, "hidden": 16, "heads": 2}},
        "stage_1": {**training, "epochs": 2},
        "stage_2": {**training, "epochs": 1},
        "embed": {"pack_length": 300, "chunk": 6},
        "evaluate": {"ks": [3, 10]},
    }
    return laid_over(config, blocks)


def shop_block(folder: Path) -> dict[str, Any]:
    """The YAML's data block for the files of `write_shop`."""
    interactions = {"user": "user", "item": "item", "timestamp": "time"}
    items = {"path": str(folder / "items.csv"), "columns": {"item": "item", "title": "title"}}
    return {
        "source": "table",
        "name": "Shop",
        "interactions": {"path": str(folder / "interactions.csv"), "columns": interactions},
        "items": {**items, "attributes": ["brand", "category"]},
    }


def write_shop(folder: Path) -> Path:
    """Users who walk through the items in steps of their own, as CSV files; returns `folder`."""
    walks = [
        [(5 * user + (1 + user % 3) * n) % NUM_ITEMS for n in range(4 + user % 5)]
        for user in range(NUM_USERS)
    ]
    rows = [(user, item, n) for user, walk in enumerate(walks) for n, item in enumerate(walk)]
    lines = "".join(f"u{user:02},i{item:02},{n}\n" for user, item, n in rows)
    (folder / "interactions.csv").write_text(f"user,item,time\n{lines}")
    known = "".join(item_line(item) for item in range(NUM_ITEMS))
    (folder / "items.csv").write_text(f"item,title,brand,category\n{known}")
    return folder


def item_line(item: int) -> str:
    """Every fifth item has no brand; two titles are equal."""
    brand = "" if item % 5 == 0 else f"Maker {item % 3}"
    return f"i{item:02},{COLOURS[item % 4]} thing {max(item, 4)},{brand},Tools|Kind {item % 2}\n"
