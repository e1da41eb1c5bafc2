"""RecSysLLM for the plan: how many texts each family writes, how long they get, what is trained.

An estimate in SmolLM2's tokens (a sixth more with LLaMA-2's), counted on MovieLens, Amazon's Beauty and
Musical Instruments of 2014: a title has about 11 in MovieLens, 22 in Beauty, 9 where an item's key stands for
it, 1.75 a word where it is cut; half of the templates show ratings. Users with long histories have more rows,
so that a usual row shows about what a usual user has taken in all, though training asks for every row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa

from recloom.data_shards.tables import Tables
from recloom.trainer.planning.low_rank import lora_parts
from recloom.trainer.planning.memory import SmallParts
from recloom.trainer.planning.outline import Asking, Outline, Training
from recloom.trainer.planning.shapes import ModelSize
from recloom.trainer.planning.tokens import Corpus, make_corpus
from recloom.trainer.planning.users import HELD_OUT, DataSize, data_name, data_size
from recloom.trainer.systems.recsysllm.corpus import families_of
from recloom.trainer.systems.recsysllm.families import WORK
from recloom.trainer.systems.recsysllm.methods import Method, asked_methods
from recloom.trainer.systems.recsysllm.network import MARKS
from recloom.trainer.systems.recsysllm.settings import FamilyName, RecSysLLMConfig

MOVIELENS_TITLE, TITLE, KEY, WORD = 11, 22, 9, 1.75
LINE = 2  # a line's end, and half of a rating
INSTRUCTION, FEATURES, DETAILS = 30, 25, 40  # the words around; attributes of a user; of an item, where shown
NUMBER, SENTENCE, REVIEW, REVIEW_WORD = 3, 8, 120, 1.3  # a rating, a summary, a review; a word of a long one
UNIT = 2  # tokens of a unit, an entity or a plain token
LONGEST, LONGEST_WHOLE = 1.25, 1.5  # the longest text over a full one; some shops' titles are very long


def outline(config: RecSysLLMConfig, model: ModelSize | None) -> Outline:
    """Raises UserError for a family that the data can't feed, and for `lora.modules` that are no layers."""
    families, data = planned_families(config), data_size(config)
    longest = longest_text(config, families)
    return Outline(
        templates=tuple((config.corpus.templates, WORK[family].family) for family in families),
        named_templates=1,
        trainings=(make_training(config, families, data, model),),
        untrained=None,
        asking=make_asking(config, longest),
        lines=(*data_lines(config, families, data), *table_lines(config, model)),
        shortened_by="corpus.history_items, corpus.negatives or corpus.title_words",
    )


def planned_families(config: RecSysLLMConfig) -> tuple[FamilyName, ...]:
    """Those of the run, by the columns that the source will give."""
    nothing = pa.table({})
    rows = pa.table({name: pa.array([], pa.string()) for name in columns_of(config)})
    return families_of(config, Tables(data_name(config) or config.data.source, rows, nothing, nothing))


def columns_of(config: RecSysLLMConfig) -> list[str]:
    """Of ratings, reviews and summaries those that the data have."""
    data, texts = config.data, ["review", "summary"]
    if data.source == "table":
        mapped = data.interactions.columns
        return [name for name in ("rating", *texts) if getattr(mapped, name) is not None]
    has_texts = data.source.startswith("amazon") and data.texts
    return ["rating", *(texts if has_texts else [])]


def make_training(
    config: RecSysLLMConfig, families: Sequence[FamilyName], data: DataSize, model: ModelSize | None
) -> Training:
    corpora = tuple(make_texts(config, method, families, data) for method in asked_methods(config))
    small = None if config.pretrain.lora is None or model is None else trained_parts(config, model)
    grown = max(growth(config, method, families, data) for method in asked_methods(config))
    rows = math.ceil(config.pretrain.pack_length * grown)
    return Training("pretrain", config.pretrain.model_copy(update={"pack_length": rows}), corpora, small)


def make_texts(
    config: RecSysLLMConfig, method: Method, families: Sequence[FamilyName], data: DataSize
) -> Corpus:
    """The families of a method under its masks.

    The answers' share is that of the fullest row, whose texts are blanks as a whole; of all tokens a fifth
    are in part B's targets, so that the head's work (a twentieth of all) is told too high.
    """
    learned = method.of(tuple(families))
    grown = growth(config, method, families, data)
    full = [math.ceil(grown * tokens) for family in learned for tokens in usual_texts(config, family, data)]
    counts = sum(num_samples(config, family, data) for family in learned)
    share = config.mask.document_max * sum(full) / len(full)
    longest = longest_text(config, learned) / max(full)
    return make_corpus(method.key, counts, full, share, config.pretrain, longest)


def num_samples(config: RecSysLLMConfig, family: FamilyName, data: DataSize) -> int:
    """Training rows, or the sample of them; what comes next can't be asked of a user's first row."""
    held_out = HELD_OUT if family == "sequential" else HELD_OUT - 1
    rows = max(1, round(data.users * (data.length - held_out)))
    return min(rows, config.corpus.samples or rows)


def growth(config: RecSysLLMConfig, method: Method, families: Sequence[FamilyName], data: DataSize) -> float:
    """Masked texts over texts: two tokens a span, of which only the entity level makes many."""
    mask, mixed = method.settings(config), 1 - config.pretrain.answer_share
    unit = UNIT if mask.units == "entity" else 1
    spans = mixed * mask.mixture[0] * mask.entity_share / (mask.mean_span * unit)
    texts = [tokens for family in method.of(tuple(families)) for tokens in usual_texts(config, family, data)]
    return 1 + 2 * (spans + len(texts) / sum(texts))


def usual_texts(config: RecSysLLMConfig, family: FamilyName, data: DataSize) -> list[int]:
    """Tokens of usual texts with their answers, one for each half of a family's templates."""
    shown = min(max(data.length - HELD_OUT, 1.0), config.corpus.history_items)
    words = INSTRUCTION + FEATURES * has_features(config)
    whole = words + round(shown * (title_tokens(config) + LINE)) + title_tokens(config)
    if family == "direct":
        return [whole + candidate_tokens(config), whole]
    if family == "review":
        review = min(REVIEW, round(REVIEW_WORD * config.corpus.review_words))
        return [INSTRUCTION + review + SENTENCE] * 2
    return [whole + (SENTENCE if family == "explanation" else NUMBER)] * 2


def longest_text(config: RecSysLLMConfig, families: Sequence[FamilyName]) -> int:
    """With a full history and all that a family shows beside it."""
    corpus = config.corpus
    is_even = corpus.title_words is not None or whole_title(config) != TITLE
    titles = (corpus.history_items + 1) * (title_tokens(config) + LINE)
    beside = {"direct": candidate_tokens(config), "review": round(REVIEW_WORD * corpus.review_words)}
    most = max(beside.get(family, SENTENCE) for family in families)
    return int((LONGEST if is_even else LONGEST_WHOLE) * (INSTRUCTION + FEATURES + DETAILS + titles + most))


def has_features(config: RecSysLLMConfig) -> bool:
    """Whether users have attributes."""
    if config.data.source == "table":
        return config.data.users is not None and bool(config.data.users.attributes)
    return not config.data.source.startswith("amazon")


def title_tokens(config: RecSysLLMConfig) -> int:
    words = config.corpus.title_words
    return whole_title(config) if words is None else min(whole_title(config), round(WORD * words))


def whole_title(config: RecSysLLMConfig) -> int:
    data = config.data
    if data.source.startswith("amazon") and data.reviews is not None and data.meta is None:
        return KEY
    return MOVIELENS_TITLE if data.source == "movielens" else TITLE


def candidate_tokens(config: RecSysLLMConfig) -> int:
    return (config.corpus.negatives + 1) * (title_tokens(config) + 1)


def trained_parts(config: RecSysLLMConfig, model: ModelSize) -> SmallParts:
    """The low-rank updates and the tables."""
    lora = config.pretrain.lora
    assert lora is not None
    updates = lora_parts(lora, model, "pretrain.lora")
    largest = max(updates.largest, num_positions(config) * model.hidden)
    return SmallParts(updates.parameters + table_parameters(config, model), largest, updates.layer_elements)


def num_positions(config: RecSysLLMConfig) -> int:
    """Rows of the table of intra ids."""
    return config.pretrain.context + 2


def table_parameters(config: RecSysLLMConfig, model: ModelSize) -> int:
    return (len(MARKS) + num_positions(config)) * model.hidden


def make_asking(config: RecSysLLMConfig, longest: int) -> Asking:
    """Each beam of a search has a cache of its own, prompt and all."""
    rows = config.ask.batch * config.ask.beams
    return Asking(
        "hf", longest, "the stages generate_*", logits=rows, cached=rows * longest, lessened_by="ask.batch"
    )


def data_lines(
    config: RecSysLLMConfig, families: Sequence[FamilyName], data: DataSize
) -> list[tuple[str, str]]:
    """Samples and tokens of the corpus, by family."""
    counts = {family: num_samples(config, family, data) for family in families}
    lengths = {family: usual_texts(config, family, data) for family in families}
    told = ", ".join(f"{family} {count:,}" for family, count in counts.items())
    limit = "corpus.samples" if config.corpus.samples in counts.values() else data.origin
    words = ", ".join(f"{family} {sum(texts) / 2:,.0f}" for family, texts in lengths.items())
    added = growth(config, asked_methods(config)[0], families, data) - 1
    return [
        ("samples", f"{told}: {limit}"),
        ("tokens", f"of a text {words}; masks add {added:.1%}"),
    ]


def table_lines(config: RecSysLLMConfig, model: ModelSize | None) -> list[tuple[str, str]]:
    """Where all weights are trained these are too few to count."""
    if model is None or config.pretrain.lora is not None:
        return []
    count = table_parameters(config, model)
    return [("tables", f"{count:,} parameters of marks and intra ids beside the LLM's, not counted below")]
