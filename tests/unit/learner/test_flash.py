import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from learner.attention.flash import Spans, attend, attend_backward, merge, unsupported_reason

CPU = torch.device("cpu")


def _random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def _qkv(queries, keys, heads=4, kv_heads=2, width=8):
    torch.manual_seed(0)
    return _random(1, heads, queries, width), _random(1, kv_heads, keys, width), _random(1, kv_heads, keys, width)


def test_attention_stays_within_its_piece():
    q, k, v = _qkv(9, 9)
    spans = Spans((3, 3, 1, 2), CPU)
    out, lse = attend(q, k, v, spans, spans, causal=True, scale=0.5)
    start = 0
    for length in spans.lengths:
        here = slice(start, start + length)
        expected = scaled_dot_product_attention(
            q[:, :, here], k[:, :, here], v[:, :, here], is_causal=True, scale=0.5, enable_gqa=True
        )
        torch.testing.assert_close(out[:, :, here], expected)
        start += length
    assert lse.shape == (1, 4, 9)


def test_equal_neighbours_run_together():
    assert list(Spans((3, 3, 1, 2, 2), CPU).runs()) == [(slice(0, 6), 2), (slice(6, 7), 1), (slice(7, 11), 2)]


def test_merging_two_halves_of_the_keys_is_attention_over_all_of_them():
    q, k, v = _qkv(5, 12)
    queries = Spans((5,), CPU)
    parts = []
    for keys in (slice(0, 4), slice(4, 12)):
        spans = Spans((keys.stop - keys.start,), CPU)
        parts.append(attend(q, k[:, :, keys], v[:, :, keys], queries, spans, causal=False, scale=0.3))
    out, lse = merge(*parts[0], *parts[1])
    whole, whole_lse = attend(q, k, v, queries, Spans((12,), CPU), causal=False, scale=0.3)
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(lse, whole_lse)


def test_the_backward_with_merged_output_gives_each_part_of_the_gradient():
    q, k, v = _qkv(5, 12)
    queries, keys = Spans((5,), CPU), Spans((12,), CPU)
    grad = _random(1, 4, 5, 8)
    out, lse = attend(q, k, v, queries, keys, causal=False, scale=0.3)
    dq, dk, dv = attend_backward(grad, q, k, v, out, lse, queries, keys, causal=False, scale=0.3)
    part_dq = torch.zeros_like(q)
    for part in (slice(0, 4), slice(4, 12)):
        spans = Spans((part.stop - part.start,), CPU)
        step = attend_backward(grad, q, k[:, :, part], v[:, :, part], out, lse, queries, spans, causal=False, scale=0.3)
        part_dq += step[0]
        torch.testing.assert_close(step[1], dk[:, :, part])
        torch.testing.assert_close(step[2], dv[:, :, part])
    torch.testing.assert_close(part_dq, dq)


def test_bf16_halves_merge_in_fp32():
    q, k, v = (x.bfloat16() for x in _qkv(5, 12))
    queries = Spans((5,), CPU)
    first = attend(q, k[:, :, :6], v[:, :, :6], queries, Spans((6,), CPU), causal=False, scale=0.3)
    second = attend(q, k[:, :, 6:], v[:, :, 6:], queries, Spans((6,), CPU), causal=False, scale=0.3)
    out, lse = merge(*first, *second)
    whole, _ = attend(q, k, v, queries, Spans((12,), CPU), causal=False, scale=0.3)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out, whole, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "reason"),
    [
        ("cpu", torch.float32, 7, None),
        ("cpu", torch.int8, 64, "torch.int8"),
        ("cuda", torch.bfloat16, 128, None),
        ("cuda", torch.float32, 128, "bf16"),
        ("cuda", torch.bfloat16, 100, "multiple of 8"),
        ("meta", torch.bfloat16, 64, "device meta"),
    ],
)
def test_what_the_kernels_cannot_do_has_a_reason(device, dtype, width, reason):
    found = unsupported_reason(torch.device(device), dtype, width)
    assert found is None if reason is None else reason in found
