"""How much memory a rank takes on its device, predicted from the shape of the model alone.

Known of the learner's own update: its tensors were counted on the meta device for Qwen2 models of 1.5B to 32B, rows of
17,500 to 40,000 tokens, with and without checkpointing, and the formulas below were solved from these counts; they
agree to 1 %. Parts that belong to ZeRO-3 are its definitions. Not measured on a GPU yet.

T tokens of a row on this rank, L layers, h hidden width, i width of the MLP, k width of all keys of a token, H heads,
V vocabulary, w bytes of a weight:

    kept for the backward pass    T L h w                        layer inputs, with checkpointing
                                  T L (w (4 i + 10 h + 2 k) + 4 H)   without
    while a layer goes back       T w (6 i + 12 h + 2 k)         recomputed and its gradients, with checkpointing
                                  T w (2 i + 2 h)                without: its gradients
    while the head goes back      T 5 h w + V h (w + 4) + tiles  the gradient of the head is summed in fp32
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

TILE_BYTES = 2 * 4 << 26
"""Logits of one tile of the head in fp32, which is held twice on a GPU (`learner.forward.logprobs`)."""
LIVE_ELEMENTS = 10**9
"""Weights that ZeRO-3 keeps gathered, since they are used again soon (`stage3_max_live_parameters` of DeepSpeed)."""
BUCKET_BYTES = 2 * 4 * 50_000_000
"""Two buckets of gradients in fp32, one filling while the other is reduced (`learner.zero3.config`)."""
ROW_BYTES_PER_TOKEN = 700
"""Rotary tables, ids, positions and log-sum-exps of a token."""
CONTEXT_BYTES = 2 << 30
"""CUDA context, NCCL's buffers and workspaces of kernels; assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder of the Qwen2, Qwen3 or Llama family, by the sizes of its matrices."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    ties_embeddings: bool
    """Whether embedding and head are one matrix."""

    @property
    def layer_weights(self) -> int:
        """Weights of a layer, without biases and norms."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return self.hidden * (2 * queries + 2 * keys + 3 * self.mlp)

    @property
    def weights(self) -> int:
        """Weights of the model, without biases and norms, which are less than 0.1 % of them."""
        tables = 1 if self.ties_embeddings else 2
        return self.layers * self.layer_weights + tables * self.vocabulary * self.hidden

    @property
    def key_width(self) -> int:
        """Keys of a token in one layer; its values are as many."""
        return self.kv_heads * self.head_width


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBytes:
    """Bytes on the device of a rank, by what takes them."""

    weights: int
    """Its part of the weights; 0 if they are in host memory."""
    gradients: int
    """Its part of the gradients, in fp32; 0 with the optimizer in host memory."""
    optimizer: int
    """Its part of fp32 weights and two moments; 0 if they are in host memory."""
    reference: int
    """Its part of the reference policy that the loss needs."""
    gathered: int
    """Whole weights of the layers in use; 0 where the rank holds them all anyway."""
    reduced: int
    """Gradients of a layer before they are shared out, and the buckets through which that goes."""
    activations: int
    """At the peak of the update of one row."""
    context: int
    """What is taken before the first tensor; assumed, so a comparison with a card leaves it out."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def tensors(self) -> int:
        """All but the context."""
        return self.total - self.context


def rank_bytes(
    shape: ModelShape,
    *,
    row_tokens: int,
    num_ranks: int,
    sequence_parallel: int = 1,
    weight_bytes: int = 2,
    checkpointing: bool = False,
    offload: Collection[str] = (),
    has_reference: bool = False,
) -> RankBytes:
    """Return what a rank takes on its device in the update of a row.

    Args:
        shape: of the model.
        row_tokens: of the longest row, shared prompts counted once.
        num_ranks: that share weights, gradients and optimizer.
        sequence_parallel: ranks that share the row.
        weight_bytes: 2 for bf16, 4 for fp32.
        checkpointing: recompute a layer in the backward pass.
        offload: `optimizer`, `parameters`, `activations`: what is in host memory.
        has_reference: the KL to a reference policy is in the loss.
    """
    part = -(-shape.weights // num_ranks)
    on_host = {kind: kind in offload for kind in ("optimizer", "parameters", "activations")}
    table = shape.vocabulary * shape.hidden
    live = min(shape.weights, max(LIVE_ELEMENTS, table, 2 * shape.layer_weights))
    return RankBytes(
        weights=0 if on_host["parameters"] else weight_bytes * part,
        gradients=0 if on_host["optimizer"] else 4 * part,
        optimizer=0 if on_host["optimizer"] else 12 * part,
        reference=weight_bytes * part if has_reference else 0,
        gathered=weight_bytes * live if num_ranks > 1 or on_host["parameters"] else 0,
        reduced=weight_bytes * shape.layer_weights + BUCKET_BYTES,
        activations=activation_bytes(
            shape,
            tokens=-(-row_tokens // sequence_parallel),
            weight_bytes=weight_bytes,
            checkpointing=checkpointing,
            inputs_on_host=on_host["activations"],
        ),
        context=CONTEXT_BYTES,
    )


def activation_bytes(
    shape: ModelShape, *, tokens: int, weight_bytes: int = 2, checkpointing: bool, inputs_on_host: bool = False
) -> int:
    """Return the bytes of the activations at their peak in forward and backward pass of a row.

    Args:
        shape: of the model.
        tokens: of the row that are on this rank.
        weight_bytes: size of one activation.
        checkpointing: recompute a layer in the backward pass, and keep its input alone.
        inputs_on_host: those inputs are in host memory, but for the one in use and the next.
    """
    hidden, mlp, keys = shape.hidden, shape.mlp, shape.key_width
    layer_input = hidden * weight_bytes
    if checkpointing:
        kept = (2 if inputs_on_host else shape.layers) * layer_input
        in_a_layer = weight_bytes * (6 * mlp + 12 * hidden + 2 * keys) + ROW_BYTES_PER_TOKEN
    else:
        kept = shape.layers * (weight_bytes * (4 * mlp + 10 * hidden + 2 * keys) + 4 * shape.heads)
        in_a_layer = weight_bytes * (2 * mlp + 2 * hidden) + ROW_BYTES_PER_TOKEN
    in_the_head = 5 * layer_input * tokens + shape.vocabulary * hidden * (weight_bytes + 4) + TILE_BYTES
    return tokens * kept + max(tokens * in_a_layer, in_the_head)
