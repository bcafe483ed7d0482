"""The command `qwenlong score`: it scores the responses of a JSONL file, without a run."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from curriculum.errors import UserError
from curriculum.printable import printable
from reward.config import RewardConfig
from reward.hybrid import HybridScorer, ScoringReport
from reward.judge_back_end import gpu_is_there, judge_session
from reward.judge_tally import JudgeTally
from reward.row_files import RowReader, json_writer
from reward.score_rows import ScoreRow, read_score_row, score_rows, scored_row

ROWS_AT_ONCE = 256
"""Rows that are in memory, and with the judge, at a time."""


def score_file(source: Path, config: RewardConfig, *, out: Path | None) -> int:
    """Score every row, in order; return how many could not be read.

    Args:
        source: JSONL rows `{id, data_source, question?, response, ground_truth}`.
        config: kinds, thinking, rules and judge.
        out: JSONL file that is written; None is standard output.

    Raises:
        UserError: the file or the judge cannot be used.
        RunFailed: the judge decided nothing; the rows are written all the same.
    """
    reader = RowReader(source)
    if out is not None and os.path.exists(out) and out.samefile(source):
        raise UserError(f"--out {out}: this is the file that is read; choose another one")
    on_gpu = gpu_is_there()
    with json_writer(out) as write:
        report, tally = asyncio.run(_score(config, reader.records(read_score_row), write, on_gpu=on_gpu))
    sys.stderr.write(_summary(report, reader.num_bad))
    tell(tally)
    return reader.num_bad


async def _score(
    config: RewardConfig, rows: Iterator[ScoreRow], write: Callable[[Mapping[str, Any]], None], *, on_gpu: bool
) -> tuple[ScoringReport, JudgeTally | None]:
    async with judge_session(config.judge, on_gpu=on_gpu) as judge:
        scorer = HybridScorer(config, judge)
        for chunk in _chunks(rows):
            for row, score in zip(chunk, await score_rows(scorer, chunk), strict=True):
                write(scored_row(row, score))
        return scorer.report, None if judge is None else judge.tally


def _chunks(rows: Iterable[ScoreRow]) -> Iterator[list[ScoreRow]]:
    rows = iter(rows)
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        yield chunk


def tell(tally: JudgeTally | None) -> None:
    """Say on standard error what the judge could not decide.

    Raises:
        RunFailed: it decided nothing.
    """
    if tally is not None:
        tally.check()
    if tally is not None and (note := tally.note()):
        sys.stderr.write(printable(note) + "\n")


def _summary(report: ScoringReport, num_bad: int) -> str:
    return (
        f"{report.num_responses} rows scored: {report.num_rule_accepted} accepted by the rule, "
        f"{report.num_judge_accepted} by the judge, {report.num_unknown} unknown; {num_bad} bad rows\n"
    )
