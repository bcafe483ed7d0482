"""Attention over rows that hold every prompt once, followed by its responses.

A response token attends to its prompt and to the earlier tokens of its own response, nothing else, so the result equals
that of forwarding each prompt-response pair on its own, up to rounding. The function is registered with `transformers`
under a key of its own and runs inside unmodified Qwen2, Qwen3 and Llama models, which pass the layout of the row on as
a keyword argument.

Forward: causal attention within every prompt and every response; then all responses of a segment at once against their
prompt; both merged by their log-sum-exp. The prompt is not copied for its responses. Backward: the same two calls, each
with the merged output and log-sum-exp, which makes their sum the exact gradient (see `flash`).

A row that does not fit into memory goes through every layer in parts (see `learner.forward.layer_parts`): its prompts,
whose keys and values are kept in a `PrefixCache` of this layer; its responses against the cache, in batches; the
backward pass of the prompts.

Dimensions: `H` heads, `K` key-value heads, `T` tokens of the row, `D` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from learner.attention.flash import Spans, attend, attend_backward, merge
from learner.attention.ulysses import HeadExchange
from learner.batch.microbatch import PrefixSegment

ATTENTION_KEY = "shared_prefix"
"""Value of `attn_implementation` that selects this attention."""


class Pass(StrEnum):
    """Tokens of the segments that a row holds."""

    WHOLE = "whole"
    """Prompts and responses."""
    PROMPTS = "prompts"
    """Prompts only; their keys and values go into the cache."""
    RESPONSES = "responses"
    """Responses only; their prompts are in the cache."""
    DENSE = "dense"
    """One response per prompt, through torch's own attention: the dense path that the others are checked against."""


class PrefixCache:
    """Keys and values of all prompts of a row in one layer, and the sum of their gradients from the responses."""

    def __init__(self) -> None:
        self._states: tuple[Tensor, Tensor] | None = None
        self._gradients: tuple[Tensor, Tensor] | None = None

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Take keys and values, [1, K, prompts, D] each; gradients do not flow back through them."""
        self._states = (key.detach(), value.detach())

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values.

        Raises:
            RuntimeError: the prompts have not been forwarded.
        """
        if self._states is None:
            raise RuntimeError("no prompts in the cache; forward them before their responses")
        return self._states

    def accumulate(self, keys: slice, key_grad: Tensor, value_grad: Tensor) -> None:
        """Add the gradients of one prompt, which holds these keys, in fp32 where the model has less."""
        if self._gradients is None:
            key, value = self.states
            wide = torch.promote_types(key.dtype, torch.float32)
            self._gradients = (torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide))
        for total, part in zip(self._gradients, (key_grad, value_grad), strict=True):
            total[:, :, keys] += part

    def added_to(self, key_grad: Tensor, value_grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of all prompts with those of the responses added."""
        if self._gradients is None:
            return key_grad, value_grad
        keys, values = self._gradients
        return (keys + key_grad).to(key_grad.dtype), (values + value_grad).to(value_grad.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class PromptAttention:
    """Attention of all responses of one segment to their prompt."""

    queries: slice
    """Tokens of the row."""
    keys: slice
    """Tokens of the row, or of the cached prompts."""
    query_spans: Spans
    key_spans: Spans


@dataclass(frozen=True, slots=True, eq=False)
class RowLayout:
    """Which tokens of a row, or of a part of it, attend to which others; made once, used by every layer."""

    which: Pass
    spans: Spans
    """Spans with causal attention inside; they cover the row."""
    prompt_attentions: tuple[PromptAttention, ...]
    cache: PrefixCache | None = None
    """Filled by the prompts of a layer, read by their responses; every layer and pass needs a new one."""
    exchange: HeadExchange | None = None
    """Set where the tokens of the row are spread over several ranks."""

    def with_exchange(self, exchange: HeadExchange | None, padding: int, device: torch.device) -> RowLayout:
        """Return the layout of the same row spread over ranks, with `padding` unused tokens at its end."""
        lengths = (*self.spans.lengths, padding) if padding else self.spans.lengths
        return replace(self, exchange=exchange, spans=Spans(lengths, device))

    def with_cache(self, cache: PrefixCache | None) -> RowLayout:
        """Return the layout of the same row with a cache for the keys and values of its prompts."""
        return replace(self, cache=cache)


def whole_layout(segments: Sequence[PrefixSegment], device: torch.device) -> RowLayout:
    """Return the layout of a row of prompts and responses; segments must cover the row without gaps."""
    lengths = [length for segment in segments for length in _causal_lengths(segment)]
    prompt_attentions = tuple(
        _cross(
            segment.start + segment.prompt_tokens, sum(segment.response_tokens), segment.start, segment.prompt_tokens,
            device,
        )
        for segment in segments
        if len(segment.response_tokens) > 1
    )  # fmt: skip
    return RowLayout(Pass.WHOLE, Spans(lengths, device), prompt_attentions)


def dense_layout(segments: Sequence[PrefixSegment], device: torch.device) -> RowLayout:
    """Return the layout of a row in which every prompt has one response, for torch's own attention.

    Raises:
        ValueError: a segment has several responses.
    """
    if any(len(segment.response_tokens) > 1 for segment in segments):
        raise ValueError("the dense path needs one prompt per response; unshare the plan")
    return replace(whole_layout(segments, device), which=Pass.DENSE)


def prompt_layout(prompt_tokens: Sequence[int], device: torch.device) -> RowLayout:
    """Return the layout of a row of prompts alone, whose keys and values go into a cache."""
    return RowLayout(Pass.PROMPTS, Spans(prompt_tokens, device), ())


def response_layout(
    prompt_tokens: Sequence[int], response_tokens: Sequence[Sequence[int]], device: torch.device
) -> RowLayout:
    """Return the layout of a row of responses whose prompts are in a cache.

    Args:
        prompt_tokens: [S] tokens of every prompt in the cache.
        response_tokens: [S] tokens of each response in this row; empty for a prompt without one.
        device: of the row.
    """
    prompt_attentions: list[PromptAttention] = []
    query = key = 0
    for prompt, responses in zip(prompt_tokens, response_tokens, strict=True):
        if responses:
            prompt_attentions.append(_cross(query, sum(responses), key, prompt, device))
        query, key = query + sum(responses), key + prompt
    lengths = [length for responses in response_tokens for length in responses]
    return RowLayout(Pass.RESPONSES, Spans(lengths, device), tuple(prompt_attentions))


def register() -> None:
    """Register `attn_implementation="shared_prefix"` with transformers.

    No mask function is registered under the key, so transformers builds no mask.
    """
    from transformers import AttentionInterface

    registry: Any = AttentionInterface
    registry.register(ATTENTION_KEY, shared_prefix_attention)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_layout: RowLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Compute the attention of one layer, with the signature of the transformers registry.

    Args:
        module: the attention layer; not used.
        query: [1, H, T, D], rotated.
        key: [1, K, T, D], rotated.
        value: [1, K, T, D].
        attention_mask: must be None; the layout takes its place.
        row_layout: layout of the row, passed to the model as a keyword argument.
        scaling: factor on the scores; None for 1 / sqrt(D).
        dropout: must be 0.
        sliding_window: must be None.
        **kwargs: what transformers passes to every attention function; not used.

    Returns:
        [1, T, H, D] and None in place of attention weights.

    Raises:
        ValueError: a mask, dropout or sliding window was given, which this attention does not support.
    """
    if attention_mask is not None or dropout or sliding_window is not None:
        raise ValueError(
            "shared-prefix attention supports no mask, dropout or sliding window, got "
            f"mask={attention_mask is not None} dropout={dropout} sliding_window={sliding_window}; set "
            "attention_dropout=0 and use_sliding_window=false in the model's config.json"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    exchange = row_layout.exchange
    if exchange is not None:
        query, key, value = exchange.to_heads(query), exchange.to_heads(key), exchange.to_heads(value)
    if row_layout.which is Pass.DENSE:
        out = _torch_attention(query, key, value, row_layout.spans, scale)
    else:
        function: Any = _SharedPrefix
        out: Tensor = function.apply(query, key, value, row_layout, scale)
    if exchange is not None:
        out = exchange.to_tokens(out)
    return out.transpose(1, 2).contiguous(), None


class _SharedPrefix(torch.autograd.Function):
    """Shared-prefix attention with its gradient, as the docstring of the module describes them."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, scale: float) -> Tensor:
        out, lse = attend(q, k, v, layout.spans, layout.spans, causal=True, scale=scale)
        if layout.which is Pass.PROMPTS:
            _cache(layout).fill(k, v)
        prompt_k, prompt_v = _prompt_states(k, v, layout)
        for prompt_attention in layout.prompt_attentions:
            here = prompt_attention.queries
            other, other_lse = attend(
                q[:, :, here],
                prompt_k[:, :, prompt_attention.keys],
                prompt_v[:, :, prompt_attention.keys],
                prompt_attention.query_spans,
                prompt_attention.key_spans,
                causal=False,
                scale=scale,
            )
            out[:, :, here], lse[:, :, here] = merge(out[:, :, here], lse[:, :, here], other, other_lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        layout: RowLayout = ctx.layout
        dq, dk, dv = attend_backward(grad, q, k, v, out, lse, layout.spans, layout.spans, causal=True, scale=ctx.scale)
        prompt_k, prompt_v = _prompt_states(k, v, layout)
        for prompt_attention in layout.prompt_attentions:
            here, there = prompt_attention.queries, prompt_attention.keys
            cross_dq, cross_dk, cross_dv = attend_backward(
                grad[:, :, here],
                q[:, :, here],
                prompt_k[:, :, there],
                prompt_v[:, :, there],
                out[:, :, here],
                lse[:, :, here],
                prompt_attention.query_spans,
                prompt_attention.key_spans,
                causal=False,
                scale=ctx.scale,
            )
            dq[:, :, here] += cross_dq
            if layout.which is Pass.RESPONSES:
                _cache(layout).accumulate(there, cross_dk, cross_dv)
            else:
                dk[:, :, there] += cross_dk
                dv[:, :, there] += cross_dv
        if layout.which is Pass.PROMPTS:
            dk, dv = _cache(layout).added_to(dk, dv)
        return dq, dk, dv, None, None


def _prompt_states(k: Tensor, v: Tensor, layout: RowLayout) -> tuple[Tensor, Tensor]:
    """Return the keys and values in which `PromptAttention.keys` are indices: those of the row, or the cached ones."""
    return _cache(layout).states if layout.which is Pass.RESPONSES else (k, v)


def _cache(layout: RowLayout) -> PrefixCache:
    if layout.cache is None:
        raise ValueError(f"a row of {layout.which} needs a cache; see learner/forward/layer_parts.py")
    return layout.cache


def _torch_attention(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> Tensor:
    columns = zip(*(torch.split(x, list(spans.lengths), dim=2) for x in (q, k, v)), strict=True)
    gqa = q.shape[1] != k.shape[1]
    outs = [scaled_dot_product_attention(*qkv, is_causal=True, scale=scale, enable_gqa=gqa) for qkv in columns]
    return torch.cat(outs, dim=2)


def _causal_lengths(segment: PrefixSegment) -> tuple[int, ...]:
    """Return the lengths of the causal spans of a segment; a single response forms one span with its prompt."""
    if len(segment.response_tokens) == 1:
        return (segment.prompt_tokens + segment.response_tokens[0],)
    return (segment.prompt_tokens, *segment.response_tokens)


def _cross(query: int, num_queries: int, key: int, num_keys: int, device: torch.device) -> PromptAttention:
    return PromptAttention(
        queries=slice(query, query + num_queries),
        keys=slice(key, key + num_keys),
        query_spans=Spans((num_queries,), device),
        key_spans=Spans((num_keys,), device),
    )
