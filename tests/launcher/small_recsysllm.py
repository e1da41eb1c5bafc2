"""RecSysLLM small enough for tests: a few users of a shop with reviews, a random LLaMA, every stage."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from recloom.trainer.config_io import laid_over

METHODS = ("recsysllm", "token_masks", "permuted", "one_d", "sequential_only")
NUM_USERS, NUM_ITEMS = 20, 14
DAY = 86_400
COLOURS = ("red", "blue", "green", "grey")
KINDS = ("lamp", "chair", "table", "shelf", "carpet")
WORDS = ("bad", "poor", "fair", "good", "superb")


def small_config(run_dir: Path, shop: Path, model: Path, **blocks: Any) -> dict[str, Any]:
    """Every method and family; `blocks` are laid over it as one YAML over another."""
    config: dict[str, Any] = {
        "name": "small",
        "system": "recsysllm",
        "seed": 5,
        "run_dir": str(run_dir),
        "methods": list(METHODS),
        "data": shop_block(shop),
        "positive_rating": None,
        "model": {"path": str(model), "dtype": "float32"},
        "backbones": {
            "direct": {"model": "mf", "max_epochs": 1, "embedding": 8},
            "sequential": {"model": "sasrec", "max_epochs": 1, "embedding": 8, "max_length": 6},
            "rating": {"model": "deepfm", "max_epochs": 1},
        },
        "corpus": {"history_items": 3, "negatives": 3, "samples": 12, "valid_samples": 3},
        "pretrain": {
            "epochs": 2,
            "learning_rate": 3e-3,
            "table_rate": 1.0,
            "warmup_steps": 1,
            "context": 400,
            "pack_length": 300,
            "rows_per_step": 2,
            "gradient_checkpointing": False,
            "evaluate_every": 0,
            "checkpoint_every": 0,
            "tensorboard": False,
        },
        "ask": {"users": 9, "beams": 5, "max_tokens": 5, "batch": 2, "free": True},
        "evaluate": {"ks": [1, 5]},
    }
    return laid_over(config, blocks)


def shop_block(folder: Path) -> dict[str, Any]:
    """The YAML's data block for the files of `write_shop`."""
    rows = {"user": "user", "item": "item", "rating": "stars", "timestamp": "time"}
    texts = {"review": "text", "summary": "headline"}
    return {
        "source": "table",
        "name": "Shop",
        "interactions": {"path": str(folder / "interactions.csv"), "columns": {**rows, **texts}},
        "items": {
            "path": str(folder / "items.csv"),
            "columns": {"item": "item", "title": "title"},
            "attributes": ["category"],
        },
        "users": {"path": str(folder / "users.csv"), "columns": {"user": "user"}, "attributes": ["town"]},
    }


def write_shop(folder: Path) -> Path:
    """Users who walk through the items in steps of their own and say what they think; returns `folder`."""
    rows = []
    for user in range(NUM_USERS):
        for place in range(4 + user % 4):
            item = (5 * user + (1 + user % 3) * place) % NUM_ITEMS
            rows.append([f"u{user:02}", f"i{item:02}", *review(user, item), place * 20 * DAY])
    write_csv(folder / "interactions.csv", ["user", "item", "stars", "text", "headline", "time"], rows)
    items = [[f"i{item:02}", title(item), f"Home|{KINDS[item % 5]}s"] for item in range(NUM_ITEMS)]
    write_csv(folder / "items.csv", ["item", "title", "category"], items)
    users = [[f"u{user:02}", ("Ulm", "Bern", "")[user % 3]] for user in range(NUM_USERS)]
    write_csv(folder / "users.csv", ["user", "town"], users)
    return folder


def title(item: int) -> str:
    """Two are equal, and one begins like another."""
    return f"{COLOURS[item % 4]} {KINDS[max(item, 4) % 5]}" + (" XL" if item == 9 else "")


def review(user: int, item: int) -> tuple[int, str, str]:
    """Stars, text and headline; some rows have no text, some no headline."""
    stars = 1 + (user + 2 * item) % 5
    word, kind = WORDS[stars - 1], KINDS[max(item, 4) % 5]
    text = f"Came fast. The {kind} is {word}. I would say {word} to anyone." if (user + item) % 7 else ""
    return stars, text, f"A {word} {kind}" if (user + item) % 5 else ""


def write_csv(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
