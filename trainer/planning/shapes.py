"""How large a decoder is, from its dimensions: parameters, FLOPs, cache, activations.

Shapes in formulas: h hidden width, f MLP width, q = heads * head width, k = key-value heads * head
width, a heads, L layers, V vocabulary, s tokens of a sample, e bytes of a weight.

Activations of a layer and token, after Korthikanti et al. 2022 ("Reducing Activation Recomputation
in Large Transformer Models", section 4), recounted for transformers' code with an attention that
keeps no scores. A frozen linear layer needs its weight alone for the gradient to its input, so the
inputs of the linear layers, which training keeps, are not kept there. Tensor parallelism divides what is
between a layer's column- and row-parallel halves, heads and MLP, and leaves what norms read whole
(section 4.2 there).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """LLaMA's shape: gated MLP, RMS norms and no biases (Qwen2's add under 0.1 %)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    positions: int
    tied: bool = False
    head_width: int | None = None

    @property
    def query_width(self) -> int:
        return self.heads * (self.head_width or self.hidden // self.heads)

    @property
    def key_width(self) -> int:
        return self.query_width // self.heads * self.kv_heads

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Width of input and output of a layer's linear layers, by name."""
        narrow, wide = (self.hidden, self.key_width), (self.hidden, self.intermediate)
        return {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": narrow,
            "v_proj": narrow,
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": wide,
            "up_proj": wide,
            "down_proj": wide[::-1],
        }

    @property
    def layer_parameters(self) -> int:
        """2hq + 2hk (attention) + 3hf (MLP) + 2h (norms)."""
        return sum(inputs * outputs for inputs, outputs in self.linear_layers.values()) + 2 * self.hidden

    @property
    def parameters(self) -> int:
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    @property
    def largest_parameter(self) -> int:
        """The biggest single weight: what ZeRO-3 gathers and reduces in one piece."""
        return self.hidden * max(self.vocab, self.intermediate, self.query_width)

    def layer_activations(self, element: int, frozen: bool, tensor: int = 1) -> int:
        """Bytes that one layer keeps of one token for the backward pass, on one of `tensor` ranks.

        Two norms 8h (the fp32 input) and, trained, 4eh (the normalised, the scaled); attention
        e (2q + 2k) + 4a (q, k, v, output) and eq (the output's copy); MLP 3ef and ef (the last linear
        layer's input); statistics 8.
        """
        inputs = 0 if frozen else self.query_width + self.intermediate
        divided = 2 * (self.query_width + self.key_width) + 3 * self.intermediate + inputs
        whole = 0 if frozen else 4 * self.hidden
        parts = (4 * self.heads + element * divided) // tensor
        return 8 * self.hidden + 8 + element * whole + parts

    def cache_bytes(self, element: int) -> int:
        """Key-value cache of one token: 2 L k elements."""
        return 2 * self.layers * self.key_width * element

    def training_flops(
        self, tokens: float, sample_tokens: float, answer_share: float, frozen: bool = False
    ) -> float:
        """FLOPs of forward and backward, recomputation not counted (Kaplan et al. 2020, table 1).

        6 a layer parameter and token, 6 L q s a token for causal attention inside samples, and 6 V h
        for each answer token: elsewhere no logits are made. A frozen model has no gradients of weights,
        which leaves 4 of the 6 where there is a weight.
        """
        each = 4 if frozen else 6
        layers = self.layers * (each * self.layer_parameters + 6 * self.query_width * sample_tokens)
        return tokens * (layers + each * self.vocab * self.hidden * answer_share)


@dataclass(frozen=True)
class OptSize(ModelSize):
    """OPT's shape: two linear layers for an MLP, layer norms before, biases, learned positions."""

    tied: bool = True

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        square, wide = (self.hidden, self.hidden), (self.hidden, self.intermediate)
        attention = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), square)
        return {**attention, "fc1": wide, "fc2": wide[::-1]}

    @property
    def layer_parameters(self) -> int:
        """4hh (attention) + 2hf (MLP), their biases, 4h (norms)."""
        linear = sum(inputs * outputs + outputs for inputs, outputs in self.linear_layers.values())
        return linear + 4 * self.hidden

    @property
    def parameters(self) -> int:
        """The table of positions has two rows more than positions."""
        embeddings = self.vocab * (1 if self.tied else 2) + self.positions + 2
        return self.layers * self.layer_parameters + self.hidden * (embeddings + 2)

    def layer_activations(self, element: int, frozen: bool, tensor: int = 1) -> int:
        """Norms 2eh (their inputs) and 4e (statistics), attention 4eh + 4a, MLP ef; trained, 3eh beside
        (the inputs of the queries, of the output and of the MLP)."""
        whole = (2 if frozen else 4) * self.hidden + 4
        divided = (4 if frozen else 5) * self.hidden + self.intermediate
        return element * whole + (element * divided + 4 * self.heads) // tensor


@dataclass(frozen=True)
class GlmSize(ModelSize):
    """GLM-4's shape: LLaMA's with gate and up in one weight, and biases of queries, keys and values.

    norms: of a layer; 4 where they stand behind each part too (GLM-4-0414).
    """

    attention_bias: bool = True
    norms: int = 2

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        layers = super().linear_layers
        kept = {name: layers[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        return {
            **kept,
            "gate_up_proj": (self.hidden, 2 * self.intermediate),
            "down_proj": layers["down_proj"],
        }

    @property
    def layer_parameters(self) -> int:
        linear = sum(inputs * outputs for inputs, outputs in self.linear_layers.values())
        biases = self.query_width + 2 * self.key_width if self.attention_bias else 0
        return linear + biases + self.norms * self.hidden

    @property
    def largest_parameter(self) -> int:
        return self.hidden * max(self.vocab, 2 * self.intermediate, self.query_width)

    def layer_activations(self, element: int, frozen: bool, tensor: int = 1) -> int:
        """LLaMA's; sine and cosine, which each layer makes anew for half of a head, e q / a; for each norm
        more 4h (the fp32 input), a statistic and, trained, eh (the normalised: no linear layer reads it)."""
        turned = element * self.query_width // self.heads
        norm = 4 * self.hidden + 4 + (0 if frozen else element * self.hidden)
        return super().layer_activations(element, frozen, tensor) + turned + (self.norms - 2) * norm
