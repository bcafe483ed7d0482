"""Length traces: what a run's groups looked like, without a word of their text; what `schedules.py` replays.

A trace is recorded from the `trajectories/` of a run, or drawn from published figures where no recorded run has answers
as long as those of the paper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learner.advantages import has_signal

TRACES = Path(__file__).parent / "traces"
RECORDED = TRACES / "local.json"
"""A run of the local recipe; `traces/README.md` tells where it comes from."""
MEAN_RESPONSE_TOKENS = 1_235
"""Middle of the range that the paper's runs move through, 1,000 to 1,470."""
MAX_RESPONSE_TOKENS = 10_000
MEAN_PROMPT_TOKENS, MAX_PROMPT_TOKENS = 11_400, 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedGroup:
    """One group of answers."""

    prompt_tokens: int
    response_tokens: tuple[int, ...]
    """[G] tokens of each answer."""
    has_signal: bool
    """Whether the accuracies differ, so that dynamic sampling keeps the group."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or not self.response_tokens or min(self.response_tokens) < 1:
            raise ValueError(
                f"a traced group needs a prompt and answers of at least one token, got {self.prompt_tokens} and "
                f"{self.response_tokens}; leave it out of the trace"
            )


Trace = tuple[TracedGroup, ...]


def read_run(run_folder: Path) -> Trace:
    """The groups of a run, in the order of their leases.

    Raises:
        FileNotFoundError: the run wrote no trajectories.
    """
    import pyarrow.parquet as pq

    files = sorted((run_folder / "trajectories").glob("step-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{run_folder}: no trajectories/step-*.parquet; give the folder of a run")
    answers: dict[int, list[dict[str, Any]]] = {}
    for file in files:
        for row in pq.read_table(
            file, columns=["lease_id", "prompt_tokens", "response_tokens", "accuracy"]
        ).to_pylist():
            answers.setdefault(row["lease_id"], []).append(row)
    return tuple(
        TracedGroup(
            prompt_tokens=rows[0]["prompt_tokens"],
            response_tokens=tuple(row["response_tokens"] for row in rows),
            has_signal=has_signal([row["accuracy"] for row in rows]),
        )
        for _, rows in sorted(answers.items())
    )


def write_trace(trace: Trace, path: Path) -> None:
    """Writes [prompt tokens, response tokens, has signal] per group."""
    rows = [json.dumps([g.prompt_tokens, list(g.response_tokens), g.has_signal]) for g in trace]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def read_trace(path: Path) -> Trace:
    """The trace in a file, or of a run folder.

    Raises:
        ValueError: the file is no trace.
    """
    if path.is_dir():
        return read_run(path)
    try:
        return tuple(
            TracedGroup(prompt_tokens=prompt, response_tokens=tuple(responses), has_signal=signal)
            for prompt, responses, signal in json.loads(path.read_text(encoding="utf-8"))
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a length trace ({error}); record one with `write_trace`") from error


def long_tailed_trace(num_groups: int, *, group_size: int, acceptance: float, seed: int) -> Trace:
    """A synthetic trace: log-normal lengths with the paper's means and limits, longer for harder questions.

    Half of the variance of the logarithm (0.9 squared in all) belongs to the question. A tenth of a per cent to one per
    cent of the answers runs into the limit.

    Args:
        num_groups: Length of the trace.
        group_size: G.
        acceptance: Share of groups with a signal, drawn independently of the lengths.
        seed: Of all draws.
    """
    rng = np.random.default_rng(seed)
    sigma = 0.9 / 2**0.5
    of_question_N = rng.normal(0.0, sigma, size=(num_groups, 1))
    of_answer_NG = rng.normal(0.0, sigma, size=(num_groups, group_size))
    lengths_NG = MEAN_RESPONSE_TOKENS * np.exp(of_question_N + of_answer_NG - sigma**2)
    prompts_N = MEAN_PROMPT_TOKENS * np.exp(rng.normal(0.0, 0.9, size=num_groups) - 0.9**2 / 2)
    signals_N = rng.random(num_groups) < acceptance
    return tuple(
        TracedGroup(prompt_tokens=prompt, response_tokens=tuple(lengths), has_signal=bool(signal))
        for prompt, lengths, signal in zip(
            _tokens(prompts_N, MAX_PROMPT_TOKENS), _tokens(lengths_NG, MAX_RESPONSE_TOKENS), signals_N, strict=True
        )
    )


def _tokens(lengths: Any, limit: int) -> Sequence[Any]:
    return np.clip(np.rint(lengths), 1, limit).astype(int).tolist()
