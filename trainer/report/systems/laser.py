"""Laser (Zhang et al. 2024): the frozen recommender beside the LLM's vectors, over the whole catalogue."""

from __future__ import annotations

from recloom.data_shards.scenarios import GROUP_PERCENT
from recloom.trainer.report.system_view import SystemView
from recloom.trainer.significance import LEVEL

METHODS = {
    "Base": "the conventional recommender (the backbone) alone",
    "Laser": "vectors of a frozen LLM between a trained prefix, which M-Former makes of the backbone's "
    "states, and a trained suffix",
    "w/o MoE": "M-Former with a single expert",
    "w/o M-Former": "text only: a trained prefix that is the same for all users and items",
    "w/o prefix": "text only, with the suffix alone",
    "w/o stage 1": "trained against the item embeddings that the untrained network gives",
    "w/o stage 2": "Laser as stage 1 leaves it",
    "average pooling": "the mean of the LLM's outputs in the suffix's place",
    "hard [EOS]": "the output at an end token, which is not trained, in the suffix's place",
}
BACKBONES = {
    "bert4rec": "BERT4Rec",
    "gru4rec": "GRU4Rec",
    "mf": "MF",
    "nextitnet": "NextItNet",
    "sasrec": "SASRec",
}
SCENARIOS = {
    "overall": "Overall",
    "warm": f"Warm items (the {GROUP_PERCENT} % with the most training interactions)",
    "cold": f"Cold items (the {GROUP_PERCENT} % with the fewest training interactions)",
}

VIEW = SystemView(
    title="Laser",
    lead="A language model ({model}) that stays as it is reads what a user has browsed, between a few "
    "trained virtual tokens, and gives one vector a user and one an item. Are the items that come next "
    "nearer than a conventional recommender puts them? Measured on interactions that no model saw in "
    "training.",
    measures="All items of the catalogue are ranked by the cosine of their vector and the user's, or by the "
    "backbone's scores. H@k (Recall@k) is the share of users whose test item is among the first k; N@k "
    "(NDCG) counts a hit for more the higher it stands; MRR is the mean of 1 / rank.",
    methods=METHODS | {name: f"{title} alone" for name, title in BACKBONES.items()},
    ours=("Laser",),
    rivals=("Base", *BACKBONES, "w/o M-Former"),
    beside=(),
    note="Here, mean ± standard deviation over seeds (paper). * better than the best of the recommenders "
    f"without an LLM and of text only, paired t-test over users, p <= {LEVEL:g}.",
    needed={"results.jsonl": "evaluate", "per_user.parquet": "evaluate", "parameters.json": "evaluate"},
    optional=("tune",),
    sections=("training.html", "stages.html"),
    purposes=(("topk", "ranking"),),
    training_title="Bi-Tuning",
    headline="N@10",
    scenario_text=lambda scenario: SCENARIOS.get(scenario, scenario),
    backbones=BACKBONES,
)
