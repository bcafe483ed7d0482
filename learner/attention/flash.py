"""The flash kernels that ship with torch, behind two calls: attention with its log-sum-exp, and its gradient.

Both work on rows cut into consecutive spans; span i of the queries attends to span i of the keys. The CPU makes one
call per run of equally long spans, a GPU one call for the whole row: FlashAttention-2 inside torch, or FlashAttention-3
where `learner.attention.kernels` has activated it.

The gradient call takes output and log-sum-exp as arguments. When they belong to a softmax over more keys than those
given, the result is exactly the part of the gradient that flows through the given keys: with p = exp(score - lse) the
score gradient is p * (grad . v - grad . out), and both `lse` and `out` are those of the whole softmax. Ring attention
uses the same identity (Liu et al., 2023).

Dimensions: `H` heads, `K` key-value heads (a divisor of H), `T` queries, `S` keys, `D` head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

_aten: Any = torch.ops.aten


class Spans:
    """Consecutive spans of a row, for kernels on one device."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """Take the length of every span, at least 1 each."""
        self.lengths = tuple(lengths)
        self.offsets: Tensor | None = None
        """[spans + 1] int32 start of every span and end of the last, on the GPU; None on the CPU."""
        if device.type != "cpu":
            self.offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    def runs(self) -> Iterator[tuple[slice, int]]:
        """Yield every run of equally long spans: its part of the row, and the number of spans in it."""
        start = 0
        for length, same in groupby(self.lengths):
            count = len(list(same))
            yield slice(start, start + count * length), count
            start += count * length


def unsupported_reason(device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """Return why the kernels cannot run on such tensors, or None if they can."""
    if device.type == "cpu":
        known = (torch.float32, torch.bfloat16, torch.float64)
        return None if dtype in known else f"the CPU flash kernel does not support {dtype}"
    if device.type != "cuda":
        return f"there is no flash kernel for device {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the CUDA flash kernel needs bf16, not {dtype}"
    if head_width % 8 or head_width > 256:
        return f"the CUDA flash kernel needs a head width that is a multiple of 8 up to 256, not {head_width}"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, queries: Spans, keys: Spans, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute softmax attention within every span, and the log-sum-exp of its scores.

    Args:
        q: [1, H, T, D].
        k: [1, K, S, D].
        v: [1, K, S, D].
        queries: spans of T.
        keys: as many spans of S; runs of equal lengths must be at the same indices as in `queries`.
        causal: query i of a span attends to the keys 0 to i of its span; the spans of keys are then those of queries.
        scale: factor on the scores.

    Returns:
        output [1, H, T, D] and log-sum-exp [1, H, T] fp32.
    """
    if queries.offsets is not None:
        out, lse, *_ = _aten._flash_attention_forward(
            *map(_token_major, (q, k, v)),
            queries.offsets,
            keys.offsets,
            max(queries.lengths),
            max(keys.lengths),
            0.0,
            causal,
            False,
            scale=scale,
        )
        return _head_major(out), lse.unsqueeze(0)
    parts: list[tuple[Tensor, Tensor]] = [
        _aten._scaled_dot_product_flash_attention_for_cpu(
            _stacked(q, q_run, count), _stacked(k, k_run, count), _stacked(v, k_run, count), 0.0, causal, scale=scale
        )
        for (q_run, count), (k_run, _) in zip(queries.runs(), keys.runs(), strict=True)
    ]
    return _joined([out for out, _ in parts]), _joined([lse.unsqueeze(-1) for _, lse in parts]).squeeze(-1)


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: Spans,
    keys: Spans,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v.

    `out` and `lse` may come from a softmax over these keys and others; the other arguments are those of `attend`.
    """
    if queries.offsets is not None:
        gradients = _aten._flash_attention_backward(
            *map(_token_major, (grad, q, k, v, out)),
            lse.squeeze(0).contiguous(),
            queries.offsets,
            keys.offsets,
            max(queries.lengths),
            max(keys.lengths),
            0.0,
            causal,
            torch.zeros(2, dtype=torch.uint64, device=q.device),  # random state of a dropout that is off
            torch.empty(0, device=q.device),
            scale=scale,
        )
        dq, dk, dv = map(_head_major, gradients)
        return dq, dk, dv
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for (q_run, count), (k_run, _) in zip(queries.runs(), keys.runs(), strict=True):
        grad_run, own_q, own_out = (_stacked(x, q_run, count) for x in (grad, q, out))
        own_k, own_v = (_stacked(x, k_run, count) for x in (k, v))
        own_lse = _stacked(lse.unsqueeze(-1), q_run, count).squeeze(-1).contiguous()
        parts.append(
            _aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_run, own_q, own_k, own_v, own_out, own_lse, 0.0, causal, scale=scale
            )
        )
    dq, dk, dv = (_joined(list(column)) for column in zip(*parts, strict=True))
    return dq, dk, dv


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Combine the attention over two disjoint sets of keys into that over their union.

    Args:
        out: [1, H, T, D] attention over the first set.
        lse: [1, H, T] fp32 log-sum-exp of its scores.
        other: [1, H, T, D] attention over the second set.
        other_lse: [1, H, T] fp32 log-sum-exp of its scores.

    Returns:
        output in the dtype of `out`, and log-sum-exp.
    """
    merged_lse = torch.logaddexp(lse, other_lse)
    share = (other_lse - merged_lse).exp().unsqueeze(-1)
    if out.dtype == torch.bfloat16:
        return torch.lerp(out.float(), other.float(), share).to(out.dtype), merged_lse
    return torch.lerp(out, other, share.to(out.dtype)), merged_lse


def _token_major(x: Tensor) -> Tensor:
    """Rearrange [1, H, T, D] to [T, H, D], the layout of the CUDA kernels."""
    return x.squeeze(0).transpose(0, 1)


def _head_major(x: Tensor) -> Tensor:
    """Rearrange [T, H, D] to [1, H, T, D]."""
    return x.transpose(0, 1).unsqueeze(0)


def _stacked(x: Tensor, run: slice, count: int) -> Tensor:
    """View the `count` equal spans of a run as a batch: [1, H, T, D] to [count, H, span, D]."""
    return torch.unflatten(x[0, :, run], 1, (count, -1)).transpose(0, 1)


def _joined(parts: list[Tensor]) -> Tensor:
    """Undo `_stacked` and concatenate the runs: [count, H, span, D] each, to [1, H, T, D]."""
    rows = [part.transpose(0, 1).flatten(1, 2) if part.shape[0] > 1 else part.squeeze(0) for part in parts]
    return (rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)).unsqueeze(0)
