"""The flash kernels that ship with torch, behind two calls: attention with its log-sum-exp, and its gradient.

Both work on rows cut into consecutive spans; piece i of the queries sees piece i of the keys. The CPU runs one call
per run of equal spans, a GPU one call for the whole row (FlashAttention-2 inside torch, or FlashAttention-3 once
`torch.nn.attention.activate_flash_attention_impl("FA3")` was called, which needs the flash-attn package).

The gradient call takes output and log-sum-exp from outside. When they belong to a softmax over more keys than the
ones given, the result is exactly the part of the gradient that flows through these keys: with p = exp(score - lse) the
score gradient is p * (grad . v - grad . out), and both `lse` and `out` are those of the whole softmax. Ring attention
rests on the same fact (Liu et al., 2023).

Dimensions: `H` heads, `K` key-value heads (a divisor of H), `T` queries, `S` keys, `D` head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Lengths of consecutive spans of a row."""

    lengths: tuple[int, ...]
    """At least 1 each."""
    offsets: Tensor | None
    """[spans + 1] int32 start of every piece and end of the last, on the GPU; None on the CPU."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Spans:
        """Spans of these lengths for rows on the device."""
        offsets = None
        if device.type != "cpu":
            offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(tuple(lengths), offsets)

    def runs(self) -> Iterator[tuple[slice, int]]:
        """Runs of equal lengths: the stretch of the row and the number of spans in it."""
        start = 0
        for length, same in groupby(self.lengths):
            count = len(list(same))
            yield slice(start, start + count * length), count
            start += count * length


def unsupported_reason(device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """Why the kernels cannot run on such tensors, or None if they can."""
    if device.type == "cpu":
        known = (torch.float32, torch.bfloat16, torch.float64)
        return None if dtype in known else f"the CPU flash kernel does not know {dtype}"
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
    """Softmax attention within every piece, and the log-sum-exp of its scores.

    Args:
        q: [1, H, T, D].
        k: [1, K, S, D].
        v: [1, K, S, D].
        queries: spans of T.
        keys: as many spans of S, and equal runs of them in the same places.
        causal: query i of a piece sees the keys up to i of its piece; needs equal spans.
        scale: factor on the scores.

    Returns:
        [1, H, T, D] and [1, H, T] fp32.
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
    parts = [
        _aten._scaled_dot_product_flash_attention_for_cpu(
            _stacked(q, q_run, count), _stacked(k, k_run, count), _stacked(v, k_run, count), 0.0, causal, scale=scale
        )
        for (q_run, count), (k_run, _) in zip(queries.runs(), keys.runs(), strict=True)
    ]
    out, lse = (list(column) for column in zip(*parts, strict=True))
    return _joined(out), _joined([x.unsqueeze(-1) for x in lse]).squeeze(-1)


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
    """Gradients for q, k and v; `out` and `lse` may come from a softmax over these keys and others."""
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
    parts = []
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
    """Attention over the union of two disjoint sets of keys from the attention over each, in the dtype of `out`."""
    merged_lse = torch.logaddexp(lse, other_lse)
    share = (other_lse - merged_lse).exp().unsqueeze(-1)
    if out.dtype == torch.bfloat16:
        return torch.lerp(out.float(), other.float(), share).to(out.dtype), merged_lse
    return torch.lerp(out, other, share.to(out.dtype)), merged_lse


def _token_major(x: Tensor) -> Tensor:
    """[1, H, T, D] -> [T, H, D], the layout of the CUDA kernels."""
    return x.squeeze(0).transpose(0, 1)


def _head_major(x: Tensor) -> Tensor:
    """[T, H, D] -> [1, H, T, D]."""
    return x.transpose(0, 1).unsqueeze(0)


def _stacked(x: Tensor, run: slice, count: int) -> Tensor:
    """A view of `count` equal spans: [1, H, T, D] -> [count, H, piece, D]."""
    return x[0, :, run].unflatten(1, (count, -1)).transpose(0, 1)


def _joined(parts: list[Tensor]) -> Tensor:
    """Undo `_stacked` and lay the runs one after the other: [count, H, piece, D] each -> [1, H, T, D]."""
    rows = [part.transpose(0, 1).flatten(1, 2) if part.shape[0] > 1 else part.squeeze(0) for part in parts]
    return (rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)).unsqueeze(0)
