"""Train one of our backbones for benchmarks/collaborative.py: the product's own fit, timed from outside."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import protocol
import torch

from recloom.trainer.collaborative import fit
from recloom.trainer.collaborative.data import NO_ITEM, TopKData
from recloom.trainer.collaborative.evaluate import masked_scores
from recloom.trainer.collaborative.registry import backbone_module, backbone_names


def topk_data(split: protocol.Split) -> TopKData:
    valid_items = np.full(split.num_users, NO_ITEM, dtype=np.int64)
    valid_items[split.users_of["valid"]] = split.targets_of["valid"]
    return TopKData(split.num_users, split.num_items, split.sequences, valid_items, seen=split.sequences)


def main() -> None:
    names = backbone_names("direct") + backbone_names("sequential")
    job, split, changed = protocol.read_job({name: {} for name in names})
    torch.set_num_threads(job.threads)
    module, data = backbone_module(job.model), topk_data(split)
    settings = module.Settings(**changed)
    run = protocol.Run(job, split, settings.model_dump(exclude={"model"}))
    validation_value = fit.validation_value

    def timed_validation(*arguments: Any) -> float:
        seconds = run.seconds
        with run.pause():
            value = validation_value(*arguments)
            run.record(seconds, value)
        return value

    with patch.object(fit, "validation_value", timed_validation):
        backbone, _ = fit.fit(module, data, settings, job.seed, progress=False)
    for part, users_B in split.users_of.items():
        histories = split.histories(part)
        run.best_scores[part] = np.concatenate(
            [scores_CI.numpy() for _, scores_CI in masked_scores(backbone, users_B, histories, histories)]
        )
    run.finish("this commit")


if __name__ == "__main__":
    main()
