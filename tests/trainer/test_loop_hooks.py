"""The loop's hooks around an epoch, what its log is told, and the seeds of its rows: no DeepSpeed needed."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from fixed_samples import FixedSamples

from recloom.data_shards.stream import PackedRow, PackedStream, StepBatch
from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.callbacks.checkpoint import Checkpoint
from recloom.trainer.callbacks.metrics_log import MetricsLog
from recloom.trainer.config import TrainingBlock
from recloom.trainer.loop import Loop, StepRecord
from recloom.trainer.parallel_layout import RankLayout

State = dict[str, Any]
EPOCHS, ROWS_PER_STEP = 3, 4


class Killed(BaseException):
    """The process ends here."""


class FakeEngine:
    """Counts updates; keeps checkpoints as DeepSpeed does, the weights being the number of updates."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.updates, self.waiting = 0, 0
        self.layout = RankLayout(dist.get_rank(), dist.get_world_size())
        self.saved: dict[Path, tuple[int, State]] = {}
        self.rates: list[float] = []

    def backward(self, loss: torch.Tensor) -> None:
        assert loss.isfinite()

    def step(self, rate: float) -> None:
        self.waiting += 1
        if self.waiting == ROWS_PER_STEP // dist.get_world_size():
            self.updates, self.waiting = self.updates + 1, 0
            self.rates.append(rate)

    def gradient_norm(self) -> float:
        return 1.0

    def save(self, folder: Path, step: int, state: State, keep: int) -> None:
        self.saved[folder] = (self.updates, json.loads(json.dumps(state)))


class FakeObjective:
    """Its loss is drawn, so that it tells what seed a row was given."""

    def __init__(self) -> None:
        self.drawn: list[tuple[list[int], float]] = []
        self.losses = 0.0

    def loss(self, model: Any, row: PackedRow) -> torch.Tensor:
        loss = torch.rand(())
        self.drawn.append((row.sample_indices, loss.item()))
        self.losses += loss.item()
        return loss

    def units(self, batch: StepBatch) -> int:
        return len(batch.sample_ids)

    def told(self) -> dict[str, float]:
        losses, self.losses = self.losses, 0.0
        return {"drawn": losses}


class Hooks(Callback):
    """Writes down the hooks in order, with the stream's epoch; dies at the hook with this number."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.seen: list[tuple[str, int]] = []
        self.dies_at = dies_at

    def hear(self, name: str, number: int) -> None:
        self.seen.append((name, number))
        if len(self.seen) == self.dies_at:
            raise Killed

    def on_start(self, loop: Loop) -> None:
        self.hear("start", loop.step)

    def on_epoch(self, loop: Loop) -> None:
        assert loop.closed == loop.stream.epoch, "all epochs before have been closed"
        self.hear("epoch", loop.stream.epoch)

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        self.hear("step", record.step)

    def on_epoch_end(self, loop: Loop) -> None:
        self.hear("end", loop.closed)

    def on_end(self, loop: Loop) -> None:
        self.hear("finish", loop.step)

    def close(self) -> None:
        self.seen.append(("close", 0))


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets rank and world size; what ranks add up is what this one has."""

    def set_ranks(rank: int, world_size: int) -> None:
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: world_size)
        monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)

    set_ranks(0, 1)
    return set_ranks


def block(epochs: int = EPOCHS) -> TrainingBlock:
    return TrainingBlock.model_construct(
        **{
            **TrainingBlock().model_dump(),
            "epochs": epochs,
            "rows_per_step": ROWS_PER_STEP,
            "warmup_steps": 0,
        }
    )


def make_loop(engine: Any, callbacks: list[Callback], epochs: int = EPOCHS, seed: int = 3) -> Loop:
    stream = PackedStream(
        FixedSamples(30), 128, ROWS_PER_STEP, 16, seed, dist.get_rank(), dist.get_world_size()
    )
    return Loop(engine, stream, block(epochs), FakeObjective(), callbacks)


def undisturbed() -> list[tuple[str, int]]:
    hooks = Hooks()
    make_loop(FakeEngine(), [hooks]).run()
    return hooks.seen


def test_hooks_in_order(ranks: Any) -> None:
    """Each epoch is begun before its first step and ended behind its last one."""
    loop = make_loop(FakeEngine(), [])
    steps = [loop.stream.num_steps(epoch) for epoch in range(EPOCHS)]
    assert min(steps) >= 3 and loop.total_steps == sum(steps)
    want: list[tuple[str, int]] = [("start", 0)]
    for epoch in range(EPOCHS):
        first = sum(steps[:epoch])
        numbers = range(first + 1, first + steps[epoch] + 1)
        want += [("epoch", epoch), *(("step", number) for number in numbers), ("end", epoch + 1)]
    assert undisturbed() == [*want, ("finish", loop.total_steps), ("close", 0)]


def test_no_epochs(ranks: Any) -> None:
    hooks = Hooks()
    make_loop(FakeEngine(), [hooks], epochs=0).run()
    assert hooks.seen == [("start", 0), ("finish", 0), ("close", 0)]


def resumed(
    folder: Path, dies_at: int, every: int, ends: bool
) -> tuple[Hooks, Hooks, FakeEngine, State | None]:
    """A start that dies at a hook, and the next one: both's hooks, and what the next one began with."""
    engine, first, second = FakeEngine(), Hooks(dies_at), Hooks()
    keepers: list[Callback] = [Checkpoint(folder, every, 1, epochs=ends)]
    with pytest.raises(Killed):
        make_loop(engine, [first, *keepers]).run()
    next_engine = FakeEngine()
    loop = make_loop(next_engine, [second, *keepers])
    state: State | None = None
    if folder in engine.saved:
        next_engine.updates, state = engine.saved[folder]
        next_engine.saved = dict(engine.saved)
        loop.load_state(state)
    loop.run()
    assert next_engine.updates == loop.total_steps, "no step is lost or taken twice"
    return first, second, next_engine, state


def left_to_hear(whole: list[tuple[str, int]], state: State | None) -> list[tuple[str, int]]:
    """Behind a checkpoint: in the middle of an epoch its begin again, at its end what was not heard there."""
    if state is None:
        return whole[1:]
    left = whole[whole.index(("step", state["step"])) + 1 :]
    if left[0][0] == "step":
        return [("epoch", state["stream"]["epoch"]), *left]
    return left[1:] if state["closed"] == state["stream"]["epoch"] else left


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("every", [1, 2, 0])
def test_wherever_a_start_dies_the_next_hears_the_rest(
    ranks: Any, tmp_path: Path, every: int, ends: bool
) -> None:
    """From the checkpoint on: the epoch it lies in is begun again, one that has ended is closed once."""
    whole = undisturbed()
    for dies_at in range(1, len(whole)):
        first, second, _, state = resumed(tmp_path / str(dies_at), dies_at, every, ends)
        assert first.seen[-1] == ("close", 0), "files are let go of"
        step = state["step"] if state else 0
        assert second.seen == [("start", step), *left_to_hear(whole, state)], (dies_at, state)
        ended = Counter(hook for hook in second.seen if hook[0] == "end")
        assert set(ended.values()) <= {1}


def test_an_end_that_was_cut_off_is_heard_before_the_next_epoch(ranks: Any, tmp_path: Path) -> None:
    """The checkpoint of the epoch's last step is there, its end is not: nothing is trained in between."""
    whole = undisturbed()
    end = whole.index(("end", 1))
    _, second, _, state = resumed(tmp_path, end + 1, 1, ends=False)
    assert state is not None and (state["closed"], state["stream"]["epoch"]) == (0, 1)
    assert second.seen[:3] == [("start", state["step"]), ("end", 1), ("epoch", 1)]


def test_told_reaches_record_and_log(ranks: Any, tmp_path: Path) -> None:
    """Beside the loss, one number a step, and only of that step."""
    log = MetricsLog(tmp_path, tensorboard=False)
    loop = make_loop(FakeEngine(), [log], epochs=1)
    loop.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == loop.total_steps
    objective: Any = loop.objective
    drawn = [loss for _, loss in objective.drawn]
    for number, row in enumerate(rows):
        own = sum(drawn[number * ROWS_PER_STEP : (number + 1) * ROWS_PER_STEP])
        assert row["drawn"] == pytest.approx(own) and "told" not in row
        assert row["loss"] == pytest.approx(own / row["samples"])


def test_told_cannot_hide_what_the_loop_says() -> None:
    record = StepRecord(1, 0, 2.0, 0.1, 1.0, 9, 3, 0.5, 0.1)
    assert record.told == {} and set(record.as_dict()) >= {"step", "epoch", "loss", "tokens", "samples"}
    assert SimpleNamespace(**record.as_dict()).loss == 2.0


def draws(ranks: Any, world_size: int, **changes: Any) -> dict[tuple[int, ...], list[float]]:
    """What each row was given, by its samples, whatever rank it lay on."""
    found: dict[tuple[int, ...], list[float]] = {}
    for rank in range(world_size):
        ranks(rank, world_size)
        loop = make_loop(FakeEngine(), [], **changes)
        loop.run()
        objective: Any = loop.objective
        for samples, loss in objective.drawn:
            if samples:
                found.setdefault(tuple(samples), []).append(loss)
    return found


def test_a_row_is_drawn_alike_on_any_number_of_ranks(ranks: Any) -> None:
    one, two, four = (draws(ranks, world_size) for world_size in (1, 2, 4))
    assert one == two == four and sum(map(len, one.values())) >= 3 * ROWS_PER_STEP * EPOCHS / 2
    values = [loss for losses in one.values() for loss in losses]
    assert len(set(values)) == len(values), "no two rows or steps share what is drawn"
    other = draws(ranks, 1, seed=4)
    assert not set(values) & {loss for losses in other.values() for loss in losses}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_row_seeds(ranks: Any, world_size: int) -> None:
    """Of the seed, the step and the row in it; never two alike, and fit for torch."""
    found: dict[tuple[int, int], int] = {}
    for rank in range(world_size):
        ranks(rank, world_size)
        loop = make_loop(FakeEngine(), [])
        for loop.step in range(50):
            for position in range(ROWS_PER_STEP // world_size):
                found[loop.step, position * world_size + rank] = loop.row_seed(position)
    assert len(found) == len(set(found.values())) == 50 * ROWS_PER_STEP
    assert all(0 <= seed < 2**63 for seed in found.values())
    ranks(0, 1)
    alone = make_loop(FakeEngine(), [])
    for (alone.step, row), seed in found.items():
        assert alone.row_seed(row) == seed


def test_what_is_drawn_does_not_depend_on_what_was_drawn_before(ranks: Any, tmp_path: Path) -> None:
    """So a resumed start draws as the undisturbed one."""
    engine = FakeEngine()
    hooks = Hooks(dies_at=4)
    with pytest.raises(Killed):
        make_loop(engine, [hooks, Checkpoint(tmp_path, 1, 1)]).run()
    torch.manual_seed(99)
    loop = make_loop(engine, [])
    loop.load_state(engine.saved[tmp_path][1])
    loop.run()
    again: Any = loop.objective
    whole = make_loop(FakeEngine(), [])
    whole.run()
    objective: Any = whole.objective
    assert 0 < len(again.drawn) < len(objective.drawn)
    assert again.drawn == objective.drawn[-len(again.drawn) :]


def test_no_checkpoint_is_written_over_the_latest_one(ranks: Any, tmp_path: Path) -> None:
    """A kill while the files that `latest.json` names are written again would leave none."""
    engine, names = FakeEngine(), []
    engine.save = lambda folder, step, state, keep: names.append(step)  # type: ignore[method-assign]
    make_loop(engine, [Checkpoint(tmp_path, 1, 1, epochs=True)]).run()
    assert len(set(names)) == len(names)


class Judge(Callback):
    """Tells the log of every epoch's end; the first one dies behind it."""

    def __init__(self, log: MetricsLog, dies: bool) -> None:
        self.log, self.dies = log, dies

    def on_epoch_end(self, loop: Loop) -> None:
        self.log.write({"step": loop.step, "epoch": loop.closed, "value": 0.5})
        if self.dies:
            raise Killed


def test_an_epoch_that_is_closed_again_is_logged_once(ranks: Any, tmp_path: Path) -> None:
    """The start before died between its row and the checkpoint that says the epoch is closed."""
    engine = FakeEngine()
    for dies in (True, False):
        log = MetricsLog(tmp_path, tensorboard=False)
        callbacks = [log, Judge(log, dies), Checkpoint(tmp_path, 1, 1, epochs=True)]
        loop = make_loop(engine, callbacks)
        if not dies:
            loop.load_state(engine.saved[tmp_path][1])
        with pytest.raises(Killed) if dies else contextlib.nullcontext():
            loop.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "value" in row] == [1, 2, 3]


def test_ranks_of_a_tensor_parallel_group_draw_the_same(ranks: Any) -> None:
    """What each of them holds whole must drop out alike; the rows are numbered as by data-parallel ranks."""
    found = []
    for rank in range(4):
        ranks(rank, 4)
        engine = FakeEngine()
        engine.layout = RankLayout(rank, 4, tensor=2)
        loop = make_loop(engine, [])
        found.append([loop.row_seed(position) for position in range(2)])
    ranks(0, 1)
    alone = make_loop(FakeEngine(), [])
    rows = [alone.row_seed(row) for row in range(4)]
    assert found == [[rows[0], rows[2]]] * 2 + [[rows[1], rows[3]]] * 2
