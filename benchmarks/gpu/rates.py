"""What the card reaches on the two kinds of work of an update: products of matrices, and dense flash attention."""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch

from benchmarks.gpu.options import GROUPS, TINY, TINY_GROUPS, Group, add_kernel, is_missing, parse
from benchmarks.line import environment, print_line
from learner.attention.flash import Spans, attend, attend_backward
from tests.harness.meta_learner import SIZES, Size

REPEATS = 5


def main() -> None:
    """Measure, print the line."""
    parser = ArgumentParser(prog="python -m benchmarks.gpu.rates", description=__doc__)
    add_kernel(parser)
    options = parse(parser)
    if is_missing("gpu_rates", options):
        return
    model, groups = (TINY, TINY_GROUPS) if options.tiny else (SIZES["1.5B"], GROUPS)
    for group in groups:
        tokens = group.prompt + group.response
        matmul = matmul_rate(model, tokens, options)
        forward, backward = attention_rates(model, tokens, options)
        detail = {
            "kernel": options.kernel,
            "tokens": tokens,
            "matmul_tflops": matmul / 1e12,
            "attention_forward_tflops": forward / 1e12,
            "attention_backward_tflops": backward / 1e12,
            "ideal_seconds": ideal_seconds(model, group, matmul, forward, backward),
            "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
            "environment": environment("torch"),
        }
        print_line("gpu_rates", [], detail)


def matmul_rate(model: Size, tokens: int, options: Namespace) -> float:
    """FLOP/s of the largest product of a layer."""
    x = torch.randn(tokens, model.hidden, dtype=torch.bfloat16, device=options.device)
    w = torch.randn(model.intermediate, model.hidden, dtype=torch.bfloat16, device=options.device)
    return 2 * tokens * model.hidden * model.intermediate / seconds_of(lambda: x @ w.T, options.device)


def attention_rates(model: Size, tokens: int, options: Namespace) -> tuple[float, float]:
    """FLOP/s of causal attention over one sequence, forward and backward; a pair counts where it is not masked."""
    width = model.hidden // model.heads
    device = torch.device(options.device)

    def heads(count: int) -> torch.Tensor:
        return torch.randn(1, count, tokens, width, dtype=torch.bfloat16, device=device)

    q, k, v, grad = heads(model.heads), heads(model.kv_heads), heads(model.kv_heads), heads(model.heads)
    spans, scale = Spans((tokens,), device), width**-0.5
    out, lse = attend(q, k, v, spans, spans, causal=True, scale=scale)
    forward = seconds_of(lambda: attend(q, k, v, spans, spans, causal=True, scale=scale), options.device)
    backward = seconds_of(
        lambda: attend_backward(grad, q, k, v, out, lse, spans, spans, causal=True, scale=scale), options.device
    )
    flops = 4 * model.hidden * tokens * (tokens + 1) / 2
    return flops / forward, 2.5 * flops / backward


def ideal_seconds(model: Size, group: Group, matmul: float, forward: float, backward: float) -> float:
    """Seconds of a checkpointed update with shared prompt if all of it ran at these rates."""
    shape = group.shape(model)
    attention, rest = shape.shared_attention_flops, shape.shared_flops - shape.shared_attention_flops
    return 4 * rest / matmul + attention * (2 / forward + 2.5 / backward)


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Median time of one call, after one that is not counted."""
    found = []
    for _ in range(REPEATS + 1):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def synchronize(device: str) -> None:
    """Wait for the card."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
