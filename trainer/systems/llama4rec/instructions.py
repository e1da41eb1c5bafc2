"""Stage instructions: the instruction-tuning corpus (section 4.5.1), cross-fitted.

Prompts are made from the training part alone. Of each user the latest `holdback` training rows are
kept from the inner backbone; they are the targets, and what is older is the history. So neither the
history, nor the similar user, nor the prediction in a prompt has seen the prompt's target, and no
validation or test row is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Sample
from recloom.data_shards.shards import ShardReader, write_shards
from recloom.data_shards.splits import Interactions, Splits
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.evaluate import masked_scores, predict_ratings, rank_topk
from recloom.trainer.models import load_tokenizer, resolve_model
from recloom.trainer.preparation import load_data
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.backbones import held_back_mask, open_backbone, task_split
from recloom.trainer.systems.llama4rec.prompts import Prompter, make_prompter
from recloom.trainer.systems.llama4rec.rating_tokens import label_tree, rating_labels
from recloom.trainer.systems.llama4rec.settings import InstructionsBlock, Llama4RecConfig

Marked = tuple[Sample, bool]  # a sample, and whether it is kept for validation
TASK_NUMBER = {"direct": 1, "sequential": 2, "rating": 3}
POOL = 3  # pads are drawn from the backbone's first POOL * candidates un-interacted items


@dataclass(frozen=True)
class Pool:
    """The inner backbone's view: row b of items_BP, scores_BP (P best un-interacted items, -1 = none)
    belongs to the b-th user; held_N are the scores of the held-back rows, a user's from end_U[user]."""

    items_BP: np.ndarray
    scores_BP: np.ndarray
    held_N: np.ndarray
    end_U: np.ndarray


def run_instructions(run: Run[Llama4RecConfig]) -> None:
    """Write the corpora: one of augmented prompts, one of plain ones, or both mixed when shared."""
    tables, splits = load_data(run)
    corpora = build_corpora(run, tables, splits)
    tokenizer = load_tokenizer(resolve_model(run.config.model.path, run.cache))
    renderer = Renderer(tokenizer)
    if run.config.backbones.rating is not None and run.config.rank.rating_rule == "expected":
        label_tree(renderer, rating_labels(tables))  # fails here rather than after hours of tuning
    for name, (train, valid) in corpora.items():
        for part, samples in (("train", train), ("valid", valid)):
            if not samples:
                continue
            manifest = write_shards(
                samples,
                renderer,
                run.path(f"instructions/{name}/{part}"),
                run.config.instructions.samples_per_shard,
                corpus=name,
                part=part,
            )
            tokens = manifest["num_tokens"] / manifest["num_samples"]
            print(f"instructions {name}/{part}: {len(samples)} prompts, {tokens:.0f} tokens each", flush=True)


def build_corpora(
    run: Run[Llama4RecConfig], tables: Tables, splits: Splits
) -> dict[str, tuple[list[Sample], list[Sample]]]:
    """Training and validation samples by corpus name, each in a seeded random order."""
    config = run.config
    augmented: list[Marked] = []
    plain: list[Marked] = []
    for task in config.backbones.tasks:
        with_backbone, without = task_samples(run, tables, splits, task)
        augmented += with_backbone
        plain += without
    if config.training.ift == "separate":
        return {"llama4rec": corpus(run, "llama4rec", augmented), "ift": corpus(run, "ift", plain)}
    augmented, plain = without_repeats(augmented), without_repeats(plain)
    mixed = [pair for position, pair in enumerate(augmented) if position % 2 == 0]
    mixed += [pair for position, pair in enumerate(plain) if position % 2 == 1]
    return {"llama4rec": corpus(run, "llama4rec", mixed)}


def corpus(run: Run[Llama4RecConfig], name: str, own: list[Marked]) -> tuple[list[Sample], list[Sample]]:
    """This run's prompts and those of `instructions.also`, mixed, cut to `instructions.limit`."""
    samples = [*own, *(pair for other in run.config.instructions.also for pair in prompts_of(other, name))]
    train, valid = parted(without_repeats(samples), run.config.seed)
    return train[: run.config.instructions.limit], valid


def prompts_of(other: str, name: str) -> Iterator[Marked]:
    """The prompts in another run's shards. Raises UserError when it has no such corpus."""
    for part in ("train", "valid"):
        folder = Path(other).expanduser() / "instructions" / name / part
        if part == "valid" and not folder.is_dir():
            continue  # a small corpus keeps none for validation
        reader = ShardReader(folder)
        for index in range(len(reader)):
            yield reader.sample(index), part == "valid"
        reader.close()


def without_repeats(samples: list[Marked]) -> list[Marked]:
    """Two tasks, or a prompt that no augmentation changed, can give the same sample: the first stays."""
    return list({sample.key: (sample, is_valid) for sample, is_valid in reversed(samples)}.values())[::-1]


def parted(samples: list[Marked], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Training and validation samples, shuffled."""
    order = np.random.default_rng([seed, 7]).permutation(len(samples))
    train = [samples[index][0] for index in order if not samples[index][1]]
    return train, [samples[index][0] for index in order if samples[index][1]]


def task_samples(
    run: Run[Llama4RecConfig], tables: Tables, splits: Splits, task: str
) -> tuple[list[Marked], list[Marked]]:
    """One task's samples with both prompt augmentations, and the same users and targets without."""
    config, num_users = run.config, tables.num_users
    train = task_split(splits, task).train
    held = held_back_mask(train, config.instructions.holdback)
    known, targets = train.select(~held), train.select(held)
    backbone = open_backbone(run, "inner", task)
    users = eligible_users(train, targets, num_users, config.instructions.min_interactions)
    disliked = disliked_rows(run, splits, task)
    drafts = drafter(run, backbone, task, train, known, targets, users)
    made = [
        marked(
            config.instructions,
            task,
            drafts(make_prompter(config, tables.titles, num_users, task, known, known, disliked, speaker)),
            num_wanted(config, task),
        )
        for speaker in (backbone, None)
    ]
    return made[0], made[1]


def drafter(
    run: Run[Llama4RecConfig],
    backbone: Backbone,
    task: str,
    train: Interactions,
    known: Interactions,
    targets: Interactions,
    users: np.ndarray,
) -> Callable[[Prompter], Iterator[Sample]]:
    """Asks the inner backbone once; the function it returns writes the samples with any prompter."""
    if task == "rating":
        predictions = predict_ratings(backbone, targets.user_N, targets.item_N)
        return lambda prompter: rating_drafts(prompter, targets, predictions, users, run.config.seed)
    pool = pool_of(run, backbone, train, known, targets, users)
    return lambda prompter: listwise_drafts(run, prompter, targets, users, pool, TASK_NUMBER[task])


def num_wanted(config: Llama4RecConfig, task: str) -> int:
    """Training prompts of one backbone: the top-k backbones share those of listwise ranking evenly."""
    topk = [name for name in config.backbones.tasks if name != "rating"]
    if task == "rating":
        return config.instructions.per_task
    share, rest = divmod(config.instructions.per_task, len(topk))
    return share + (topk.index(task) < rest)


def marked(settings: InstructionsBlock, task: str, drafts: Iterator[Sample], wanted: int) -> list[Marked]:
    """As many samples as the config wants, the first ones kept for validation."""
    found = list(unique(drafts, wanted + settings.validation))
    if not found:
        raise UserError(
            f"instructions: task {task} has no user with {settings.min_interactions} training "
            "interactions: lower instructions.min_interactions or use more data."
        )
    num_valid = min(settings.validation, max(len(found) - wanted, len(found) // 10))
    return [(sample, position < num_valid) for position, sample in enumerate(found)]


def disliked_rows(run: Run[Llama4RecConfig], splits: Splits, task: str) -> Interactions | None:
    """Rated rows below `disliked_below` of the cross-fitted training part, when prompts show them."""
    config = run.config
    if task == "rating" or config.disliked_below is None or config.prompts.disliked_items == 0:
        return None
    rows = splits.rating.train
    kept = ~held_back_mask(rows, config.instructions.holdback) & (rows.rating_N < config.disliked_below)
    return rows.select(kept)


def eligible_users(train: Interactions, targets: Interactions, num_users: int, least: int) -> np.ndarray:
    count_U = np.bincount(train.user_N, minlength=num_users)
    held_U = np.bincount(targets.user_N, minlength=num_users)
    return np.flatnonzero((count_U >= least) & (held_U > 0))


def unique(drafts: Iterator[Sample], wanted: int) -> Iterator[Sample]:
    """The first `wanted` samples, repeats dropped."""
    keys: set[str] = set()
    for sample in drafts:
        if len(keys) == wanted:
            return
        if sample.key not in keys:
            keys.add(sample.key)
            yield sample


def rating_drafts(
    prompter: Prompter, targets: Interactions, predictions: np.ndarray, users: np.ndarray, seed: int
) -> Iterator[Sample]:
    """One prompt a held-back row, in random order."""
    rows = np.flatnonzero(np.isin(targets.user_N, users))
    for row in np.random.default_rng([seed, TASK_NUMBER["rating"]]).permutation(rows):
        user, item = int(targets.user_N[row]), int(targets.item_N[row])
        yield prompter.rating(user, item, float(predictions[row]), float(targets.rating_N[row]))


def pool_of(
    run: Run[Llama4RecConfig],
    backbone: Backbone,
    train: Interactions,
    known: Interactions,
    targets: Interactions,
    users: np.ndarray,
) -> Pool:
    """What the inner backbone says of each user: its best un-interacted items, and the held-back ones."""
    shown, taken = known.sequences(backbone.num_users), train.sequences(backbone.num_users)
    histories, seen = [shown[user] for user in users], [taken[user] for user in users]
    items_BP, scores_BP = rank_topk(backbone, users, histories, seen, POOL * run.config.prompts.candidates)
    end = np.searchsorted(targets.user_N, np.arange(backbone.num_users + 1))
    held_N = np.zeros(len(targets))
    nothing = [np.empty(0, dtype=np.int64)] * len(users)
    for rows, scores_CI in masked_scores(backbone, users, histories, nothing):
        for user, scores_I in zip(users[rows], scores_CI.numpy(), strict=True):
            own = slice(end[user], end[user + 1])
            held_N[own] = scores_I[targets.item_N[own]]
    return Pool(items_BP, scores_BP, held_N, end)


def listwise_drafts(
    run: Run[Llama4RecConfig],
    prompter: Prompter,
    targets: Interactions,
    users: np.ndarray,
    pool: Pool,
    task_number: int,
) -> Iterator[Sample]:
    """Rounds over all users in random order; each draft draws held-back items and un-interacted pads.

    Answer: the held-back items by rating, then recency, then the pads in the backbone's order
    (protocol); candidates are shown shuffled.
    """
    wanted = run.config.instructions.per_task + run.config.instructions.validation
    rng = np.random.default_rng([run.config.seed, task_number])
    for _ in range(1 + 4 * wanted // max(1, len(users))):
        for position in rng.permutation(len(users)):
            user = int(users[position])
            answer, scores = draw_candidates(run, targets, pool, user, position, rng)
            prediction = answer[np.argsort(-scores, kind="stable")]
            shown = rng.permutation(answer)
            yield prompter.listwise(user, shown.tolist(), prediction.tolist(), answer.tolist())


def draw_candidates(
    run: Run[Llama4RecConfig],
    targets: Interactions,
    pool: Pool,
    user: int,
    position: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates in the order of the answer, and the backbone's scores of them."""
    count = run.config.prompts.candidates
    rows = np.arange(pool.end_U[user], pool.end_U[user + 1])
    rows = rows[np.sort(np.unique(targets.item_N[rows], return_index=True)[1])]  # no item twice
    most = min(run.config.instructions.rated_candidates, len(rows), count - 1)
    chosen = rng.choice(rows, size=int(rng.integers(1, most + 1)), replace=False)
    # By rating, then recency; data without ratings (nan) rank by recency alone.
    chosen = chosen[np.lexsort((-targets.order_N[chosen], -np.nan_to_num(targets.rating_N[chosen])))]
    free = np.flatnonzero(pool.items_BP[position] >= 0)
    picked = np.sort(rng.choice(free, size=min(count - len(chosen), len(free)), replace=False))
    items = np.concatenate([targets.item_N[chosen], pool.items_BP[position, picked]]).astype(np.int64)
    return items, np.concatenate([pool.held_N[chosen], pool.scores_BP[position, picked]])
