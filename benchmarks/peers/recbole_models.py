"""Train RecBole's LightGCN or SASRec for benchmarks/collaborative.py: its data set, sampler and Trainer."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import protocol
import recbole
import scipy.sparse
import torch

for alias, kind in {"float": float, "int": int, "bool": bool, "object": object, "long": np.int64}.items():
    if alias not in np.__dict__:  # RecBole uses aliases that NumPy 1.24 removed
        setattr(np, alias, kind)
if not hasattr(scipy.sparse.dok_matrix, "_update"):  # so does its LightGCN with a method of SciPy
    scipy.sparse.dok_matrix._update = lambda self, entries: self._dict.update(entries)

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.data.utils import create_samplers, get_dataloader  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import get_model, init_seed  # noqa: E402

# LightGCN: RecBole's tuned values for ML-1M (RecBole-GNN, results/general/ml-1m.md) with our two layers.
# SASRec: RecBole's defaults with our number of heads.
DEFAULTS: dict[str, dict[str, Any]] = {
    "lightgcn": {"learning_rate": 0.002, "reg_weight": 1e-4, "n_layers": 2, "train_batch_size": 4096},
    "sasrec": {"learning_rate": 0.001, "n_heads": 1, "train_batch_size": 2048},
}
REQUIRED: dict[str, dict[str, Any]] = {"lightgcn": {}, "sasrec": {"train_neg_sample_args": None}}
NAMES = {"lightgcn": "LightGCN", "sasrec": "SASRec"}
COMMON: dict[str, Any] = {
    "epochs": 300,
    "use_gpu": False,
    "MAX_ITEM_LIST_LENGTH": 50,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id"], "item": ["item_id"]},
    "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "none", "mode": "full"},
    "stopping_step": 10**9,  # `Run` stops it
    "show_progress": False,
}


def write_files(split: protocol.Split, folder: Path) -> None:
    """The training interactions in RecBole's format, with all users and items of the catalogue."""
    folder.mkdir()
    users, items = split.pairs()
    rows = "".join(f"{u}\t{i}\t{n}\n" for n, (u, i) in enumerate(zip(users, items, strict=True)))
    (folder / "split.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    for name, count in (("user", split.num_users), ("item", split.num_items)):
        ids = "".join(f"{number}\n" for number in range(count))
        (folder / f"split.{name}").write_text(f"{name}_id:token\n" + ids)


class TimedTrainer(Trainer):
    """RecBole's Trainer with our validation in the place of its own."""

    def watch(self, run: protocol.Run, dataset: Any) -> None:
        self.run, sizes = run, (run.split.num_users, run.split.num_items)
        self.user_ids, self.item_ids = (
            dataset.token2id(field, [str(number) for number in range(count)])
            for field, count in zip(("user_id", "item_id"), sizes, strict=True)
        )

    def _valid_epoch(self, *_: Any, **__: Any) -> tuple[float, dict[str, float]]:
        value = self.run.validate(self.scores)
        return value, {"N@10": value}

    @torch.no_grad()
    def scores(self, part: str) -> np.ndarray:
        self.model.eval()
        users = torch.from_numpy(self.user_ids[self.run.split.users_of[part]])
        histories = [self.item_ids[items] for items in self.run.split.histories(part)]
        table, lengths = map(torch.from_numpy, protocol.padded(histories, COMMON["MAX_ITEM_LIST_LENGTH"]))
        queries = {"user_id": users, "item_id_list": table, "item_length": lengths}
        found = []
        for rows in protocol.chunks(len(users)):
            query = Interaction({name: column[rows] for name, column in queries.items()})
            scores_CI = self.model.full_sort_predict(query).view(len(query), -1)
            found.append(scores_CI[:, self.item_ids].numpy())
        return np.concatenate(found)


def main() -> None:
    job, split, settings = protocol.read_job(DEFAULTS)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(job.threads)
    with protocol.scratch_folder() as folder:
        write_files(split, folder / "split")
        fixed = {"data_path": str(folder), "seed": job.seed, **COMMON, **REQUIRED[job.model]}
        config = Config(NAMES[job.model], "split", config_dict={**fixed, **settings})
        init_seed(job.seed, reproducibility=True)
        dataset = create_dataset(config)
        built = dataset.build()
        sampler = create_samplers(config, dataset, built)[0]
        loader = get_dataloader(config, "train")(config, built[0], sampler, shuffle=True)
        run = protocol.Run(job, split, settings)
        model = get_model(config["model"])(config, loader.dataset)
        trainer = TimedTrainer(config, model)
        trainer.watch(run, dataset)
        with contextlib.suppress(protocol.Finished):
            trainer.fit(loader, valid_data=loader, verbose=False, saved=False)
        run.finish(recbole.__version__)


if __name__ == "__main__":
    main()
