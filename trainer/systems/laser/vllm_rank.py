"""Stage rank with vLLM: one bulk pass a method, which asks for the vector behind each user's text.

A prompt is [prefix rows][text][suffix row], as `BiTuning.surround` lays it; the end token's id stands for the
suffix of hard [EOS].
Shapes: S users, L prefix tokens, R rows of a file, H width of the LLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from recloom.data_shards.artifacts import atomic_write_bytes, file_sha256
from recloom.data_shards.errors import UserError
from recloom.trainer.models import local_model
from recloom.trainer.requests import Answer, Request, SoftPrompt, read_answers, unpack_vector
from recloom.trainer.stages import BulkPass, Run
from recloom.trainer.systems.laser.bituning import BiTuning
from recloom.trainer.systems.laser.embedding import chunks_of, write_vectors
from recloom.trainer.systems.laser.methods import Method, asked_methods
from recloom.trainer.systems.laser.objective import RowReader
from recloom.trainer.systems.laser.rank import keep_ranking, load_parts, rank_folder, test_reader
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.states import method_states
from recloom.trainer.systems.laser.task import load_task

CHUNK = 256  # users whose prefixes are computed at once


def passes(run: Run[LaserConfig]) -> list[BulkPass]:
    """One pass a method. Prefixes are computed on the CPU: a GPU is left to vLLM."""
    model = local_model(run.config.model.path, run.cache)
    users = [example.user for example in load_task(run).test]
    return [
        BulkPass(pass_name(method), model, list(requests_of(run, method, users)))
        for method in asked_methods(run.config)
    ]


def pass_name(method: Method) -> str:
    return f"rank_{method.key}"


def requests_of(run: Run[LaserConfig], method: Method, users: Sequence[int]) -> Iterator[Request]:
    """In the order of texts/test.

    A rows file that is there is an interrupted pass's, of the same weights: one that another number of
    threads had rounded otherwise would make that pass start over.
    """
    states = method_states(run, method)
    network, reader = load_parts(run, method, states), test_reader(run, states)
    path = run.path(f"rank/{method.key}.rows.safetensors")
    if not path.is_file():
        write_rows(path, network, reader)
    layout = layout_of(network, path, len(users))
    for index, user in enumerate(users):
        yield layout.request(index, user, reader.source.ids(index).tolist())


def write_rows(path: Path, network: BiTuning, reader: RowReader) -> None:
    """All prefix rows, then the suffix if it is trained, (R, H) in the training's number format.

    An M-Former writes R = S L rows: 10,000 users of 32 tokens at width 4096 in bfloat16 are 2.6 GB, which
    this process holds too. A free prefix is L rows for all.
    """
    suffix_H = network.suffix_H
    parts = list(prefixes(network, reader))
    if suffix_H is not None:
        parts.append(suffix_H.detach()[None])
    atomic_write_bytes(path, safetensors.torch.save({"rows": torch.cat(parts)}))


@torch.no_grad()
def prefixes(network: BiTuning, reader: RowReader) -> Iterator[Tensor]:
    """Rows (?, H): of every user by the M-Former, or of all users together."""
    if network.prefix_LH is not None:
        yield network.prefix_LH
    if network.mformer is not None:
        for chunk in chunks_of(len(reader.source), CHUNK):
            prefix_SLH = network.mformer(*reader.collaborative(reader.metas(chunk))).prefix_BLH
            yield prefix_SLH.flatten(0, 1)


@dataclass(frozen=True)
class Layout:
    """How prompts are laid.

    Attributes:
        start: tokens that begin every text; the prefix stands behind them.
        prefix: L. own: whether each user has its own prefix rows.
        suffix: row of the suffix; None: the token `end` stands last.
    """

    file: str
    sha256: str
    start: int
    prefix: int
    own: bool
    suffix: int | None
    end: int

    def request(self, index: int, user: int, text: list[int]) -> Request:
        first = index * self.prefix if self.own else 0
        last = self.prefix + len(text)
        positions = [self.start + place for place in range(self.prefix)]
        rows = list(range(first, first + self.prefix))
        if self.suffix is not None:
            positions, rows = [*positions, last], [*rows, self.suffix]
        soft = SoftPrompt(self.file, self.sha256, tuple(positions), tuple(rows))
        ids = (*text[: self.start], *(0 for _ in range(self.prefix)), *text[self.start :], self.end)
        return Request(ids, max_tokens=0, meta={"user": user}, soft=soft, embed=True)


def layout_of(network: BiTuning, path: Path, num_users: int) -> Layout:
    own, prefix = network.mformer is not None, 0
    if network.mformer is not None:
        prefix = network.mformer.settings.tokens
    elif network.prefix_LH is not None:
        prefix = len(network.prefix_LH)
    suffix = prefix * (num_users if own else 1) if network.suffix_H is not None else None
    return Layout(str(path), file_sha256(path), network.num_start, prefix, own, suffix, network.eos or 0)


def run_vllm_rank(run: Run[LaserConfig]) -> None:
    """The passes' answers as the vectors and rankings that Hugging Face's engine leaves."""
    task = load_task(run)
    for method in asked_methods(run.config):
        answers = read_answers(run.path(f"bulk/{pass_name(method)}"))
        write_vectors(rank_folder(run, method), vectors_of(answers))
        keep_ranking(run, task, method)
        print(f"rank {method.name}: {len(answers)} users", flush=True)


def vectors_of(answers: Sequence[Answer]) -> Tensor:
    """(S, H). Raises UserError for a user without one."""
    found = []
    for answer in answers:
        if answer.vector is None:
            raise UserError(
                f"rank: user {answer.meta['user']}: no vector ({answer.error}): mend the cause, or set "
                "rank.engine to hf."
            )
        found.append(unpack_vector(answer.vector))
    return torch.from_numpy(np.stack(found))
