"""What is asked, in which forms, and what becomes of it: methods, rating tokens, pointwise ranking."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Literal, Sample
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import build_config
from recloom.trainer.requests import Answer, Request
from recloom.trainer.systems.llama4rec.aggregate import best_form
from recloom.trainer.systems.llama4rec.answers import pointwise_answers
from recloom.trainer.systems.llama4rec.methods import Asking, askings, distinct, methods
from recloom.trainer.systems.llama4rec.questions import CandidateLists
from recloom.trainer.systems.llama4rec.rating_tokens import expected_rating, label_tree, rating_requests

sys.path.insert(0, str(Path(__file__).parents[2] / "launcher"))
from small_recipe import small_config

PLAIN, FULL = Asking("base", "plain"), Asking("augmented", "augmented")


def config(**changes: Any) -> RunConfig:
    raw = small_config(Path("x"), Path("x/y"))
    for dotted, value in changes.items():
        block, name = dotted.split("__")
        raw[block][name] = value
    return build_config(raw, "test")


def test_without_ablation_and_choice_ift_is_asked_at_test_only() -> None:
    asked = askings(config(evaluate__ablation=False, rank__ranking="listwise"))
    assert asked == {PLAIN: ("test",), FULL: ("valid", "test")}


def test_the_ablation_asks_each_pair_of_backbone_and_prompts_once() -> None:
    asked = askings(config())
    pairs = {(a.backbone, a.prompts) for a in asked}
    assert pairs == {(b, p) for b in ("base", "augmented") for p in ("plain", "augmented")}
    assert all(parts == ("valid", "test") for parts in asked.values()), "the form is chosen on validation"
    assert [m.name for m in methods(config())] == ["IFT", "w/o DA", "w/o PA", "w/o AA", "Llama4Rec"]


def test_a_plain_rating_prompt_is_asked_once_for_all_backbones() -> None:
    pairs = [(asking, "test") for asking in askings(config())]
    assert len(distinct(pairs, "direct")) == 4 and len(distinct(pairs, "rating")) == 3


@pytest.fixture(scope="module")
def renderer(smollm2: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(smollm2))


def likelihoods(requests: list[Request], truth: dict[tuple[int, ...], float], prompt: int) -> list[Answer]:
    """Answers of a model that gives each label's token sequence the probability in `truth`."""
    answers = []
    for request in requests:
        given = request.prompt_ids[prompt:]
        mass = [
            sum(p for tokens, p in truth.items() if tokens[: len(given) + 1] == (*given, token))
            for token in request.score_ids
        ]
        scores = tuple(math.log(max(m, 1e-30)) for m in mass)
        answers.append(Answer("k", "", (), 0.0, scores, "length", None, request.meta))
    return answers


@pytest.mark.parametrize("high", [5, 10])
def test_the_expectation_over_labels_is_exact_also_where_one_takes_two_tokens(
    renderer: Renderer, high: int
) -> None:
    labels = [float(value) for value in range(1, high + 1)]
    rng = np.random.default_rng(high)
    probability = rng.dirichlet(np.ones(high))
    truth = {
        (*renderer.answer_ids(f"{label:g}"), renderer.eos_id): p
        for label, p in zip(labels, probability, strict=True)
    }
    sample = Sample("k", (Literal("Rating of X\nOutput:\n"),), (), {"items": [3], "task": "rating"})
    requests = rating_requests(renderer, sample, label_tree(renderer, labels), user=1)
    assert len(requests) == (2 if high == 10 else 1), "SmolLM2 writes 10 as two tokens"
    assert all(request.meta["item"] == 3 and request.max_tokens == 1 for request in requests)
    answers = likelihoods(requests, truth, len(requests[0].prompt_ids))
    assert expected_rating(answers) == pytest.approx(float(probability @ labels))


def test_a_label_of_three_tokens_is_refused(renderer: Renderer) -> None:
    with pytest.raises(UserError, match="writes the rating 100 as 3 tokens"):
        label_tree(renderer, [99.0, 100.0])


def rated(user: int, item: int, text: str) -> Answer:
    return Answer("k", text, (), 0.0, (), "stop", None, {"user": user, "item": item})


def test_pointwise_order_is_by_rating_then_the_backbones() -> None:
    lists = CandidateLists(
        np.array([4, 9]), np.array([2, 0]), np.array([1.0, 2.0]), np.array([[7, 2, 5], [1, 0, -1]])
    )
    answers = [rated(4, 7, "3"), rated(4, 2, "5"), rated(4, 5, "3"), rated(9, 1, "no"), rated(9, 0, "1")]
    ranked = pointwise_answers(answers, lists, (1, 5))
    assert ranked.orders == [[2, 7, 5], [0, 1]] and ranked.candidates == [[7, 2, 5], [1, 0]]
    assert (ranked.num_asked, ranked.num_bad) == (2, 1), "an unreadable rating comes last and is counted"
    alone = pointwise_answers(answers[:3], lists, (1, 5))
    assert alone.orders[1] == [1, 0], "who was not asked keeps the backbone's order"


def test_the_better_form_on_validation_wins_and_listwise_a_tie() -> None:
    assert best_form({"listwise": {None: 0.2}, "pointwise": {None: 0.3}}) == ("pointwise", None, 0.3)
    cells = {(0.1, 0.5): 0.4, (0.3, 0.5): 0.6}
    assert best_form({"listwise": cells, "pointwise": cells}) == ("listwise", (0.3, 0.5), 0.6)
