"""Our metrics on every test user of MovieLens-100K against ranx, for a model's full-catalogue ranking."""

from __future__ import annotations

import importlib

import numpy as np
import torch

from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.data import TopKData, leave_one_out_queries
from recloom.trainer.collaborative.evaluate import evaluate_topk, rank_topk
from recloom.trainer.collaborative.registry import backbone_class, backbone_module

DEPTH = 50


def test_ranx_agrees_on_every_user(ml100k: Tables) -> None:
    split = leave_one_out(ml100k, 4.0).topk
    module = backbone_module("mf")
    torch.manual_seed(0)
    data = TopKData.from_split(split, ml100k.num_users, ml100k.num_items)
    backbone = backbone_class(module).build(data, module.Settings()).eval()
    queries = leave_one_out_queries(split, ml100k.num_users, "test")
    ours = evaluate_topk(backbone, *queries, ks=(3, 5, 10, DEPTH))
    items_BT, _ = rank_topk(backbone, *queries[:3], k=DEPTH)
    config = importlib.import_module("numba").config
    compiled, config.DISABLE_JIT = config.DISABLE_JIT, True
    try:
        ranx = importlib.import_module("ranx")
        names = [f"u{user:05}" for user in queries.users_B]
        truth = {n: {f"i{t}": 1} for n, t in zip(names, queries.targets_B, strict=True)}
        lists = {
            n: {f"i{item}": 1.0 - place / 100 for place, item in enumerate(row)}
            for n, row in zip(names, items_BT.tolist(), strict=True)
        }
        wanted = [f"{metric}@{k}" for metric in ("hit_rate", "ndcg") for k in (3, 5, 10, DEPTH)]
        found = ranx.evaluate(ranx.Qrels(truth), ranx.Run(lists), wanted, return_mean=False)
    finally:
        config.DISABLE_JIT = compiled
    assert len(names) == 942 and ours[f"H@{DEPTH}"].any()
    for k in (3, 5, 10, DEPTH):
        np.testing.assert_allclose(ours[f"H@{k}"], found[f"hit_rate@{k}"])
        np.testing.assert_allclose(ours[f"N@{k}"], found[f"ndcg@{k}"], atol=1e-12)
