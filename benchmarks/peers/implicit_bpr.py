"""Train `implicit`'s BPR (the model `mf`) for benchmarks/collaborative.py."""

from __future__ import annotations

import contextlib
from typing import Any

import implicit
import numpy as np
import protocol
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix

# embedding 64 of ours = 63 factors and a bias; the rest are the library's defaults, with an open end
DEFAULTS = {"mf": {"factors": 63, "learning_rate": 0.01, "regularization": 0.01, "iterations": 1000}}


def main() -> None:
    job, split, settings = protocol.read_job(DEFAULTS)
    users, items = split.pairs()
    shape = (split.num_users, split.num_items)
    matrix = csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)
    run = protocol.Run(job, split, settings)
    model = BayesianPersonalizedRanking(**settings, num_threads=job.threads, random_state=job.seed)

    def scores(part: str) -> np.ndarray:
        return model.user_factors[split.users_of[part]] @ model.item_factors.T

    def after_epoch(*_: Any) -> None:
        run.validate(scores)

    with contextlib.suppress(protocol.Finished):
        model.fit(matrix, show_progress=False, callback=after_epoch)
    run.finish(implicit.__version__)


if __name__ == "__main__":
    main()
