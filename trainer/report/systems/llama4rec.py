"""Llama4Rec (Luo et al. 2024): one table for all tasks of the same metrics."""

from __future__ import annotations

from recloom.trainer.report.system_view import SystemView
from recloom.trainer.significance import LEVEL

METHODS = {
    "Base": "the conventional model (the backbone) alone",
    "Base+DA": "the backbone fitted again on data that the LLM made (data augmentation)",
    "IFT": "instruction fine-tuning: the tuned LLM, asked with plain prompts, re-ranks the backbone's "
    "candidates or predicts the rating",
    "w/o DA": "Llama4Rec without data augmentation: the backbone is the one of Base",
    "w/o PA": "Llama4Rec without prompt augmentation: the LLM is asked with plain prompts",
    "w/o AA": "Llama4Rec with one weight of the LLM for all users instead of adaptive aggregation",
    "Llama4Rec": "the backbone with augmented data and the tuned LLM with augmented prompts, combined for "
    "each user by adaptive aggregation",
}

VIEW = SystemView(
    title="Llama4Rec",
    lead="A language model ({model}) was tuned to re-rank what conventional recommenders propose and to\n"
    "predict ratings, and then combined with them. Does the combination recommend better than they do alone? "
    "Measured on\ninteractions that no model saw in training.",
    measures="H@k is the share of users whose test item is among the first k recommended. N@k (NDCG) counts "
    "a hit for more the\nhigher it stands. RMSE and MAE are errors of predicted ratings, in stars.",
    methods=METHODS,
    ours=("Llama4Rec", "w/o AA", "w/o PA", "w/o DA", "IFT", "Base+DA"),
    rivals=("Base", "IFT"),
    beside=("Base", "Base+DA", "IFT", "Llama4Rec"),
    note="Here, mean ± standard deviation over seeds (paper). * better than the best of Base and IFT, paired "
    f"t-test over users, p <= {LEVEL:g}; the paper's stars are left out.",
    needed={
        "results.jsonl": "aggregate",
        "per_user.parquet": "aggregate",
        "aggregate.json": "aggregate",
        "tune": "tune",
    },
    optional=(),
    sections=("training.html", "asking.html", "stages.html"),
    purposes=(("topk", "ranking"), ("rating", "rating")),
    training_title="Training the LLM",
    abbreviations=" (AE: absolute error)",
)
