"""What is asked of a language model in bulk, and what it answered.

A pass (`launcher/bulk.py`) reads requests and leaves a folder: `requests.jsonl`, `chunk-*.jsonl`
with the answers, `manifest.json` written last. A chunk file is one JSON line an answer and a last
line with the SHA-256 of the others, so a damaged chunk is found without the manifest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from recloom.data_shards.artifacts import atomic_write_text, read_manifest
from recloom.data_shards.errors import UserError

REQUESTS = "requests.jsonl"
CHUNKS = "chunk-*.jsonl"
# Fields that came later: a line holds them only where they say something, so older passes keep their keys.
LATER: dict[str, Any] = {"soft": None, "embed": False, "vector": None}


class BulkSettings(BaseModel):
    """How a bulk pass runs: the `bulk:` block of the YAML and the flags of `launcher/bulk.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Number format of the model."
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="Longest prompt plus answer in tokens; empty: the model's own limit."
    )
    chunk_size: int = Field(
        default=64,
        ge=1,
        description="Requests committed together: what a crash can cost; up to twice as many where that "
        "keeps a user's scored candidates together.",
    )
    max_num_seqs: int = Field(default=64, ge=1, description="Requests that the engine works on at once.")
    block_size: int = Field(
        default=32,
        ge=16,
        multiple_of=16,
        description="Tokens a block of the prefix cache; on a CPU a multiple of 32.",
    )
    kv_cache_gb: float = Field(
        default=2.0, gt=0, description="Memory of an engine's key-value cache on a CPU, in GiB."
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="Share of a GPU's memory that vLLM takes."
    )
    engines: int = Field(
        default=1,
        ge=1,
        description="Engines on this machine, each with the whole model, on a GPU of its own; on a CPU an "
        "engine a core scores faster than one with all cores.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of an engine; empty: all cores, divided among the engines.",
    )
    scoring: Literal["vllm", "one_pass"] = Field(
        default="vllm",
        description="What answers a pass that only scores next tokens (pointwise ranking, ratings): vllm, or "
        "one_pass, a forward pass of Hugging Face for all prompts that begin alike.",
    )
    max_restarts: int = Field(
        default=3,
        ge=0,
        description="Restarts of an engine in a row without a new chunk, or of all engines at one chunk, "
        "before giving up.",
    )
    stall_seconds: float = Field(default=600.0, gt=0, description="A worker silent for longer is restarted.")
    lease_seconds: float = Field(
        default=60.0,
        ge=10,
        description="Another machine's chunk is taken over when its engine showed no life for so long.",
    )


@dataclass(frozen=True)
class Choices:
    """The answer names `count` different ones of a few choices, one behind the other.

    inner[n] spells choice n in token ids, last[n] where it is the final one (without the line end, say, and
    with the end token).
    """

    inner: tuple[tuple[int, ...], ...]
    last: tuple[tuple[int, ...], ...]
    count: int


@dataclass(frozen=True)
class Catalogue:
    """The answer is an item of the token trie in file `trie`: one of `allowed` if given, none of `excluded`.

    num_beams 1 takes the likeliest token at each step; more search for the num_beams best items.
    """

    trie: str
    allowed: tuple[int, ...] | None = None
    excluded: tuple[int, ...] = ()
    num_beams: int = 1


@dataclass(frozen=True)
class SoftPrompt:
    """Soft rows in a prompt: at positions[n] of prompt_ids stands row rows[n] of the file instead of a token.

    file: a safetensors file with the tensor `rows` (N, H); sha256: of the file, so that the request's key
    changes with its content. The positions ascend; the ids that prompt_ids has there are not read.
    """

    file: str
    sha256: str
    positions: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One prompt as token ids, some of which `soft` may replace by vectors.

    Without `score_ids`: greedy text of at most `max_tokens` tokens, ended by the model's end token
    or one of the `stop` strings. With them: one forward pass (`max_tokens` is 1) that returns the
    log-probability of each of these ids as the next token. `choices` or `catalogue` restrict the text to
    what they spell. With `embed`: the last hidden state at the prompt's last position, behind the final norm
    and not normalised; nothing is generated (`max_tokens` is 0). A pass asks for vectors only, or for none.
    `meta` is kept beside the answer.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    score_ids: tuple[int, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict, hash=False)
    choices: Choices | None = None
    catalogue: Catalogue | None = None
    soft: SoftPrompt | None = None
    embed: bool = False

    __pydantic_config__ = ConfigDict(extra="forbid")  # read by TypeAdapter

    @cached_property
    def key(self) -> str:
        """A hash of the whole content: the request's name across runs."""
        return hashlib.sha256(request_line(self).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Answer:
    """What came back for one request.

    `logprob` is the sum of the natural log-probabilities of `token_ids` (stop string included,
    which `text` is not); `scores` has one natural log-probability for each of the request's
    `score_ids`, or for each of `items`, the catalogue's items that were asked for, best first. `vector` is
    what a request with `embed` asked for, see `pack_vector`. `error` says why there is no answer; then text,
    ids, scores, items and vector are empty.
    """

    key: str
    text: str
    token_ids: tuple[int, ...]
    logprob: float
    scores: tuple[float, ...]
    finish_reason: str
    error: str | None
    meta: dict[str, Any] = field(hash=False)
    items: tuple[int, ...] = ()
    vector: str | None = None


def pack_vector(vector_H: np.ndarray) -> str:
    """Little-endian float32 as base64: exact, and half as long as decimals."""
    return base64.b64encode(vector_H.astype("<f4").tobytes()).decode()


def unpack_vector(packed: str) -> np.ndarray:
    """(H,) in float32."""
    return np.frombuffer(base64.b64decode(packed), dtype="<f4").astype(np.float32)


def dump(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, separators=(",", ":"))


def without_unused(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in LATER or value != LATER[name]}


def request_line(request: Request) -> str:
    return dump(without_unused(asdict(request)))


def requests_text(requests: Iterable[Request]) -> str:
    return "".join(request_line(request) + "\n" for request in requests)


def write_requests(path: Path, requests: Iterable[Request]) -> None:
    atomic_write_text(path, requests_text(requests))


def read_requests(path: Path) -> list[Request]:
    """Requests in file order. Raises UserError naming the file and line that is no request."""
    if not path.is_file():
        raise UserError(f"{path}: no such request file: give one made by write_requests.")
    adapter, lines = TypeAdapter(Request), path.read_text().splitlines()
    return [parse_request(adapter, line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def parse_request(adapter: TypeAdapter[Request], line: str, where: str) -> Request:
    try:
        return adapter.validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"])) or "the line"
        raise UserError(f"{where}: {name}: {problem['msg']}: write the file with write_requests.") from None


def chunk_text(answers: Sequence[Answer]) -> str:
    body = "".join(dump(without_unused(asdict(answer))) + "\n" for answer in answers)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return body + dump({"sha256": digest}) + "\n"


def read_chunk(path: Path) -> list[Answer]:
    """The answers of one chunk file. Raises UserError when its last line does not vouch for the rest."""
    try:
        body, _, trailer = path.read_text().rstrip("\n").rpartition("\n")
        intact = json.loads(trailer)["sha256"] == hashlib.sha256(f"{body}\n".encode()).hexdigest()
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise UserError(f"{path}: the chunk is damaged: run the bulk pass again, it redoes this chunk only.")
    adapter = TypeAdapter(Answer)
    return [adapter.validate_json(line) for line in body.splitlines()]


def read_answers(folder: Path) -> list[Answer]:
    """The answers of a complete pass, one for each request, in request order.

    Equal requests share one answer. Raises UserError when the pass is unfinished or damaged.
    """
    try:
        read_manifest(folder)
        answers = {answer.key: answer for path in sorted(folder.glob(CHUNKS)) for answer in read_chunk(path)}
        return [answers[request.key] for request in read_requests(folder / REQUESTS)]
    except (UserError, KeyError) as error:
        raise UserError(
            f"{folder}: no complete bulk pass ({error}): run the pass again, whole chunks are kept."
        ) from None
