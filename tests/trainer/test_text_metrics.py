"""Text metrics against values by hand and against n-gram counts of its own."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloom.trainer import text_metrics
from recloom.trainer.metrics import mae, rmse

TEXTS = st.lists(st.sampled_from(["a", "b", "c", ".", "A", "é"]), max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8)


def ngrams(text: str, order: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[k : k + order]) for k in range(len(words) - order + 1))


def bleu_by_counting(answers: list[str], references: list[str], order: int) -> float:
    """Papineni et al. 2002: geometric mean of clipped precisions, brevity penalty, over the whole corpus."""
    logs = 0.0
    for n in range(1, order + 1):
        counts = [(ngrams(a, n), ngrams(r, n)) for a, r in zip(answers, references, strict=True)]
        matches = sum((found & wanted).total() for found, wanted in counts)
        if matches == 0:
            return 0.0
        logs += math.log(matches / sum(found.total() for found, _ in counts)) / order
    length, wanted_length = (sum(len(text.split()) for text in texts) for texts in (answers, references))
    return 100 * math.exp(logs + min(0.0, 1 - wanted_length / length))


def common_length(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence."""
    if not left or not right:
        return 0
    if left[-1] == right[-1]:
        return 1 + common_length(left[:-1], right[:-1])
    return max(common_length(left[:-1], right), common_length(left, right[:-1]))


def f1(common: float, num_found: int, num_wanted: int) -> float:
    return 200 * common / (num_found + num_wanted) if num_found + num_wanted else 0.0


def test_bleu_by_hand() -> None:
    """Answer 6 words, 5 in the reference; bigrams 3 of 5, trigrams 1 of 4, no four in a row."""
    answers, references = ["the cat sat on the mat"], ["the cat is on the mat"]
    assert text_metrics.bleu(answers, references, 1) == pytest.approx(100 * 5 / 6)
    assert text_metrics.bleu(answers, references, 2) == pytest.approx(100 * math.sqrt(5 / 6 * 3 / 5))
    assert text_metrics.bleu(answers, references, 3) == pytest.approx(
        100 * (5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3)
    )
    assert text_metrics.bleu(answers, references, 4) == 0


def test_a_short_corpus_is_penalised_as_a_whole() -> None:
    """5 words where 8 are wanted: one text is too short, the other too long."""
    answers, references = ["good", "I like this one"], ["good sound and strong case", "I like this"]
    want = 100 * 4 / 5 * math.exp(1 - 8 / 5)
    assert text_metrics.bleu(answers, references, 1) == pytest.approx(want)


def test_words_are_split_at_white_space_alone() -> None:
    assert text_metrics.bleu(["Good, sound"], ["good sound"], 1) == pytest.approx(50)
    assert text_metrics.rouge(["Good, sound"], ["good sound"])["ROUGE-1"] == pytest.approx(50)
    assert text_metrics.rouge(["running"], ["runs"])["ROUGE-1"] == 0, "no stemmer"
    assert text_metrics.bleu(["a\n b"], ["a b"], 2) == pytest.approx(100)


def test_rouge_by_hand() -> None:
    """Of 4 and 5 words 3 are common and in one order; of 3 and 4 bigrams 1 is."""
    scores = text_metrics.rouge(["police kill the gunman"], ["police killed the gunman now"])
    assert scores["ROUGE-1"] == pytest.approx(200 * 3 / (4 + 5))
    assert scores["ROUGE-2"] == pytest.approx(200 * 1 / (3 + 4))
    assert scores["ROUGE-L"] == pytest.approx(200 * 3 / (4 + 5))


def test_p5_rouge_by_hand() -> None:
    """Precision 1/4 for the repeated word, but one distinct word of one; ROUGE-L with beta = P / R = 1/4."""
    scores = text_metrics.p5_rouge(["good good good good"], ["good"])
    assert scores["ROUGE-1"] == pytest.approx(100) and scores["ROUGE-2"] == 0
    precision, recall, beta = 1 / 4, 1.0, 1 / 4
    want = 100 * (1 + beta**2) * recall * precision / (recall + beta**2 * precision)
    assert scores["ROUGE-L"] == pytest.approx(want)
    assert want < text_metrics.rouge(["good good good good"], ["good"])["ROUGE-L"]


@given(pairs=PAIRS, order=st.integers(1, 4))
def test_equal_to_counting(pairs: list[tuple[str, str]], order: int) -> None:
    answers, references = [a for a, _ in pairs], [r for _, r in pairs]
    got = text_metrics.bleu(answers, references, order)
    assert got == pytest.approx(bleu_by_counting(answers, references, order), abs=1e-9)
    scores = text_metrics.rouge_scores(answers, references)
    for row, (answer, reference) in enumerate(pairs):
        for n in (1, 2):
            found, wanted = ngrams(answer, n), ngrams(reference, n)
            want = f1((found & wanted).total(), found.total(), wanted.total())
            assert scores[f"ROUGE-{n}"][row] == pytest.approx(want)
        words = answer.split(), reference.split()
        assert scores["ROUGE-L"][row] == pytest.approx(f1(common_length(*words), *map(len, words)))


@given(answer=TEXTS.filter(bool), reference=TEXTS.filter(bool))
def test_p5_rouge_is_their_formula(answer: str, reference: str) -> None:
    """As written in P5: sets of n-grams, and F with beta = P / R."""
    got = text_metrics.p5_rouge([answer], [reference])
    for n in (1, 2):
        found, wanted = set(ngrams(answer, n)), set(ngrams(reference, n))
        assert got[f"ROUGE-{n}"] == pytest.approx(f1(len(found & wanted), len(found), len(wanted)))
    words = answer.split(), reference.split()
    precision, recall = (common_length(*words) / len(side) for side in words)
    beta = precision / (recall + 1e-12)
    want = 100 * (1 + beta**2) * recall * precision / (recall + beta**2 * precision + 1e-12)
    assert got["ROUGE-L"] == pytest.approx(want, abs=1e-6)


@given(texts=st.lists(TEXTS.filter(bool), min_size=1, max_size=6), other=TEXTS)
def test_a_perfect_answer_and_bounds(texts: list[str], other: str) -> None:
    assert all(value == pytest.approx(100) for value in text_metrics.sentence_bleu(texts, texts))
    assert text_metrics.rouge(texts, texts)["ROUGE-L"] == pytest.approx(100)
    answers = [other] * len(texts)
    values = [
        *text_metrics.corpus_metrics(answers, texts).values(),
        *text_metrics.p5_rouge(answers, texts).values(),
    ]
    for table_N in text_metrics.answer_metrics(answers, texts).values():
        assert len(table_N) == len(texts)
        values += table_N.tolist()
    assert all(0 <= value <= 100 + 1e-9 for value in values)
    if not other:
        assert set(values) == {0.0}


@pytest.mark.parametrize("reference", ["", "good sound"])
def test_empty_answers_score_zero(reference: str) -> None:
    corpus = text_metrics.corpus_metrics([""], [reference])
    assert set(corpus) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"}
    each = text_metrics.answer_metrics(["", " \n"], [reference] * 2)
    assert {*corpus.values(), *each["BLEU-4"], *each["ROUGE-L"]} == {0.0}
    assert set(text_metrics.p5_rouge([""], [reference]).values()) == {0.0}


def test_an_empty_answer_still_counts() -> None:
    assert text_metrics.rouge(["good sound", ""], ["good sound", "bad"])["ROUGE-1"] == pytest.approx(50)
    assert text_metrics.bleu(["a b", ""], ["a b", "c d"], 1) == pytest.approx(100 * math.exp(1 - 4 / 2))


def test_unpaired_texts_are_refused() -> None:
    for answers, references in (([], []), (["a"], []), (["a"], ["b", "c"])):
        for score in (
            text_metrics.bleu,
            text_metrics.sentence_bleu,
            text_metrics.rouge,
            text_metrics.p5_rouge,
        ):
            with pytest.raises(ValueError, match="one reference an answer"):
                score(answers, references)


def test_written_ratings_by_hand() -> None:
    """Beyond the scale is clipped, what is no number takes the mean and is counted."""
    answers = ["4.0", " 3\nbecause", "9", "0.5", "", "five", "nan", "-1", "4 stars", "1e1"]
    read = text_metrics.written_ratings(answers, scale=(1, 5), mean=3.5)
    np.testing.assert_array_equal(read.rating_N, [4, 3, 5, 1, *[3.5] * 6])
    assert read.num_unreadable == 6 and not read.unreadable_N[:4].any()
    true_N = np.array([4, 4, 5, 1, 3.5, 3.5, 3.5, 3.5, 3.5, 1.5])
    assert rmse(read.rating_N, true_N) == pytest.approx(math.sqrt((1 + 4) / 10))
    assert mae(read.rating_N, true_N) == pytest.approx(3 / 10)
    with pytest.raises(ValueError, match="off the scale"):
        text_metrics.written_ratings(["4"], scale=(1, 5), mean=0)
