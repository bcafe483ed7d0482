"""Runs every part in a process of its own, within a time limit for all of them, and keeps what each has printed.

A part that fails, hangs or is killed loses its own measurements only. Lines go to standard output and to
`OUT/results.jsonl`; what a part says beside them is in `OUT/PART.log`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.line import print_line, say

MAX_SECONDS = 460
"""Of the whole go: eight minutes, with time left to bring the results back."""
LEAST_SECONDS = 5
"""A part with less time than this is not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Measurements that share a process."""

    name: str
    command: tuple[str, ...]
    max_seconds: float
    """Longest time of this part; less if the go has less left."""


def parts(device: str, *, tiny: bool) -> list[Part]:
    """The parts in the order of their worth: a go that ends early has the first ones."""
    common = ("--device", device, *(("--tiny",) if tiny else ()))

    def part(name: str, module: str, max_seconds: float, *more: str) -> Part:
        command = (sys.executable, "-m", f"benchmarks.gpu.{module}", *common, *more)
        return Part(name=name, command=command, max_seconds=max_seconds)

    return [
        part("kernels", "tests", 60, "--of", "learner"),
        part("rates-fa2", "rates", 40, "--kernel", "fa2"),
        part("learner-fa2", "learner_step", 220, "--kernel", "fa2"),
        part("rates-fa3", "rates", 40, "--kernel", "fa3"),
        part("learner-fa3", "learner_step", 120, "--kernel", "fa3"),
        part("engines", "tests", 120, "--of", "engines"),
    ]


def run(chosen: list[Part], out: Path, *, seconds: float) -> list[str]:
    """Run the parts one after the other; return the names of those without a whole result."""
    deadline = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    incomplete: list[str] = []
    for part in chosen:
        left = min(part.max_seconds, deadline - time.monotonic())
        problem = "no time left" if left < LEAST_SECONDS else _run(part, out, seconds=left)
        lines = _lines(out / f"{part.name}.jsonl")
        if problem is not None:
            incomplete.append(part.name)
            lines.append(json.dumps({"benchmark": f"gpu_{part.name}", "claims": [], "detail": {"problem": problem}}))
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        with (out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    return incomplete


def _run(part: Part, out: Path, *, seconds: float) -> str | None:
    """Run a part; return what went wrong, None if nothing did."""
    say(f"{part.name}: at most {seconds:.0f} s")
    log = out / f"{part.name}.log"
    command = [*part.command, "--seconds", f"{seconds - 3:.0f}"]
    with (out / f"{part.name}.jsonl").open("w") as results, log.open("w") as said:
        process = subprocess.Popen(command, stdout=results, stderr=said, start_new_session=True)
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"took more than {seconds:.0f} s"
    if status:
        last = _lines(log)[-1:] or ["it said nothing"]
        return f"exit status {status}: {last[0][:400]}"
    return None


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []


def main() -> int:
    """Exit status 0 if every part ran to its end; what it found is in its lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")), help="default: $OUT")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, which a CPU can do")
    parser.add_argument("--seconds", type=float, default=MAX_SECONDS)
    options = parser.parse_args()
    started = time.monotonic()
    incomplete = run(parts(options.device, tiny=options.tiny), options.out, seconds=options.seconds)
    print_line("gpu", [], {"seconds": time.monotonic() - started, "incomplete": incomplete})
    return 1 if incomplete else 0


if __name__ == "__main__":
    sys.exit(main())
