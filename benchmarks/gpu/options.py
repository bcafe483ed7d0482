"""Options that the parts share, and the shapes that they measure."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

import torch

from benchmarks.group_update import Shape
from benchmarks.line import print_line
from learner.attention.kernels import obstacle_to_fa3
from tests.harness.meta_learner import Size

TINY = Size(hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, vocab=512)
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "B200": 2250e12, "A100": 312e12}
"""Dense bf16 rate in the data sheet of each card, by a part of its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """P prompt tokens and G responses of R tokens."""

    prompt: int
    response: int
    size: int

    def shape(self, model: Size) -> Shape:
        """For the arithmetic of FLOPs."""
        return Shape(
            prompt=self.prompt,
            responses=(self.response,) * self.size,
            hidden=model.hidden,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            intermediate=model.intermediate,
            vocab=model.vocab,
        )


GROUPS = (Group(prompt=32_768, response=2048, size=8), Group(prompt=61_440, response=2048, size=8))
TINY_GROUPS = (Group(prompt=48, response=8, size=3),)


def parse(parser: ArgumentParser) -> Namespace:
    """Add the shared options and parse."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=200.0, help="begin no measurement after so many")
    return parser.parse_args()


def add_kernel(parser: ArgumentParser) -> None:
    """Which flash attention."""
    parser.add_argument("--kernel", choices=("fa2", "fa3"), default="fa2")


def is_missing(benchmark: str, options: Namespace) -> bool:
    """Whether the kernel cannot run here; prints a line that says why, and activates it where it can."""
    if options.kernel == "fa2":
        return False
    device = torch.device(options.device)
    reason = "a CPU has no FlashAttention-3" if device.type == "cpu" else obstacle_to_fa3(device)
    if reason is not None:
        print_line(benchmark, [], {"kernel": "fa3", "skipped": reason})
    return reason is not None


def peak_flops(device_name: str) -> float | None:
    """The card's rate; None for a card that is not in the table."""
    return next((rate for name, rate in PEAK_FLOPS.items() if name in device_name), None)
