"""Loss and gradient through the LM head without all logits: extra memory, and CPU time against the plain way.

Each figure comes from a process of its own: hidden states [T, H], a head [V, H], T labels, the loss
-sum(log-probability * coefficient), its gradients for hidden states and head, and the entropy for the report. They are
in fp32; with `--dtype bf16`, `naive` rounds its logits to bf16, and `ours` does not.

Extra memory is the growth of the peak resident set during the update, less the two gradients themselves. `naive` makes
all logits; `trl` and `verl` are the chunked heads of the peers where an environment has them, else they are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.line import Claim, environment, print_line, say
from learner.forward.logprobs import token_loss

CONSTANT, CPU_RATIO = 1.10, 1.3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRL_CHUNK = 8192
"""Vocabulary rows of a tile in TRL's head."""


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logprobs", description=__doc__)
    for name, default in (
        ("tokens", 1024), ("many-tokens", 16384), ("hidden", 512), ("vocab", 32768), ("tile-logits", 1 << 23),
        ("threads", 1), ("seed", 0), ("repeats", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--head", choices=("all", *HEADS), default="all")
    options = parser.parse_args()
    if options.head == "all":
        compare(options)
    else:
        print(json.dumps(measure(options)))


def compare(options: argparse.Namespace) -> None:
    """Every head in turn."""
    few, many = options.tokens, options.many_tokens
    ours = _child("ours", few)
    long = _child("ours", many, "--repeats", "1")
    naive = _child("naive", few)
    peers = {
        name: _child(name, few, "--repeats", "1")
        for name in ("verl", "trl")
        if importlib.util.find_spec(name) is not None
    }
    for name in {"verl", "trl"} - peers.keys():
        say(f"{name} is not installed here; its head is left out")
    growth = long["extra_mb"] / ours["extra_mb"]
    claims = [
        Claim.at_most(f"extra memory at {many} tokens against {few}", growth, "ratio", CONSTANT),
        Claim.at_most(
            "CPU time against the naive head", ours["cpu_seconds"] / naive["cpu_seconds"], "ratio", CPU_RATIO
        ),
    ]
    claims += [
        Claim.above(f"{name}'s CPU time against ours", peer["cpu_seconds"] / ours["cpu_seconds"], "ratio", 1.0)
        for name, peer in peers.items()
    ]
    print_line("logprobs", claims, {"ours": ours, "ours_long": long, "naive": naive, **peers})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One head in this process."""
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(options.seed)
    hidden = torch.randn(options.tokens, options.hidden, generator=generator)
    weight = torch.randn(options.vocab, options.hidden, generator=generator) * options.hidden**-0.5
    hidden, weight = hidden.to(DTYPES[options.dtype]), weight.to(DTYPES[options.dtype])
    labels = torch.randint(options.vocab, (options.tokens,), generator=generator)
    coefficients = torch.randn(options.tokens, generator=generator)
    head: Callable[..., Tensor] = HEADS[options.head]
    warm = slice(0, 8)
    _run(head, hidden[warm], weight[:64], labels[warm] % 64, coefficients[warm], options)
    before, seconds, loss, norm = _peak_mb(), [], 0.0, 0.0
    for _ in range(options.repeats):
        start = time.process_time()
        loss, norm = _run(head, hidden, weight, labels, coefficients, options)
        seconds.append(time.process_time() - start)
    gradients = (hidden.nbytes + weight.nbytes) / 2**20
    return {
        "head": options.head,
        "tokens": options.tokens,
        "dtype": options.dtype,
        "cpu_seconds": statistics.median(seconds),
        "repeats": seconds,
        "extra_mb": _peak_mb() - before - gradients,
        "loss": loss,
        "grad_norm": norm,
        "environment": environment("torch", "verl", "trl"),
    }


def _run(
    head: Callable[..., Tensor], hidden: Tensor, weight: Tensor, labels: Tensor, coefficients: Tensor, options: Any
) -> tuple[float, float]:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = head(hidden, weight, labels, coefficients, options)
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.item(), float(torch.stack([hidden.grad.norm(), weight.grad.norm()]).norm())


def _ours(hidden: Tensor, weight: Tensor, labels: Tensor, coefficients: Tensor, options: Any) -> Tensor:
    loss, _ = token_loss(
        hidden,
        weight,
        labels,
        torch.ones(len(labels)),
        lambda tokens, scores: -coefficients[tokens] * scores.logprobs_N,
        max_tile_logits=options.tile_logits,
    )
    return loss


def _naive(hidden: Tensor, weight: Tensor, labels: Tensor, coefficients: Tensor, options: Any) -> Tensor:
    logprobs = (hidden @ weight.T).float().log_softmax(dim=-1)
    with torch.no_grad():
        _entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return -(coefficients * logprobs.gather(1, labels[:, None]).squeeze(1)).sum()


def _verl(hidden: Tensor, weight: Tensor, labels: Tensor, coefficients: Tensor, options: Any) -> Tensor:
    from verl.utils.experimental.torch_functional import FusedLinearForPPO  # pyright: ignore[reportMissingImports]

    logprobs, _entropy = FusedLinearForPPO()(hidden[None], weight, labels[None], temperature=1.0)
    return -(coefficients * logprobs[0]).sum()


def _trl(hidden: Tensor, weight: Tensor, labels: Tensor, coefficients: Tensor, options: Any) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction  # pyright: ignore[reportMissingImports]

    logprobs, *_ = ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, TRL_CHUNK, None, 1.0, ("entropy",))
    return -(coefficients * logprobs).sum()


HEADS = {"ours": _ours, "naive": _naive, "verl": _verl, "trl": _trl}


def _child(head: str, tokens: int, *more: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.logprobs",
        *sys.argv[1:],
        "--head",
        head,
        "--tokens",
        str(tokens),
        *more,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    say(done.stdout.strip())
    return json.loads(done.stdout.splitlines()[-1])


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
