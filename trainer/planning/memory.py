"""Memory of training under ZeRO and of vLLM, in bytes, by arithmetic.

Shapes in formulas: P parameters, N trained ones, W data-parallel ranks, e bytes of a weight (2 for
bfloat16), T tokens of a row, A answer tokens of a row, V vocabulary. Under tensor parallelism P and V are
one rank's part of the model; what is trained beside a frozen model stays whole.

Model state of one rank (Rajbhandari et al. 2020, "ZeRO", section 3): weights e P, gradients e N,
fp32 master weights and two Adam moments 12 N; stage 1 divides the last by W, stage 2 also the
gradients, stage 3 all. N is P where the model itself is trained; beside a frozen model P counts both.
On top DeepSpeed 0.19 holds, by its defaults:
  - one reduction bucket of 5e8 elements (stages 1 to 3);
  - at stage 3 up to 1e9 gathered parameters and the gradient of the largest single weight; in the forward
    pass, beside what it keeps, 5e7 parameters a second time, as they arrived;
  - in the update the gradients in fp32, 4 bytes a trained parameter of the rank; at stage 3, for 1e9 of them
    at a time, 8 (not seen apart from other peaks, so told high); without ZeRO in float32 5e8 gradients a
    second time, as they travel. Activations are gone by then: the larger of both counts.
Below stage 3 a rank's only row of a step has its gradients when it no longer has its activations.
An offloaded optimizer moves the last 12 N and the divided gradients into main memory, offloaded parameters
the weights that are not gathered. hpZ keeps a second copy of the weights among the ranks of a node. When
layers are divided, a rank holds its part of the model for a moment, before ZeRO-3 divides it: `start`.

Activations of a layer are in shapes.py. With gradient checkpointing each layer keeps its input, and one
layer is recomputed at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from recloom.trainer.planning.shapes import ModelSize

GIB = 2**30
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
BUCKET = 5e8
LIVE = SUB_GROUP = 1e9
PREFETCH = 5e7
HOST_FACTOR = 1.5  # pinned buffers come in powers of two; DeepSpeed's own estimator uses 1.5 too
RESERVE = 0.1  # of the device: CUDA context, NCCL, fragmentation
BULK_TOKENS = 16384  # vLLM's largest batch of prompt tokens on a large GPU


@dataclass(frozen=True)
class SmallParts:
    """What is trained beside a frozen model.

    largest: of its biggest single weight. layer_elements: what it keeps of a token in each layer of the
    model for the backward pass. constants: bytes on every rank that no ZeRO stage divides (item vectors).
    """

    parameters: int
    largest: int
    layer_elements: int = 0
    constants: float = 0.0


@dataclass(frozen=True)
class Setup:
    """What decides the memory of a training rank.

    `row_tokens` T and `answer_tokens` A belong to the longest row; a prompt that is longer than
    `pack_length` has a row of its own, so `longest_prompt` is the least T can be. `block`: of the YAML.
    `small`: None where the model itself is trained. `rows_per_step`: None for more than one a rank.
    `bucket`: elements of a reduction bucket.
    """

    model: ModelSize
    dtype: str
    zero_stage: int
    ranks: int
    row_tokens: int
    answer_tokens: int
    longest_prompt: int
    checkpointing: bool
    offload: bool
    block: str = "training"
    small: SmallParts | None = None
    tensor: int = 1
    offload_parameters: bool = False
    hpz_size: int = 1
    buckets: int = 1
    rows_per_step: int | None = None
    bucket: float = BUCKET

    @property
    def element(self) -> int:
        return BYTES[self.dtype]

    @property
    def data_ranks(self) -> int:
        return max(1, self.ranks // self.tensor)

    @property
    def accumulates(self) -> bool:
        """Whether gradients of a rank's earlier rows are there while it works on the next."""
        return self.rows_per_step is None or self.rows_per_step > self.data_ranks

    @property
    def trained(self) -> int:
        """Parameters that a tensor-parallel rank trains."""
        return self.small.parameters if self.small else self.model.parameters // self.tensor

    @property
    def held(self) -> int:
        small = self.small.parameters if self.small else 0
        return self.model.parameters // self.tensor + small

    def share(self, parameters: int, from_stage: int) -> float:
        """What one rank has of parameters that are divided from a stage on."""
        return parameters / (self.data_ranks if self.zero_stage >= from_stage else 1)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one rank's device, of which not all are there at once: see `total`.

    kept: of `activations`, what is there when the forward pass ends. late: gradients come when activations
    go.
    """

    weights: float
    gradients: float
    optimizer: float
    bucket: float
    gathered: float
    activations: float
    logits: float
    update: float
    constants: float
    start: float = 0.0
    prefetch: float = 0.0
    kept: float = 0.0
    late: bool = False

    @property
    def total(self) -> float:
        """The most at one time: before the start, in the forward or the backward pass, or in the update."""
        state = self.weights + self.optimizer + self.bucket + self.constants
        early = 0.0 if self.late else self.gradients
        forward = early + self.gathered + self.prefetch + self.kept
        backward = early + self.gathered + self.activations + self.logits
        return max(self.start, state + max(forward, backward, self.gradients + self.update))

    def parts(self) -> dict[str, float]:
        """What to tell; `kept` is a part of activations."""
        names = [field.name for field in fields(self) if field.name not in ("kept", "late")]
        return {name: getattr(self, name) for name in names}


def training_memory(setup: Setup) -> TrainingMemory:
    model, element, on_device = setup.model, setup.element, not setup.offload
    has_master = setup.dtype != "float32" or setup.zero_stage > 0
    updated = setup.share(setup.trained, 1)
    gradients = element * setup.share(setup.trained, 2)
    secondary = setup.held / setup.hpz_size if setup.hpz_size > 1 else 0.0
    primary = 0.0 if setup.offload_parameters else setup.share(setup.held, 3)
    return TrainingMemory(
        weights=element * (primary + secondary),
        gradients=gradients if on_device or setup.zero_stage < 2 else 0.0,
        optimizer=(12 if has_master else 8) * updated if on_device else 0.0,
        bucket=setup.buckets * element * setup.bucket if setup.zero_stage > 0 else 0.0,
        activations=activation_bytes(setup),
        logits=setup.answer_tokens * model.vocab // setup.tensor * (8 + 2 * element),
        update=update_bytes(setup) if on_device else 0.0,
        constants=setup.small.constants if setup.small else 0.0,
        late=setup.zero_stage < 3 and not setup.accumulates,
        **gathered_bytes(setup),
    )


def gathered_bytes(setup: Setup) -> dict[str, float]:
    """What ZeRO-3 has beside its own part: weights in use, what the forward pass keeps beside those that just
    came, and the whole of what is divided late."""
    if setup.zero_stage < 3:
        return {"gathered": 0.0}
    element, held = setup.element, setup.held
    largest = setup.small.largest if setup.small else setup.model.largest_parameter // setup.tensor
    inputs = activation_bytes(setup, recomputed=False) if setup.checkpointing else activation_bytes(setup)
    return {
        "gathered": element * (min(held, LIVE) + largest),
        "prefetch": element * min(held, PREFETCH),
        "kept": inputs,
        "start": float(element * held) if setup.tensor > 1 else 0.0,
    }


def update_bytes(setup: Setup) -> float:
    """Beside the gradients, while the weights are updated."""
    updated = setup.share(setup.trained, 1)
    if setup.zero_stage > 0:
        return 8 * min(updated, SUB_GROUP) if setup.zero_stage == 3 else 4 * updated
    return setup.element * min(updated, BUCKET) if setup.dtype == "float32" else 8 * updated  # not measured


def activation_bytes(setup: Setup, recomputed: bool = True) -> int:
    """All layers' activations, or their inputs and one layer's; embedding and last norm with them.

    recomputed: with that layer, as in the backward pass.
    """
    model, element, small = setup.model, setup.element, setup.small
    one = model.layer_activations(element, small is not None, setup.tensor)
    one += element * small.layer_elements if small else 0
    width = element * model.hidden
    layers = model.layers * width + one * recomputed if setup.checkpointing else model.layers * one
    return setup.row_tokens * (layers + 3 * width + 4 * model.hidden)


def host_bytes(setup: Setup, ranks_per_node: int) -> float:
    """Main memory of a node for what is offloaded, with slack: of an optimizer 12 N state and 4 + e N
    gradients, of parameters e P."""
    held = (16 + setup.element) * setup.share(setup.trained, 1) if setup.offload else 0.0
    held += setup.element * setup.share(setup.held, 3) if setup.offload_parameters else 0.0
    return HOST_FACTOR * held * ranks_per_node


@dataclass(frozen=True)
class BulkMemory:
    """Bytes of a vLLM engine on one GPU of a tensor-parallel group."""

    weights: float
    working: float
    cache: float

    @property
    def fits(self) -> bool:
        return self.cache > 0


def bulk_memory(model: ModelSize, dtype: str, device_bytes: float, tensor_parallel: int) -> BulkMemory:
    """What the weights and the largest batch of prompt tokens leave to the key-value cache."""
    element = BYTES[dtype]
    weights = element * model.parameters / tensor_parallel
    wide = 2 * model.intermediate / tensor_parallel + 6 * model.hidden
    working = element * BULK_TOKENS * wide
    return BulkMemory(weights, working, device_bytes - weights - working)


def cached_tokens(model: ModelSize, dtype: str, memory: BulkMemory, tensor_parallel: int) -> int:
    """Tokens that the key-value cache of a tensor-parallel group holds."""
    return int(max(memory.cache, 0.0) * tensor_parallel / model.cache_bytes(BYTES[dtype]))


def needed_tensor_parallel(model: ModelSize, dtype: str, device_bytes: float, sequence: int) -> int | None:
    """The fewest GPUs, a power of two that divides the key-value heads, that hold one longest sequence."""
    size = 1
    while model.kv_heads % size == 0 and size <= model.kv_heads:
        memory = bulk_memory(model, dtype, device_bytes, size)
        if memory.fits and cached_tokens(model, dtype, memory, size) >= sequence:
            return size
        size *= 2
    return None
