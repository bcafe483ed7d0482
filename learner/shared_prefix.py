"""Attention over rows that hold every prompt once, followed by its responses.

A response token sees its prompt and the earlier tokens of its own response, nothing else, so the result equals
forwarding each prompt-response pair on its own, up to rounding. The function enters the registry of `transformers`
under its own key and runs inside unmodified Qwen2, Qwen3 and Llama models; the layout of the row travels as a keyword.

Per segment: causal attention of the prompt, then one call for all responses, padded to the longest, against
[prompt; own]. Keys behind a query are never visible, so the padding at the end of a response needs no mask of its own.

Dimensions: `H` heads, `T` tokens of the row, `P` prompt tokens, `G` responses, `R` longest response, `D` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from learner.microbatch import PrefixSegment

ATTENTION_KEY = "shared_prefix"
"""Value of `attn_implementation` that selects this attention."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupIndex:
    """Where the tokens of the responses of one segment lie once padded; made once per row, used by every layer."""

    segment: PrefixSegment
    gather_GR: Tensor | None
    """[G * R] index, relative to the first response token, of each padded slot; None where nothing needs padding."""
    scatter: Tensor | None
    """[sum of responses] index of each response token in the padded [G * R]; None where nothing needs padding."""
    mask_RK: Tensor | None
    """[R, P + R] bool, True where the query may look; None for a single response, which is plainly causal."""


@dataclass(frozen=True, slots=True, eq=False)
class RowLayout:
    """The segments of a row with their index tensors."""

    groups: tuple[GroupIndex, ...]
    pieces: tuple[int, ...]
    """Lengths into which each layer splits the row: per segment the prompt and all its responses together, or both as
    one piece for a single response. Slicing instead would cost a gradient of the full row per slice."""


def row_layout(segments: Sequence[PrefixSegment], device: torch.device) -> RowLayout:
    """Index tensors for the attention of one row; segments must cover the row without gaps."""
    groups = tuple(_group_index(segment, device) for segment in segments)
    return RowLayout(groups, tuple(length for group in groups for length in _piece_lengths(group)))


def register() -> None:
    """Make `attn_implementation="shared_prefix"` known to transformers.

    No mask function is registered under the key, and transformers then builds no mask at all.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_KEY, shared_prefix_attention)


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
    """Attention function with the signature of the transformers registry.

    Args:
        module: the attention layer; not used.
        query: [1, H, T, D], rotated.
        key: [1, H_kv, T, D], rotated.
        value: [1, H_kv, T, D].
        attention_mask: must be None; the layout says who sees whom.
        row_layout: layout of the row, passed as keyword to the model.
        scaling: factor on the scores.
        dropout: must be 0.
        sliding_window: must be None.

    Returns:
        [1, T, H, D] and None in place of attention weights.

    Raises:
        ValueError: a mask, dropout or sliding window, which this attention does not have.
    """
    if attention_mask is not None or dropout or sliding_window is not None:
        raise ValueError(
            f"shared-prefix attention has no mask, dropout or sliding window, got mask={attention_mask is not None} "
            f"dropout={dropout} sliding_window={sliding_window}; set attention_dropout=0 and use_sliding_window=false "
            "in the model's config.json"
        )
    queries, keys, values = (iter(x.split(row_layout.pieces, dim=2)) for x in (query, key, value))
    outputs: list[Tensor] = []
    for group in row_layout.groups:
        q, k, v = next(queries), next(keys), next(values)
        outputs.append(_causal(q, k, v, scaling))
        if group.mask_RK is not None:
            own = (next(queries), next(keys), next(values))
            outputs.append(_attend_prompt_and_own(*own, k, v, group, scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _group_index(segment: PrefixSegment, device: torch.device) -> GroupIndex:
    lengths, prompt = segment.response_tokens, segment.prompt_tokens
    if len(lengths) == 1:
        return GroupIndex(segment, None, None, None)
    longest = max(lengths)
    visible_RK = torch.ones(longest, prompt + longest, dtype=torch.bool, device=device).tril(prompt)
    if min(lengths) == longest:
        return GroupIndex(segment, None, None, visible_RK)
    lengths_G = torch.tensor(lengths)
    starts_G = lengths_G.cumsum(0) - lengths_G
    slots_GR = torch.arange(longest).expand(len(lengths), -1)
    gather_GR = (starts_G[:, None] + slots_GR.minimum(lengths_G[:, None] - 1)).flatten()
    scatter = (slots_GR < lengths_G[:, None]).flatten().nonzero().squeeze(1)
    return GroupIndex(segment, gather_GR.to(device), scatter.to(device), visible_RK)


def _piece_lengths(group: GroupIndex) -> tuple[int, ...]:
    prompt, responses = group.segment.prompt_tokens, sum(group.segment.response_tokens)
    return (prompt + responses,) if group.mask_RK is None else (prompt, responses)


def _attend_prompt_and_own(
    q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, group: GroupIndex, scaling: float | None
) -> Tensor:
    """Attention of all responses of a segment, [1, H, sum of responses, D]."""
    own_q, own_k, own_v = (_padded(x, group) for x in (q, k, v))
    count = len(group.segment.response_tokens)
    out = scaled_dot_product_attention(
        own_q,
        _repeat_heads(torch.cat((prompt_k.expand(count, -1, -1, -1), own_k), dim=2), q.shape[1]),
        _repeat_heads(torch.cat((prompt_v.expand(count, -1, -1, -1), own_v), dim=2), q.shape[1]),
        attn_mask=group.mask_RK,
        scale=scaling,
    )
    return _unpadded(out, group)


def _causal(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=k.shape[1] != q.shape[1])


def _padded(x: Tensor, group: GroupIndex) -> Tensor:
    """[1, H, sum of responses, D] -> [G, H, R, D]; the padding repeats the last token, whose output is dropped."""
    if group.gather_GR is not None:
        x = x.index_select(2, group.gather_GR)
    return x.unflatten(2, (len(group.segment.response_tokens), -1)).squeeze(0).transpose(0, 1)


def _unpadded(x: Tensor, group: GroupIndex) -> Tensor:
    """[G, H, R, D] -> [1, H, sum of responses, D]."""
    x = x.transpose(0, 1).flatten(1, 2)
    if group.scatter is not None:
        x = x.index_select(1, group.scatter)
    return x.unsqueeze(0)


def _repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    """Repeat key or value heads up to the query heads; with a mask no fused kernel groups them itself."""
    repeats = num_heads // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)
