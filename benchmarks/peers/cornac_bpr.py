"""Train `cornac`'s BPR (the model `mf`) for benchmarks/collaborative.py."""

from __future__ import annotations

import contextlib

import cornac
import numpy as np
import protocol

DEFAULTS = {"mf": {"k": 64, "learning_rate": 0.01, "lambda_reg": 0.01}}
MAX_EPOCHS = 1000


def main() -> None:
    job, split, settings = protocol.read_job(DEFAULTS)
    users, items = split.pairs()
    train = cornac.data.Dataset.from_uir(
        zip(users.tolist(), items.tolist(), np.ones(len(users)), strict=True), seed=job.seed
    )
    user_ids = np.array([train.uid_map.get(user, -1) for user in range(split.num_users)])
    item_ids = np.array([train.iid_map.get(item, -1) for item in range(split.num_items)])
    run = protocol.Run(job, split, settings)
    # a seed forces one thread; `fit` goes on from the factors it has, so one call is one epoch
    seed = job.seed if job.threads == 1 else None
    model = cornac.models.BPR(**settings, max_iter=1, num_threads=job.threads, seed=seed)

    def scores(part: str) -> np.ndarray:
        """Users and items that the training interactions lack cannot be scored."""
        rows = user_ids[split.users_of[part]]
        scores_BI = (model.u_factors[rows] @ model.i_factors.T + model.i_biases)[:, item_ids]
        scores_BI[rows < 0] = -np.inf
        scores_BI[:, item_ids < 0] = -np.inf
        return scores_BI

    with contextlib.suppress(protocol.Finished):
        for _ in range(MAX_EPOCHS):
            model.fit(train)
            run.validate(scores)
    run.finish(cornac.__version__)


if __name__ == "__main__":
    main()
