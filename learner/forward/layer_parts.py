"""A decoder layer on rows that are too large for it: in parts, which are computed again in the backward pass.

The parts of a row are its prompts, and then its responses in batches; a row that is forwarded whole is one part. In
every layer

1. the prompts go through first and leave their keys and values for the responses;
2. the batches of responses go through one after the other, each against the keys and values of the prompts.

Only the input of the layer is kept. The backward pass of a layer computes its prompts again; then every batch, whose
gradient it takes at once, which leaves a share for the keys and values of the prompts; then it takes the gradient of
the prompts. Shares and gradients of weights are summed up over the parts in fp32.

The result is that of the whole row at once. The memory is that of one layer on the prompts and the largest batch, and
the inputs of all layers, which for a row in parts lie in host memory. ZeRO-3 sees a layer as one module: it gathers the
weights once per pass, whatever the number of parts, and reduces their gradient once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curriculum.errors import UserError
from learner.attention.shared_prefix import PrefixCache
from learner.forward.host_copy import HostCopies
from learner.forward.row_tensors import RowPart


def run_layers_in_parts(decoder: nn.Module, *, recompute: bool, offload: bool) -> None:
    """Make the layers of a transformers decoder take rows in parts, as the keyword argument `row_parts`.

    Args:
        decoder: its layers are in `layers`; names of parameters do not change.
        recompute: keep only the input of each layer for whole rows too, and compute the rest again.
        offload: keep these inputs in host memory for whole rows too.

    Raises:
        UserError: it has no such layers.
    """
    layers: Any = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"{type(decoder).__name__}: has no list of layers; use a Qwen2, Qwen3 or Llama model")
    copies = HostCopies()
    for layer in layers:
        in_parts: Any = _LayerInParts(layer, copies, recompute=recompute, offload=offload)
        layer.forward = in_parts
        setattr(layer, "_z3_leaf", True)  # of DeepSpeed: gather and reduce the whole layer  # noqa: B010


class _LayerInParts:
    """Takes the place of the `forward` of a layer."""

    def __init__(self, layer: nn.Module, copies: HostCopies, *, recompute: bool, offload: bool) -> None:
        self.layer = layer
        self.copies = copies
        self._forward: Callable[..., Tensor] = layer.forward
        self._recompute = recompute
        self._offload = offload

    def __call__(self, hidden: Tensor, *, row_parts: Sequence[RowPart], **inputs: Any) -> Tensor:
        """Compute the layer.

        Args:
            hidden: [1, T, H].
            row_parts: of the T tokens.
            **inputs: what transformers gives to each of its layers.
        """
        has_gradient = torch.is_grad_enabled() and hidden.requires_grad
        if len(row_parts) == 1 and not (has_gradient and self._recompute):
            return self.part(hidden, row_parts[0], None, inputs)
        if not has_gradient:
            return self.all_parts(hidden, row_parts, inputs)
        function: Any = _RecomputedLayer
        is_offloaded = self._offload or len(row_parts) > 1
        return function.apply(hidden, self, row_parts, inputs, is_offloaded, *self.weights)

    @property
    def weights(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [weight for weight in self.layer.parameters() if weight.requires_grad]

    def part(self, hidden: Tensor, part: RowPart, cache: PrefixCache | None, inputs: dict[str, Any]) -> Tensor:
        """Compute the layer on the tokens of one part, [1, t, H]; the cache is that of the row in this layer."""
        tokens = part.tokens
        own = {
            **inputs,
            "position_ids": inputs["position_ids"][:, tokens],
            "position_embeddings": tuple(x[:, tokens] for x in inputs["position_embeddings"]),
        }
        out = self._forward(hidden, row_layout=part.layout.with_cache(cache), **own)
        if not isinstance(out, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError(
                f"{type(self.layer).__name__}: returns more than a tensor; use a Qwen2, Qwen3 or Llama model"
            )
        return out

    def all_parts(self, hidden: Tensor, row_parts: Sequence[RowPart], inputs: dict[str, Any]) -> Tensor:
        """Compute the layer without gradient."""
        if len(row_parts) == 1:
            return self.part(hidden, row_parts[0], None, inputs)
        cache, out = PrefixCache(), torch.empty_like(hidden)
        for part in row_parts:
            out[:, part.tokens] = self.part(hidden[:, part.tokens], part, cache, inputs)
        return out


class _RecomputedLayer(torch.autograd.Function):
    """A layer that keeps its input only."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        layer: _LayerInParts,
        row_parts: Sequence[RowPart],
        inputs: dict[str, Any],
        is_offloaded: bool,
        *weights: Tensor,
    ) -> Tensor:
        ctx.layer, ctx.row_parts, ctx.inputs = layer, row_parts, inputs
        ctx.copy = layer.copies.put(hidden) if is_offloaded else None
        ctx.save_for_backward(*(() if is_offloaded else (hidden,)))
        return layer.all_parts(hidden, row_parts, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layer: _LayerInParts = ctx.layer
        row_parts: Sequence[RowPart] = ctx.row_parts
        (hidden,) = ctx.saved_tensors if ctx.copy is None else (ctx.copy.take(),)
        cache, sums = PrefixCache(), _GradientSums(layer.weights)

        def again(part: RowPart) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                own = hidden[:, part.tokens].detach().requires_grad_()
                return own, layer.part(own, part, cache, ctx.inputs)

        def back(part: RowPart, own: Tensor, out: Tensor) -> Tensor:
            own_grad, *weight_grads = torch.autograd.grad(
                out, (own, *layer.weights), grad[:, part.tokens], allow_unused=True
            )
            sums.add(weight_grads)
            return own_grad

        prompts, *batches = row_parts
        first = again(prompts)
        grads = [back(part, *again(part)) for part in batches]
        grads.insert(0, back(prompts, *first))
        return torch.cat(grads, dim=1) if batches else grads[0], None, None, None, None, *sums.total()


class _GradientSums:
    """Gradients of weights, summed up over the parts of a row in fp32."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        """Begin with nothing."""
        self._weights = weights
        self._sums: list[Tensor | None] = [None] * len(weights)

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add those of a part; None where a weight was not used."""
        for index, gradient in enumerate(gradients):
            total = self._sums[index]
            if gradient is not None and total is not None:
                gradient = total.to(torch.promote_types(total.dtype, torch.float32)).add_(gradient)
            self._sums[index] = total if gradient is None else gradient

    def total(self) -> list[Tensor | None]:
        """Return the sums in the types of the weights."""
        return [None if x is None else x.to(weight.dtype) for x, weight in zip(self._sums, self._weights, strict=True)]
