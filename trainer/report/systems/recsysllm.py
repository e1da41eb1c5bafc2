"""RecSysLLM (Chu et al. 2023): one table for all task families of the same metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recloom.trainer.report.system_view import SystemView
from recloom.trainer.significance import LEVEL

TRAINED = {
    "recsysllm": "RecSysLLM",
    "token_masks": "token masking",
    "permuted": "permuted spans",
    "one_d": "1D positions",
    "sequential_only": "sequential task only",
}
TRAININGS = {
    "RecSysLLM": "blank infilling with entities masked whole, spans in the order of time, 2D positions",
    "token masking": "the same with entities forgotten: spans and inner positions as in GLM",
    "permuted spans": "the same with the masked spans in random order, as in GLM",
    "1D positions": "the same with positions that run on: no inner position",
    "sequential task only": "the same trained on the sequential family alone",
}
SUFFIXES = {
    "": "",
    " *": ", asked by the prompt that no training saw",
    ", free": ", without the trie: one greedy answer",
    " *, free": ", by the unseen prompt and without the trie",
}
METHODS = {"Base": "a conventional recommender on the same rows"} | {
    name + suffix: meaning + addition
    for name, meaning in TRAININGS.items()
    for suffix, addition in SUFFIXES.items()
}
BACKBONES = {
    "bert4rec": "BERT4Rec",
    "cl4srec": "CL4SRec",
    "deepfm": "DeepFM",
    "gru4rec": "GRU4Rec",
    "lightgcn": "LightGCN",
    "mf": "MF",
    "nfm": "NFM",
    "sasrec": "SASRec",
}


def variant(config: Mapping[str, Any]) -> str:
    """What the masks of a config change for all its methods."""
    mask = config.get("mask", {})
    labels = [
        "token masking" if mask.get("units") == "token" else "",
        "permuted spans" if mask.get("order") == "permuted" else "",
        "1D positions" if mask.get("positions") == "1d" else "",
    ]
    return ", ".join(label for label in labels if label)


VIEW = SystemView(
    title="RecSysLLM",
    lead="A language model ({model}) learned to fill blanks in texts that were written from tables: users, "
    "what they took, ratings and reviews. Items are whole units there, masked and numbered as such. Does it "
    "then recommend, rate, explain and summarise? Measured on interactions that no model saw in training.",
    measures="Sequential: a beam search over the titles of the whole catalogue; direct: over the candidates' "
    "titles. H@k is the share of users whose test item is among the first k, N@k (NDCG) counts a hit for "
    "more the higher it stands. RMSE and MAE are errors of predicted ratings, in stars. BLEU and ROUGE "
    "compare generated texts with the user's own, in percent.",
    methods=METHODS,
    ours=("RecSysLLM", "RecSysLLM *"),
    rivals=("Base",),
    beside=(),
    note="Here, mean ± standard deviation over seeds (paper; - where no figure is at hand). A method with * "
    "is asked by a prompt that no training saw; a number with * is better than the recommender's, paired "
    f"t-test over users, p <= {LEVEL:g}.",
    needed={"results.jsonl": "evaluate", "per_user.parquet": "evaluate", "tune": "pretrain"},
    optional=(),
    sections=("training.html", "stages.html"),
    purposes=(("topk", "ranking"), ("rating", "rating, texts")),
    training_title="Blank infilling",
    training_note="Mean loss of the tokens in blanks. The validation loss is of answers alone, asked about "
    "rows that were not trained on.",
    headline="ROUGE-L",
    backbones=BACKBONES,
    model_names=TRAINED,
    variant=variant,
)
