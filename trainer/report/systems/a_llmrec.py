"""A-LLMRec (Kim et al. 2024): one table a scenario, the backbone beside every way to ask the LLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recloom.data_shards.scenarios import FEW_SHOT, FULL, GROUP_PERCENT
from recloom.trainer.report.system_view import SystemView
from recloom.trainer.significance import LEVEL

METHODS = {
    "Base": "the conventional recommender (the backbone) alone",
    "LLM-only": "the LLM as it is, asked with titles alone",
    "TALLRec": "the LLM tuned by low-rank adaptation, asked with titles alone",
    "MLP-LLM": "the backbone's vectors of users and items, projected into the frozen LLM's token space "
    "without stage 1",
    "A-LLMRec": "joint embeddings of collaborative and textual knowledge (stage 1), projected into the "
    "frozen LLM's token space (stage 2)",
    "A-LLMRec (SBERT)": "the same, with every item's embedding made from its text alone",
}
SCENARIOS = {
    "overall": "Overall",
    "warm": f"Warm items (the {GROUP_PERCENT} % with the most training interactions)",
    "cold": f"Cold items (the {GROUP_PERCENT} % with the fewest training interactions)",
    "cold_users": "Cold users (three interactions, none learned from)",
    "cross_domain": "Another domain (models trained on another data set)",
}


def scenario_text(scenario: str) -> str:
    """A name of data_shards/scenarios.py in words."""
    bare = scenario.removesuffix(FULL)
    few_shot = FEW_SHOT.fullmatch(bare)
    text = f"Few-shot ({few_shot[1]} training users)" if few_shot else SCENARIOS.get(bare, bare)
    return text if bare == scenario else f"{text}, full catalogue"


def variant(config: Mapping[str, Any]) -> str:
    """The ablations of Tables 6 to 8 that a config switches on, as the paper's file names them; "" for none.

    Those without a row in the paper have labels too: such a run is no run of the whole system.
    """
    align, project = config.get("align", {}), config.get("project", {})
    recon = [name for name in ("item", "text") if align.get(f"{name}_recon") is False]
    everywhere = [block for block in ("align", "project") if config.get(block, {}).get("targets") == "all"]
    vectors = {"none": "w/o joint embedding", "random": "with random joint embedding"}
    labels = [
        "w/o matching" if align.get("matching") is False else "",
        f"w/o {' & '.join(f'{name}-recon' for name in recon)}" if recon else "",
        "w/o rec" if align.get("rec") is False else "",
        "freeze SBERT" if align.get("train_text_encoder") is False else "",
        "w/o user representation" if project.get("user_vector") is False else "",
        vectors.get(project.get("item_vectors", ""), ""),
        {0: "", 1: f"all items in {' '.join(everywhere)}", 2: "all items"}[len(everywhere)],
    ]
    return ", ".join(label for label in labels if label)


VIEW = SystemView(
    title="A-LLMRec",
    lead="A language model ({model}) that stays as it is reads vectors of a conventional recommender and of "
    "item texts among its words, and picks the user's next item out of a few candidates. Does it pick better "
    "than the recommender alone, for items that many know and for items that few know? Measured on "
    "interactions that no model saw in training.",
    measures="The candidates of a user are ranked by the log-probability that the LLM gives their titles, or "
    "by the backbone's scores. H@k is the share of users whose test item is among the first k; N@k (NDCG) "
    "counts a hit for more the higher it stands. With few candidates both are far above what the full "
    "catalogue gives.",
    methods=METHODS,
    ours=("A-LLMRec", "MLP-LLM", "TALLRec", "LLM-only"),
    rivals=("Base", "LLM-only", "TALLRec", "MLP-LLM"),
    beside=(),
    note="Here, mean ± standard deviation over seeds (paper; H@1 is its Hit@1). * better than the best of "
    f"Base, LLM-only, TALLRec and MLP-LLM in the table, paired t-test over users, p <= {LEVEL:g}. Times are "
    "of different machines, and the paper prints those of a batch, not of a question: only ratios between "
    "methods compare.",
    needed={"results.jsonl": "evaluate", "per_user.parquet": "evaluate", "times.json": "evaluate"},
    optional=("tune", "align/metrics.jsonl", "genres.jsonl"),
    sections=("alignment.html", "training.html", "costs.html", "genres.html", "stages.html"),
    purposes=(("topk", "ranking"),),
    training_title="Stage 2 and tuned baselines",
    headline="H@1",
    metric_notes={
        "greedy H@1": "the title that greedy decoding writes, held to the candidates', is the test item's"
    },
    scenario_text=scenario_text,
    backbones={
        "bert4rec": "BERT4Rec",
        "gru4rec": "GRU4Rec",
        "morec": "MoRec",
        "ncf": "NCF",
        "nextitnet": "NextItNet",
        "sasrec": "SASRec",
    },
    model_names={
        "llm_only": "LLM-only",
        "tallrec": "TALLRec",
        "mlp_llm": "MLP-LLM",
        "a_llmrec": "A-LLMRec",
        "a_llmrec_sbert": "A-LLMRec (SBERT)",
    },
    variant=variant,
)
