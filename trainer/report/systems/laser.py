"""Laser (Zhang et al. 2024): the frozen recommender beside the LLM's vectors, over the whole catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recloom.data_shards.scenarios import GROUP_PERCENT
from recloom.trainer.report.system_view import SystemView
from recloom.trainer.significance import LEVEL

BACKBONES = {
    "bert4rec": "BERT4Rec",
    "cl4srec": "CL4SRec",
    "gru4rec": "GRU4Rec",
    "lightgcn": "LightGCN",
    "mf": "MF",
    "mixgcf": "MixGCF",
    "morec": "MoRec",
    "ncf": "NCF",
    "nextitnet": "NextItNet",
    "sasrec": "SASRec",
    "sgl": "SGL",
    "vectors": "Given vectors",
}
METHODS = {
    "Base": "the conventional recommender (the backbone) alone",
    **dict.fromkeys(BACKBONES, "another conventional recommender, at its defaults"),
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
TRAINED = {
    "laser": "Laser",
    "no_moe": "w/o MoE",
    "no_mformer": "w/o M-Former",
    "no_prefix": "w/o prefix",
    "no_stage_1": "w/o stage 1",
    "average": "average pooling",
    "hard_eos": "hard [EOS]",
}
SCENARIOS = {
    "overall": "Overall",
    "warm": f"Warm items (the {GROUP_PERCENT} % with the most training interactions)",
    "cold": f"Cold items (the {GROUP_PERCENT} % with the fewest training interactions)",
}
UNIFIED = "browsing"
TEMPLATES = {"browsing_no_phrase": "w/o phrase", "browsing_bare": "w/o instruction"}
PAPER_SIZE, PAPER_TOKENS = (12, 768), (8, 32)  # blocks and width of M-Former; K and L


def variant(config: Mapping[str, Any]) -> str:
    """The rows of Tables 6 and 7 and of Figure 3 that a config is, as the paper's file names them."""
    labels = [*template_labels(config.get("texts", {})), size_label(config), *start_labels(config)]
    return ", ".join(label for label in labels if label)


def template_labels(texts: Mapping[str, Any]) -> list[str]:
    """Table 6: other words around the items, or others for single items."""
    name = Path(texts.get("template") or UNIFIED).stem
    of_items = Path(texts.get("item_template") or name).stem
    label = "" if name == UNIFIED else TEMPLATES.get(name, f"template {name}")
    if of_items == name:
        return [label]
    return [label, "own item instruction" if of_items == "browsing_item" else f"item template {of_items}"]


def size_label(config: Mapping[str, Any]) -> str:
    """Table 7: K and L of an M-Former as large as the paper's; a smaller one goes with a smaller LLM."""
    size = config.get("bitune", {}).get("mformer", {})
    blocks, hidden = size.get("blocks", PAPER_SIZE[0]), size.get("hidden", PAPER_SIZE[1])
    experts, tokens = size.get("experts", PAPER_TOKENS[0]), size.get("tokens", PAPER_TOKENS[1])
    if (blocks, hidden) != PAPER_SIZE or (experts, tokens) == PAPER_TOKENS:
        return ""
    return f"K = {experts}, L = {tokens}"


def start_labels(config: Mapping[str, Any]) -> list[str]:
    """Figure 3: weights of another run, and few users or none."""
    untrained = all(config.get(stage, {}).get("epochs", 1) == 0 for stage in ("stage_1", "stage_2"))
    if untrained:
        return ["zero-shot"]
    share = config.get("learn", {}).get("share", 1)
    started = config.get("bitune", {}).get("start_from") is not None
    few = f"{100 * share:g} % of the users" if share < 1 else ""
    return [few, "started from another run" if started else ""]


VIEW = SystemView(
    title="Laser",
    lead="A language model ({model}) that stays as it is reads what a user has browsed, between a few "
    "trained virtual tokens, and gives one vector a user and one an item. Are the items that come next "
    "nearer than a conventional recommender puts them? Measured on interactions that no model saw in "
    "training.",
    measures="All items of the catalogue are ranked by the cosine of their vector and the user's, or by the "
    "recommender's scores. H@k (the paper's Recall@k) is the share of users whose test item is among the "
    "first k; N@k (NDCG) counts a hit for more the higher it stands; MRR is the mean of 1 / rank.",
    methods=METHODS,
    ours=("Laser",),
    rivals=("Base", *BACKBONES, "w/o M-Former"),
    beside=(),
    note="Here, mean ± standard deviation over seeds (paper; H@10 is its Recall@10; - where its text at hand "
    "has no figure). * better than the best of the recommenders without an LLM and of text only, paired "
    f"t-test over users, p <= {LEVEL:g}. The paper's Table 7 is of validation: here it is that of the first "
    "seed's last stage.",
    needed={"results.jsonl": "evaluate", "per_user.parquet": "evaluate", "parameters.json": "evaluate"},
    optional=("tune",),
    sections=("bituning.html", "stages.html"),
    purposes=(("topk", "ranking"),),
    training_title="Bi-Tuning",
    headline="N@10",
    scenario_text=lambda scenario: SCENARIOS.get(scenario, scenario),
    backbones=BACKBONES,
    model_names=TRAINED
    | {f"{key}_{stage}": f"{name}, stage {stage}" for key, name in TRAINED.items() for stage in (1, 2)},
    variant=variant,
    variant_lead="A variant of the system",
)
