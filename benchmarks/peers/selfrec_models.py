"""Train SELFRec's LightGCN or SASRec for benchmarks/collaborative.py: its sampler, model and loop."""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import subprocess
import sys
from typing import Any

import numpy as np
import protocol
import torch

# SELFRec's conf/LightGCN.yaml and conf/SASRec.yaml
DEFAULTS: dict[str, dict[str, Any]] = {
    "lightgcn": {"learning.rate": 0.001, "reg.lambda": 0.0001, "batch.size": 2048},
    "sasrec": {"learning.rate": 0.001, "reg.lambda": 0.0001, "batch.size": 256},
}
MODELS: dict[str, dict[str, Any]] = {
    "lightgcn": {"model": {"name": "LightGCN", "type": "graph"}, "LightGCN": {"n_layer": 2}},
    "sasrec": {
        "model": {"name": "SASRec", "type": "sequential"},
        "SASRec": {"n_blocks": 2, "drop_rate": 0.2, "n_heads": 1},
        "max.len": 50,
    },
}
COMMON: dict[str, Any] = {
    "training.set": "split",
    "test.set": "split",
    "item.ranking.topN": [10],
    "embedding.size": 64,
    "max.epoch": 1000,
    "output": "./",
}


class Conf(dict[str, Any]):
    """What SELFRec asks of its configuration."""

    @property
    def config(self) -> Conf:
        return self

    def contain(self, key: str) -> bool:
        return key in self


def stay_on_cpu() -> None:
    """SELFRec calls `.cuda()` throughout."""
    kinds: tuple[Any, ...] = (torch.nn.Module, torch.Tensor)
    for kind in kinds:
        kind.cuda = lambda self, *_: self


def training_data(split: protocol.Split, kind: str) -> Any:
    """The training interactions in the form that SELFRec's loader gives."""
    if kind == "sequential":
        return {str(user): [str(item) for item in items] for user, items in enumerate(split.sequences)}
    return [[str(user), str(item), 1.0] for user, item in zip(*split.pairs(), strict=True)]


class Scorer:
    """Scores of the full catalogue; -inf where SELFRec has no number for the user or the item."""

    def __init__(self, model: Any, split: protocol.Split, length: int | None) -> None:
        self.model, self.split, self.length = model, split, length
        self.item_ids = np.array([model.data.item.get(str(item), -1) for item in range(split.num_items)])

    @torch.no_grad()
    def __call__(self, part: str) -> np.ndarray:
        scores_BI = self.graph(part) if self.length is None else self.sequential(part, self.length)
        scores_BI[:, self.item_ids < 0] = -np.inf
        return scores_BI

    def graph(self, part: str) -> np.ndarray:
        model = self.model
        rows = np.array([model.data.user.get(str(user), -1) for user in self.split.users_of[part]])
        scores_BI = (model.user_emb[rows] @ model.item_emb.T).numpy()[:, self.item_ids]
        scores_BI[rows < 0] = -np.inf
        return scores_BI

    def sequential(self, part: str, length: int) -> np.ndarray:
        histories = [self.item_ids[items] for items in self.split.histories(part)]
        table, lengths = protocol.padded([items[items > 0] for items in histories], length)
        places = np.where(table > 0, np.arange(1, length + 1), 0)
        found = [
            self.model.predict(table[rows], places[rows], lengths[rows])[:, self.item_ids]
            for rows in protocol.chunks(len(table))
        ]
        return np.concatenate(found)


def commit(source: str) -> str:
    command = ["git", "-C", source, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    job, split, settings = protocol.read_job(DEFAULTS)
    source = str(job.source.resolve())
    sys.path.insert(0, source)
    torch.set_num_threads(job.threads)
    random.seed(job.seed)
    torch.manual_seed(job.seed)
    stay_on_cpu()
    conf = Conf(COMMON | MODELS[job.model] | settings)
    kind, name = conf["model"]["type"], conf["model"]["name"]
    chosen = getattr(importlib.import_module(f"model.{kind}.{name}"), name)
    data = training_data(split, kind)
    with protocol.scratch_folder():
        run = protocol.Run(job, split, settings)
        model = chosen(conf, data, type(data)())
        scorer = Scorer(model, split, conf.get("max.len"))
        model.fast_evaluation = lambda epoch: run.validate(scorer)
        # hides SELFRec's lines for every batch; `run` prints on the screen it found
        with contextlib.suppress(protocol.Finished), contextlib.redirect_stdout(io.StringIO()):
            model.train()
        run.finish(commit(source))


if __name__ == "__main__":
    main()
