"""The questions of stage 2: who and what is asked, the exact words, where vectors stand, what carries loss.

Shapes: N questions, D width of the recommender, B = 1 row of T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from test_a_llmrec_asked import NUM_ITEMS, PLAIN, small_run

from recloom.data_shards.candidates import NO_ITEM, load_candidates
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import sample_text
from recloom.data_shards.shards import ShardReader, verify_shards
from recloom.data_shards.stream import IGNORE, build_row
from recloom.data_shards.textualize import next_item
from recloom.data_shards.textualize.next_item import genres_sample
from recloom.data_shards.textualize.template import load_template, one_line
from recloom.trainer.collaborative import evaluate, sasrec
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import TopKData, pad_histories
from recloom.trainer.collaborative.evaluate import user_vectors
from recloom.trainer.collaborative.registry import save_backbone
from recloom.trainer.config_io import build_config
from recloom.trainer.models import load_tokenizer
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec import genres, prompts
from recloom.trainer.systems.a_llmrec.asked import asked_samples
from recloom.trainer.systems.a_llmrec.genres import answered, greedy_text
from recloom.trainer.systems.a_llmrec.methods import Method
from recloom.trainer.systems.a_llmrec.prepare import Task, load_task
from recloom.trainer.systems.a_llmrec.projection import ProjectedLM, Projection, Widths
from recloom.trainer.systems.a_llmrec.prompts import (
    Question,
    Writer,
    corpora,
    load_cold,
    load_states,
    make_writer,
    run_prompts,
    training_questions,
    validation_questions,
)
from recloom.trainer.systems.a_llmrec.rank import questions_of, title_answers
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

NEGATIVES = 9


def config(**changes: Any) -> ALLMRecConfig:
    made = build_config(PLAIN | {"scenario": {"negatives": NEGATIVES}} | changes, "test")
    assert isinstance(made, ALLMRecConfig)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run[ALLMRecConfig]:
    return small_run(tmp_path_factory.mktemp("run"), scenario={"negatives": NEGATIVES})


@pytest.fixture(scope="module")
def task(run: Run[ALLMRecConfig]) -> Task:
    return load_task(run)


def asked(task: Task, seed: int = 2024, **project: Any) -> list[Question]:
    return list(training_questions(config(seed=seed, project=project), task))


def content(question: Question) -> tuple[Any, ...]:
    return question.user, question.history.tolist(), question.candidates, question.answer


# ---- what is asked


@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("draws", [1, 3])
def test_every_target_is_asked_for(task: Task, targets: str, draws: int) -> None:
    """In the users' order, behind the training items before it and nothing else."""
    want = []
    for user, items in enumerate(task.train_sequences):
        first = 1 if targets == "all" else max(1, len(items) - 1)
        for place in range(first, len(items)):
            want += [(user, items[:place].tolist(), items[place])] * draws
    found = asked(task, targets=targets, draws=draws)
    assert [(q.user, q.history.tolist(), q.answer) for q in found] == want


def test_candidates_are_the_answer_and_items_that_the_user_did_not_train_on(task: Task) -> None:
    sizes, places = set(), []
    for question in asked(task, targets="all", draws=2):
        shown = question.candidates
        own = set(task.train_sequences[question.user].tolist())
        assert question.answer in shown and len(set(shown)) == len(shown)
        assert not (set(shown) - {question.answer}) & own
        assert set(shown) <= set(range(task.tables.num_items))
        sizes.add((len(shown), min(1 + NEGATIVES, 1 + task.tables.num_items - len(own))))
        places.append(shown.index(question.answer))
    assert all(size == want for size, want in sizes) and len(sizes) > 1, "some users leave too few items"
    assert len(set(places)) == 1 + NEGATIVES, "the answer stands anywhere"


def test_each_draw_has_its_own_negatives(task: Task) -> None:
    found = asked(task, draws=2)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert all(one.user == other.user for one, other in pairs)
    same = [set(one.candidates) == set(other.candidates) for one, other in pairs]
    assert sum(same) < len(same) / 2


def test_negatives_come_from_the_whole_rest(task: Task) -> None:
    user = max(range(len(task.train_sequences)), key=lambda user: 0 < len(task.train_sequences[user]) < 10)
    drawn = [q.candidates for q in asked(task, draws=60) if q.user == user]
    answer = int(task.train_sequences[user][-1])
    free = set(range(task.tables.num_items)) - set(task.train_sequences[user].tolist())
    assert set().union(*drawn) == free | {answer}


@pytest.mark.parametrize("count", [1, 4])
def test_training_may_show_fewer_negatives_than_test(task: Task, count: int) -> None:
    found = asked(task, negatives=count)
    for question in found:
        free = task.tables.num_items - len(task.train_sequences[question.user])
        assert len(question.candidates) == 1 + min(count, free) and question.answer in question.candidates


def test_questions_depend_on_the_seed_alone(task: Task) -> None:
    one, again, other = asked(task), asked(task), asked(task, seed=1)
    assert [content(q) for q in one] == [content(q) for q in again]
    assert [q.user for q in one] == [q.user for q in other]
    changed = [a.candidates != b.candidates for a, b in zip(one, other, strict=True)]
    assert sum(changed) > len(changed) * 0.9


def test_a_sample_of_users_asks_them_what_all_are_asked(task: Task) -> None:
    everyone = {q.user: content(q) for q in asked(task)}
    few, more, other = asked(task, users=8), asked(task, users=20), asked(task, seed=1, users=8)
    assert len(few) == 8 and len(more) == 20
    assert {q.user for q in few} < {q.user for q in more} < set(everyone)
    assert [q.user for q in few] == sorted(q.user for q in few)
    assert {q.user for q in few} != {q.user for q in other}
    assert all(content(q) == everyone[q.user] for q in more)
    assert len(asked(task, users=10_000)) == len(everyone)


def test_validation_asks_about_the_stored_candidates(run: Run[ALLMRecConfig], task: Task) -> None:
    stored = load_candidates(run.path("data/candidates_valid.bin"))
    lists = dict(zip(stored.users_N.tolist(), stored.items_NC.tolist(), strict=True))
    rows = task.scenario.splits.topk.valid
    targets = dict(zip(rows.user_N.tolist(), rows.item_N.tolist(), strict=True))
    found = validation_questions(config(project={"validation": 10_000}), task)
    assert [q.user for q in found] == [user for user in targets if len(task.train_sequences[user])]
    for question in found:
        assert question.history.tolist() == task.train_sequences[question.user].tolist()
        assert question.candidates == [item for item in lists[question.user] if item != NO_ITEM]
        assert question.answer == targets[question.user] and question.answer in question.candidates
    few, more = (validation_questions(config(project={"validation": n}), task) for n in (5, 12))
    assert len(few) == 5 and {q.user for q in few} < {q.user for q in more}
    assert validation_questions(config(project={"validation": 0}), task) == []
    other = validation_questions(config(seed=1, project={"validation": 5}), task)
    assert {q.user for q in other} != {q.user for q in few}


def test_test_users_are_asked_behind_their_whole_history(task: Task) -> None:
    chosen = asked_samples(task, config().scenario)
    for n, question in enumerate(questions_of(task, chosen)):
        history = task.histories[question.user]
        assert content(question) == (chosen.rows.user_N[n], history.tolist(), chosen.candidates(n), None)


# ---- how it is asked

TITLES = ["Alien", "Heat  of\nthe night", "Birds, The", "Fargo", "Up", 'The "Thing"']
QUESTION = Question(user=7, history=np.array([4, 5, 0, 1]), candidates=[3, 1, 2], answer=2)
WORDS = {"item_noun": "movie", "verb": "watched", "history_items": 3}


def writer(
    run: Run[ALLMRecConfig], soft: bool = True, prompts: dict[str, Any] | None = None, **project: Any
) -> Writer:
    made = Run(config(prompts=WORDS | (prompts or {}), project=project), run.folder, run.cache)
    return make_writer(made, TITLES, soft)


def test_the_words_of_figure_3(run: Run[ALLMRecConfig]) -> None:
    sample = writer(run).sample(QUESTION, user_row=11)
    assert sample_text(sample.prompt) == (
        "<user 11> is a user representation.\n"
        "This user has watched the following movies:\n"
        '"The "Thing""<history 5>\n"Alien"<history 0>\n"Heat of the night"<history 1>\n'
        "Recommend one movie for this user out of the following set of movie titles:\n"
        '"Fargo"<candidate 3>\n"Heat of the night"<candidate 1>\n"Birds, The"<candidate 2>\n'
        "The recommendation is\n"
    )
    assert sample_text(sample.answer) == '"Birds, The"'
    assert sample.meta == {"task": "next_item", "user": 7, "items": [3, 1, 2], "answer": 2}


FIGURE_5 = (
    "This user has watched the following movies:\n"
    '"The "Thing""\n"Alien"\n"Heat of the night"\n'
    "Recommend one movie for this user out of the following set of movie titles:\n"
    '"Fargo"\n"Heat of the night"\n"Birds, The"\n'
    "The recommendation is\n"
)


def test_the_words_of_figure_5(run: Run[ALLMRecConfig]) -> None:
    text = writer(run, soft=False)
    assert sample_text(text.sample(QUESTION, user_row=11).prompt) == FIGURE_5 and not text.is_soft


def test_rows_of_table_7(run: Run[ALLMRecConfig]) -> None:
    """The user's vector, or the items', left out; noise in the items' place changes no word."""
    whole = sample_text(writer(run).sample(QUESTION, 11).prompt)
    without_user = writer(run, user_vector=False)
    assert sample_text(without_user.sample(QUESTION, 11).prompt) == whole.partition("\n")[2]
    without_items = writer(run, item_vectors="none")
    assert sample_text(without_items.sample(QUESTION, 11).prompt) == (
        "<user 11> is a user representation.\n" + FIGURE_5
    )
    noise = writer(run, item_vectors="random")
    assert sample_text(noise.sample(QUESTION, 11).prompt) == whole
    assert without_user.is_soft and without_items.is_soft and noise.is_soft


def test_titles_are_cut_in_prompt_and_answer(run: Run[ALLMRecConfig]) -> None:
    question = Question(user=7, history=np.array([1]), candidates=[2, 1], answer=1)
    sample = writer(run, soft=False, prompts={"title_words": 2}).sample(question, 0)
    assert '"Heat of"\n' in sample_text(sample.prompt) and "night" not in sample_text(sample.prompt)
    assert '"Birds, The"\n' in sample_text(sample.prompt) and sample_text(sample.answer) == '"Heat of"'


@pytest.fixture(scope="module")
def renderer(tiny_llama: Path) -> Renderer:
    return Renderer(load_tokenizer(str(tiny_llama)))


def test_where_the_vectors_stand(run: Run[ALLMRecConfig], renderer: Renderer) -> None:
    """The user's first of all, an item's directly behind the closing quote of its title."""
    ids, slots = renderer.render_slots(writer(run).sample(QUESTION, user_row=11).prompt)
    assert slots[0] == (len(renderer.prefix_ids), "user", 11)
    assert [(kind, id) for _, kind, id in slots[1:]] == [
        *(("history", item) for item in (5, 0, 1)),
        *(("candidate", item) for item in (3, 1, 2)),
    ]
    titles = [one_line(title) for title in TITLES]
    for position, _, id in slots[1:]:
        assert ids[position] == renderer.pad_id and id is not None
        assert renderer.text(ids[:position]).endswith(f'\n"{titles[id]}"')
        assert renderer.text(ids[position:]).startswith("\n")
    assert max(ids) < renderer.vocab_size


def test_vectors_before_the_titles(run: Run[ALLMRecConfig], renderer: Renderer) -> None:
    before = writer(run, prompts={"soft_token": "before"})
    ids, slots = renderer.render_slots(before.sample(QUESTION, user_row=11).prompt)
    behind = renderer.render_slots(writer(run).sample(QUESTION, user_row=11).prompt)[1]
    assert [slot[1:] for slot in slots] == [slot[1:] for slot in behind]
    titles = [one_line(title) for title in TITLES]
    for position, _, id in slots[1:]:
        assert id is not None and renderer.text(ids[:position]).endswith(":\n" if id in (5, 3) else '"\n')
        assert renderer.text(ids[position:]).startswith(f'"{titles[id]}"\n')


# SmolLM2's tokenizer drops control characters, and characters far up.
LETTERS = st.characters(max_codepoint=0x2FFF, exclude_categories=["C"])
TITLE = st.text(LETTERS, min_size=1, max_size=12).map(one_line).filter(bool)


@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(titles=st.lists(TITLE, min_size=3, max_size=3))
def test_loss_is_on_the_quoted_title_and_the_end_alone(
    run: Run[ALLMRecConfig], renderer: Renderer, titles: list[str]
) -> None:
    """And what is trained on is what stage rank asks: the same prompt, the same answer of the candidates."""
    made = make_writer(run, titles, soft=True)
    question = Question(user=0, history=np.array([0, 2]), candidates=[2, 1, 0], answer=1)
    sample = made.sample(question, 3)
    rendered = renderer.render(sample)
    source = OneSample(rendered)
    row = build_row(source, [0])
    answer_T = row.ids_T[row.labels_T != IGNORE].tolist()
    assert (row.labels_T[row.labels_T != IGNORE] == torch.tensor(answer_T)).all()
    first = int((row.labels_T != IGNORE).nonzero()[0])
    assert (row.labels_T[first:] != IGNORE).all(), "one run up to the end"
    assert answer_T[-1] == renderer.eos_id and renderer.text(answer_T[:-1]) == f'"{titles[1]}"'
    prompt, slots = renderer.render_slots(sample.prompt)
    assert row.ids_T[:first].tolist() == prompt and row.slots == slots == rendered.slots
    assert title_answers(made, renderer, question)[1] == answer_T


class OneSample:
    """What a stream reads, of one sample."""

    has_slots = True

    def __init__(self, rendered: Any) -> None:
        self.rendered = rendered
        self.lengths_N = np.array([len(rendered.ids_T)])
        self.num_prompt_N = np.array([rendered.num_prompt])

    def ids(self, index: int) -> np.ndarray:
        return self.rendered.ids_T  # type: ignore[no-any-return]

    def slots(self, index: int) -> Any:
        return self.rendered.slots


# ---- the stage


def save_random_backbone(run: Run[ALLMRecConfig]) -> Backbone:
    task = load_task(run)
    data = TopKData.from_split(task.scenario.splits.topk, task.tables.num_users, task.tables.num_items)
    torch.manual_seed(1)
    chosen = sasrec.Settings(embedding=8, max_length=6)
    backbone = sasrec.SASRec.build(data, chosen).eval()
    save_backbone(backbone, chosen, run.path("backbone"))
    return backbone


def one_state(backbone: Backbone, user: int, history: np.ndarray) -> Tensor:
    padded_BL = pad_histories([history], backbone.history_length, backbone.num_items)
    with torch.no_grad():
        return backbone.user_vectors(torch.tensor([user]), padded_BL)[0]


def test_the_corpora(tiny_llama: Path, tmp_path: Path) -> None:
    """Each question once with vectors and once in words; its state lies in the row that its slot names."""
    run = small_run(
        tmp_path,
        scenario={"negatives": NEGATIVES},
        model={"path": str(tiny_llama)},
        methods=["a_llmrec", "tallrec"],
        project={"users": 12, "targets": "all", "validation": 5},
    )
    backbone = save_random_backbone(run)
    assert corpora(run.config) == ["soft", "text"]
    for name in corpora(run.config):
        run_prompts(run, name)
    task = load_task(run)
    train = list(training_questions(run.config, task))
    valid = validation_questions(run.config, task)
    states_ND = load_states(run)
    assert states_ND.shape == (len(train) + len(valid), 8)
    assert np.array_equal(load_cold(run), task.cold_I)
    for part, questions, first in (("train", train, 0), ("valid", valid, len(train))):
        soft, text = (ShardReader(tmp_path / "prompts" / name / part) for name in ("soft", "text"))
        verify_shards(soft.folder)
        assert len(soft) == len(text) == len(questions) and soft.has_slots and not text.has_slots
        for n, question in enumerate(questions):
            row = soft.slots(n)[0][2]
            assert soft.slots(n)[0][1] == "user" and row == first + n
            want_D = one_state(backbone, question.user, question.history)
            torch.testing.assert_close(states_ND[row], want_D, atol=1e-5, rtol=1e-5)
            for reader in (soft, text):
                meta = reader.record(n)["meta"]
                assert (meta["user"], meta["items"], meta["answer"]) == (
                    question.user,
                    question.candidates,
                    question.answer,
                )
            shown = [id for _, kind, id in soft.slots(n) if kind == "history"]
            assert shown == question.history[-run.config.prompts.history_items :].tolist()
            assert text.record(n)["text"] in without_slots(soft.record(n)["text"])
    assert len(valid) == 5 and len({q.user for q in train}) == 12


def without_slots(text: str) -> str:
    """A prompt's words without the marks of its vectors."""
    return re.sub(r"<(user|history|candidate) \d+>", "", text)


def test_repeated_draws_of_a_small_catalogue_are_written(tiny_llama: Path, tmp_path: Path) -> None:
    """Two draws may ask the very same question; that is no mistake of the user's."""
    run = small_run(
        tmp_path,
        scenario={"negatives": 1},
        model={"path": str(tiny_llama)},
        methods=["tallrec"],
        project={"users": 20, "draws": 8, "validation": 0},
    )
    save_random_backbone(run)
    questions = [content(q) for q in training_questions(run.config, load_task(run))]
    assert len({str(question) for question in questions}) < len(questions)
    run_prompts(run, "text")
    assert len(ShardReader(tmp_path / "prompts/text/train")) == len(questions) == 160


def test_nothing_to_learn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "training_questions", lambda config, task: iter(()))
    with pytest.raises(UserError, match="no user has two training items"):
        run_prompts(small_run(tmp_path), "soft")


def test_states_in_chunks_are_those_of_one_user(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "SCORES_PER_CHUNK", 7 * 6 * 8)  # seven users
    data = TopKData.from_split(task.scenario.splits.topk, task.tables.num_users, task.tables.num_items)
    backbone = sasrec.SASRec.build(data, sasrec.Settings(embedding=8, max_length=6)).eval()
    users_N = np.array([3, 0, 5, 3, *range(10, 25)])
    histories = [task.train_sequences[user][: 1 + n % 4] for n, user in enumerate(users_N)]
    found_ND = user_vectors(backbone, users_N, histories)
    for n, user in enumerate(users_N.tolist()):
        torch.testing.assert_close(found_ND[n], one_state(backbone, user, histories[n]), atol=1e-5, rtol=1e-5)
    assert user_vectors(backbone, users_N[:0], []).shape == (0, 8)


# ---- favourite genres


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1 if "embed" in name else 1.0)
    return model


def genres_prompt(made: Writer) -> Any:
    template = load_template("genres", next_item.GENRES)
    return genres_sample(template, made.context(QUESTION, 1), made.options, made.prompts.verb)


def test_the_words_about_genres(run: Run[ALLMRecConfig]) -> None:
    sample = genres_prompt(writer(run))
    assert sample_text(sample.prompt) == (
        "<user 1> is a user representation.\n"
        "This user has watched the following movies:\n"
        '"The "Thing""<history 5>\n"Alien"<history 0>\n"Heat of the night"<history 1>\n'
        "What genres of movies would this user enjoy? Name the genres.\n"
        "The user would enjoy these genres:\n"
    )
    assert sample.answer == () and "<" not in sample_text(genres_prompt(writer(run, soft=False)).prompt)


@torch.no_grad()
def most_likely(llm: Any, embedded_BTH: Tensor, count: int) -> list[int]:
    """Greedy decoding by hand: the whole sequence again for every token."""
    found: list[int] = []
    for _ in range(count):
        token = int(llm(inputs_embeds=embedded_BTH).logits[0, -1].argmax())
        found.append(token)
        next_BTH = llm.get_input_embeddings()(torch.tensor([[token]]))
        embedded_BTH = torch.cat([embedded_BTH, next_BTH], 1)
    return found


@pytest.mark.parametrize("soft", [False, True])
def test_free_text_is_greedy(run: Run[ALLMRecConfig], renderer: Renderer, llm: Any, soft: bool) -> None:
    made = writer(run, soft=soft)
    ids, slots = renderer.render_slots(genres_prompt(made).prompt)
    embedded_BTH = llm.get_input_embeddings()(torch.tensor([ids])).detach().clone()
    model = llm
    if soft:
        torch.manual_seed(0)
        projection = Projection(Widths(5, 7, 12, 64)).requires_grad_(False)
        users_ND, items_IE = torch.randn(2, 5), torch.randn(NUM_ITEMS, 7)
        model = ProjectedLM(llm, projection, users_ND, items_IE).eval()
        assert projection.user is not None and projection.item is not None
        for position, kind, id in slots:
            row_H = projection.user(users_ND[id]) if kind == "user" else projection.item(items_IE[id])
            embedded_BTH[0, position] = row_H
    want = most_likely(llm, embedded_BTH, 6)
    assert greedy_text(model, ids, slots, 6, renderer) == want
    template = load_template("genres", next_item.GENRES)
    row = answered(model, made, template, renderer, 1, QUESTION, 6)
    assert row == {
        "user": 7,
        "prompt": sample_text(genres_prompt(made).prompt),
        "answer": renderer.text(want).strip(),
    }


def test_free_text_ends_with_the_end_token(
    run: Run[ALLMRecConfig], renderer: Renderer, llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, slots = renderer.render_slots(genres_prompt(writer(run, soft=False)).prompt)
    spelt = greedy_text(llm, ids, slots, 8, renderer)
    last = next(n for n, token in enumerate(spelt) if n > 1 and token not in spelt[:n])
    monkeypatch.setattr(llm.generation_config, "eos_token_id", spelt[last])
    assert greedy_text(llm, ids, slots, 8, renderer) == spelt[: last + 1]


def test_the_stage_asks_both_with_and_without_vectors(
    tiny_llama: Path, tmp_path: Path, llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(
        tmp_path,
        scenario={"negatives": NEGATIVES, "users": 6},
        model={"path": str(tiny_llama)},
        methods=["a_llmrec"],
        genres={"users": 3, "max_tokens": 2},
    )
    task = load_task(run)
    first = asked_samples(task, run.config.scenario).rows.user_N[:3]

    @contextmanager
    def answerer(
        run: Any, task: Any, method: Method, llm: Any, users_N: np.ndarray, histories: Any
    ) -> Iterator[Any]:
        assert users_N.tolist() == first.tolist()
        assert [h.tolist() for h in histories] == [task.histories[user].tolist() for user in first]
        if method.vectors is None:
            yield llm
            return
        projection = Projection(Widths(5, 7, 12, 64)).requires_grad_(False)
        yield ProjectedLM(llm, projection, torch.randn(3, 5), torch.randn(NUM_ITEMS, 7)).eval()

    monkeypatch.setattr(genres, "load_llm", lambda run, attention: llm)
    monkeypatch.setattr(genres, "answerer", answerer)
    genres.run_genres(run)
    rows = [json.loads(text) for text in run.path("genres.jsonl").read_text().splitlines()]
    asked = [(method, user) for method in ("LLM-only", "A-LLMRec") for user in first.tolist()]
    assert [(row["method"], row["user"]) for row in rows] == asked
    for n, (words, soft) in enumerate(zip(rows[:3], rows[3:], strict=True)):
        assert soft["prompt"].startswith(f"<user {n}> is a user representation.\n")
        assert without_slots(soft["prompt"]).partition("\n")[2] == words["prompt"]
