"""Metrics of generated explanations and review summaries, and of ratings that are written as text.

Shapes: N answers, each with one reference. Scores are in percent. An empty answer scores 0.

BLEU is the corpus BLEU of P5 (Geng et al. 2022) and RecSysLLM (arXiv 2308.10837), computed by sacrebleu:
words are what white space separates, case counts, nothing is smoothed. ROUGE is the mean F1 over the answers,
computed by rouge-score on the same words, without its stemmer: P5's public code stems nothing.

That code (jeykigung/P5, notebooks/evaluate/rouge.py) has a ROUGE of its own, and the papers' figures most
likely come from it. It differs in two ways, which `p5_rouge` follows for tables beside those figures: ROUGE-1
and ROUGE-2 count each distinct n-gram once, and ROUGE-L weighs precision and recall by beta = precision /
recall, which gives less than F1 unless both are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ORDERS = (1, 2, 3, 4)
ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


class Words:
    """The words of a text for rouge-score: what white space separates, case and punctuation kept."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def check_pairs(answers: Sequence[str], references: Sequence[str]) -> None:
    """Raises ValueError for no answers, or not one reference for each."""
    if not answers or len(answers) != len(references):
        raise ValueError(
            f"text metrics need one reference an answer, at least one: {len(answers)} answers, "
            f"{len(references)} references."
        )


def bleu(answers: Sequence[str], references: Sequence[str], order: int = 4) -> float:
    """Corpus BLEU with n-grams up to `order`, in percent: 0 where one length of n-grams has no match at all.

    Raises ValueError for no answers, or not one reference for each.
    """
    from sacrebleu.metrics import BLEU

    check_pairs(answers, references)
    scorer = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
    return float(scorer.corpus_score(list(answers), [list(references)]).score)


def sentence_bleu(answers: Sequence[str], references: Sequence[str], order: int = 4) -> np.ndarray:
    """BLEU of each answer by itself, in percent, float64 (N,), for tables by user.

    Short texts rarely share four words in a row, so here sacrebleu's smoothing is on, and an answer that is
    shorter than `order` is judged by the n-grams it has. The mean of these is not the corpus BLEU.
    """
    from sacrebleu.metrics import BLEU

    check_pairs(answers, references)
    scorer = BLEU(tokenize="none", max_ngram_order=order, effective_order=True)
    pairs = zip(answers, references, strict=True)
    return np.array([scorer.sentence_score(answer, [reference]).score for answer, reference in pairs])


def rouge_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (sentence level) of each answer, in percent, float64 (N,)."""
    return {name: f1(*parts_2N) for name, parts_2N in rouge_parts(answers, references).items()}


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of a corpus: the mean F1 over its answers, in percent."""
    return {name: float(np.mean(scores_N)) for name, scores_N in rouge_scores(answers, references).items()}


def rouge_parts(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Precision and recall of each answer by rouge-score, float64 (2, N) from 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    check_pairs(answers, references)
    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=False, tokenizer=Words())
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {
        name: np.array([[one[key].precision for one in scores], [one[key].recall for one in scores]])
        for name, key in ROUGE.items()
    }


def f1(precision_N: np.ndarray, recall_N: np.ndarray) -> np.ndarray:
    """Harmonic mean in percent, 0 where both are 0."""
    return 200 * precision_N * recall_N / np.maximum(precision_N + recall_N, np.finfo(float).tiny)


def p5_rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE as P5's evaluation script computes it, in percent; see the head of this file."""
    precision_N, recall_N = rouge_parts(answers, references)["ROUGE-L"]
    weight_N = precision_N**3 + recall_N**3
    product_N = precision_N * recall_N * (precision_N**2 + recall_N**2)
    long_N = 100 * product_N / np.maximum(weight_N, np.finfo(float).tiny)
    pairs = list(zip(answers, references, strict=True))
    distinct = {
        f"ROUGE-{order}": float(np.mean([distinct_f1(*pair, order) for pair in pairs])) for order in (1, 2)
    }
    return {**distinct, "ROUGE-L": float(np.mean(long_N))}


def distinct_f1(answer: str, reference: str, order: int) -> float:
    """F1 over the sets of n-grams, in percent."""
    found, wanted = (distinct_ngrams(text.split(), order) for text in (answer, reference))
    return 200 * len(found & wanted) / max(len(found) + len(wanted), 1)


def distinct_ngrams(words: list[str], order: int) -> set[tuple[str, ...]]:
    return {tuple(words[k : k + order]) for k in range(len(words) - order + 1)}


def corpus_metrics(
    answers: Sequence[str], references: Sequence[str], orders: Iterable[int] = ORDERS
) -> dict[str, float]:
    """BLEU-1 to BLEU-4 and ROUGE-1, -2, -L of a corpus, in percent, by name."""
    scores = {f"BLEU-{order}": bleu(answers, references, order) for order in orders}
    return {**scores, **rouge(answers, references)}


def answer_metrics(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """One value an answer, float64 (N,) in percent: sentence BLEU-4 and ROUGE-L."""
    scores_N = rouge_scores(answers, references)["ROUGE-L"]
    return {"BLEU-4": sentence_bleu(answers, references), "ROUGE-L": scores_N}


@dataclass(frozen=True)
class WrittenRatings:
    """`rating_N` float64, for `metrics.rmse` and `metrics.mae`; `unreadable_N` bool: it was no number."""

    rating_N: np.ndarray
    unreadable_N: np.ndarray

    @property
    def num_unreadable(self) -> int:
        return int(self.unreadable_N.sum())


def written_ratings(answers: Sequence[str], scale: tuple[float, float], mean: float) -> WrittenRatings:
    """Ratings that were generated as text.

    scale: the lowest and the highest rating; numbers beyond are clipped, as P5 does. An answer counts as a
    number when nothing else stands on its first line; any other takes `mean`, the mean rating of the training
    rows. (P5 leaves such answers out, so that a model which says nothing about hard cases looks better.)
    Raises ValueError for a mean off the scale.
    """
    if not scale[0] <= mean <= scale[1]:
        raise ValueError(f"the mean rating {mean} lies off the scale {scale[0]} to {scale[1]}.")
    lines = [answer.strip().partition("\n")[0].strip() for answer in answers]
    unreadable_N = np.array([NUMBER.fullmatch(line) is None for line in lines], dtype=bool)
    values = [mean if bad else float(line) for line, bad in zip(lines, unreadable_N, strict=True)]
    return WrittenRatings(np.clip(np.array(values, dtype=np.float64), *scale), unreadable_N)
