"""The small training that `tools/fault_drill.py` interrupts: its inputs, its command, what it leaves."""

from __future__ import annotations

import json
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recloom.data_shards.artifacts import MANIFEST, file_sha256
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Literal, Sample
from recloom.data_shards.shards import write_shards
from recloom.launcher.ranks import deepspeed_command, local_environment
from recloom.tools.new_model import ModelSizes, write_model
from recloom.tools.train_tokenizer import TokenizerSettings, train_tokenizer
from recloom.trainer.models import load_tokenizer

RANKS, STAGE = 2, "tune"
SAMPLES, SAMPLES_PER_SHARD, EPOCHS = 96, 8, 3
TITLES = [f"{kind} of the {place}" for kind in ("Song", "Year", "Guest") for place in ("Sea", "Hill", "Moor")]
TIMES = {"seconds", "data_seconds"}  # what differs from one start to the next


@dataclass(frozen=True)
class Twin:
    """A run folder and the config beside it; inputs are shared with the others of `work`."""

    work: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.work / self.name

    @property
    def tuned(self) -> Path:
        return self.folder / "tune/llama4rec"

    @property
    def checkpoints(self) -> Path:
        return self.tuned / "checkpoints"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def is_done(self) -> bool:
        return (self.folder / f"stages/{STAGE}.ranks_done").is_file()

    def rows(self) -> list[dict[str, Any]]:
        """The whole lines of the metrics, without times."""
        path = self.tuned / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]

    def steps(self) -> list[dict[str, Any]]:
        return [row for row in self.rows() if "loss" in row]

    def model_digest(self) -> str:
        return file_sha256(self.tuned / "model/model.safetensors")

    def start(self) -> subprocess.Popen[bytes]:
        """The command of the training stage, as `recloom run` types it, in a session of its own."""
        command = deepspeed_command(RANKS, ["--config", str(self.folder / "config.yaml"), "--stage", STAGE])
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command,
                # The ranks leave when this process is gone, however it went.
                env=local_environment(RANKS) | {"RECLOOM_SUPERVISOR": str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def make_twin(work: Path, name: str) -> Twin:
    """Write what is missing of a run folder and of the inputs, from which every twin learns the same."""
    tokenizer, model, corpus = work / "tokenizer", work / "model", work / "corpus"
    if not (tokenizer / MANIFEST).is_file():
        text = work / "titles.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("".join(f"{prompt}{answer}\n" for prompt, answer in sentences()))
        train_tokenizer([text], tokenizer, TokenizerSettings("bpe", 340, 1000), force=True)
    if not (model / MANIFEST).is_file():
        write_model(tokenizer, model, ModelSizes(layers=2, hidden=32, heads=2, context=256), seed=0)
    if not (corpus / MANIFEST).is_file():
        write_shards(samples(), Renderer(load_tokenizer(str(model)), start=True), corpus, SAMPLES_PER_SHARD)
    twin = Twin(work, name)
    shards = twin.folder / "instructions/llama4rec"
    shards.mkdir(parents=True, exist_ok=True)
    if not (shards / "train").is_symlink():
        os.symlink(corpus.resolve(), shards / "train")
    (twin.folder / "config.yaml").write_text(yaml.safe_dump(config(twin, model)))
    return twin


def sentences() -> list[tuple[str, str]]:
    """Prompts and answers of users with made-up histories."""
    rng = random.Random(0)
    drawn = [rng.sample(TITLES, 4) for _ in range(SAMPLES)]
    return [(f"A reader liked {', '.join(titles[:3])}. Next:\n", titles[3]) for titles in drawn]


def samples() -> list[Sample]:
    pairs = enumerate(sentences())
    return [Sample(f"s{n}", (Literal(prompt),), (Literal(answer),), {}) for n, (prompt, answer) in pairs]


def config(twin: Twin, model: Path) -> dict[str, Any]:
    return {
        "name": "drill",
        "system": "llama4rec",
        "seed": 3,
        "run_dir": str(twin.folder.resolve()),
        "data": {"source": "movielens", "variant": "100k"},
        "model": {"path": str(model.resolve()), "dtype": "float32"},
        "parallel": {"cpu_ranks": RANKS},
        "backbones": {  # asked for by every config, and not used here
            "direct": {"model": "mf"},
            "sequential": {"model": "sasrec"},
            "rating": {"model": "deepfm"},
        },
        "training": {
            "ift": "shared",
            "epochs": EPOCHS,
            "learning_rate": 1e-3,
            "warmup_steps": 4,
            "pack_length": 128,
            "context": 128,
            "rows_per_step": 2,
            "window": 32,
            "gradient_checkpointing": False,
            "evaluate_every": 0,
            "checkpoint_every": 3,
            "keep_checkpoints": 2,
            "tensorboard": False,
        },
    }
