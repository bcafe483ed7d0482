"""The command `qwenlong judge-report`: the reliability of a judge, on labelled pairs or on the answers of a run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curriculum.errors import UserError, library_words
from curriculum.files import check_writable
from curriculum.printable import printable
from reward.config import JudgeConfig, NoJudge, RewardConfig
from reward.judge_back_end import gpu_is_there, judge_session
from reward.judge_report import (
    AnswerPair,
    ErrorRates,
    JudgeReport,
    exact_and_mismatched,
    judge_pairs,
    judge_report,
    read_labelled_pair,
)
from reward.judge_tally import JudgeTally
from reward.kind import kind_of
from reward.row_files import RowReader, json_writer
from reward.rules import apply_rules
from reward.score import Verdict
from reward.score_command import tell
from reward.score_rows import text_in

RUN_COLUMNS = ("question", "truth", "answer", "judge", "data_source", "response", "rule")
SHOWN_CHARS = 60


def report_judge(source: Path, reward: RewardConfig, *, out: Path | None, max_examples: int) -> int:
    """Write the report as JSON and show it as a table; return how many rows could not be read.

    Args:
        source: JSONL of labelled pairs, or a run folder, or parquet files of its trajectories.
        reward: kinds, thinking and rules, which answers of a run are compared with, and the judge; without one a run is
            judged by the verdicts in it.
        out: JSON file that is written; None is standard output.
        max_examples: disagreements, and changes of the rules, that are listed.

    Raises:
        UserError: the source or the judge cannot be used.
        RunFailed: the judge decided nothing; the report is written all the same.
    """
    if out is not None:
        check_writable(out, name=f"--out {out}")
    on_gpu = gpu_is_there()
    config, num_bad, tally = reward.judge, 0, None
    if source.suffix.lower() == ".jsonl":
        reader = RowReader(source)
        pairs = list(reader.records(partial(read_labelled_pair, kinds=reward.kinds)))
        (judged, tally), num_bad = asyncio.run(_ask(config, pairs, on_gpu=on_gpu)), reader.num_bad
    else:
        judged = list(_recorded(_trajectory_files(source), reward))
        if not isinstance(config, NoJudge):
            pairs = [*exact_and_mismatched(judged), *(pair for pair in judged if not pair.rule)]
            judged, tally = asyncio.run(_ask(config, pairs, on_gpu=on_gpu))
    name = "as recorded" if isinstance(config, NoJudge) else config.name
    report = judge_report(judged, judge=name, max_examples=max_examples)
    with json_writer(out, indent=2) as write:
        write({"source": str(source), "num_bad_rows": num_bad, **_report_json(report)})
    _show(report, Console(stderr=True, highlight=False, emoji=False))
    tell(tally)
    return num_bad


def _report_json(report: JudgeReport) -> dict[str, Any]:
    def written(pairs: Sequence[AnswerPair]) -> list[dict[str, Any]]:
        return [{**asdict(pair), "rule": pair.rule} for pair in pairs]

    lists = {"disagreements": written(report.disagreements), "rule_changes": written(report.rule_changes)}
    return {**asdict(report), **lists}


async def _ask(
    config: JudgeConfig, pairs: Sequence[AnswerPair], *, on_gpu: bool
) -> tuple[list[AnswerPair], JudgeTally | None]:
    async with judge_session(config, on_gpu=on_gpu) as judge:
        return await judge_pairs(pairs, judge, name=config.name), None if judge is None else judge.tally


def _trajectory_files(source: Path) -> list[Path]:
    if not os.path.exists(source):
        raise UserError(f"{source}: no such file or folder; give labelled pairs (.jsonl) or a run folder")
    if source.is_file():
        if source.suffix.lower() != ".parquet":
            raise UserError(
                f"{source}: unknown extension; give labelled pairs (.jsonl), a .parquet file or a run folder"
            )
        return [source]
    files = sorted(source.glob("step-*.parquet")) or sorted((source / "trajectories").glob("step-*.parquet"))
    if not files:
        raise UserError(f"{source}: holds no trajectories (step-*.parquet); give the folder of a run")
    return files


def _recorded(files: Sequence[Path], reward: RewardConfig) -> Iterator[AnswerPair]:
    """Yield every answer of a run with its recorded rule and verdict; responses without an answer are left out.

    Raises:
        UserError: a file is damaged, or was not written by a run; with the row.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for path in files:
        number = 0
        try:
            file = ParquetFile(path)
            missing = [column for column in RUN_COLUMNS if column not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path}: the columns {', '.join(missing)} are missing; give the trajectories of a run")
            for batch in file.iter_batches(columns=list(RUN_COLUMNS)):
                for row in batch.to_pylist():
                    number += 1
                    if (pair := _recorded_pair(row, reward)) is not None:
                        yield pair
        except (ArrowException, OSError, ValueError, OverflowError) as error:
            what = f"row {number} cannot be read" if number else "not a parquet file"
            raise UserError(f"{path}: {what} ({library_words(error)}); was it written by a run?") from error


def _recorded_pair(row: dict[str, Any], reward: RewardConfig) -> AnswerPair | None:
    """Return the answer of a row with what today's rules say of its response; None where neither finds an answer."""
    truths: Any = row["truth"]
    if (
        not isinstance(truths, list)
        or not truths
        or not all(isinstance(truth, str) for truth in cast("list[Any]", truths))
    ):
        raise ValueError(f"truth={truths!r:.80} is no list of texts")
    data_source, answers = text_in(row, "data_source"), tuple(cast("list[str]", truths))
    kind = kind_of(data_source, reward.kinds)
    today = apply_rules(
        reward.rules,
        kind,
        text_in(row, "response"),
        answers,
        thinking_required=reward.thinking == "required",
        tags=reward.thinking_tags,
    )
    answer = row["answer"] or today.answer
    if not answer:
        return None
    return AnswerPair(
        question=text_in(row, "question"),
        prediction=answer,
        truths=answers,
        data_source=data_source,
        label=None,
        verdict=None if row["judge"] is None else _recorded_verdict(row["judge"]),
        kind=kind,
        recorded=row["rule"] == 1.0,
        today=today.accepted,
    )


def _recorded_verdict(value: Any) -> Verdict:
    if value not in tuple(Verdict):
        raise ValueError(f"judge={value!r:.80} is no verdict; it is one of {', '.join(Verdict)}")
    return Verdict(value)


def _show(report: JudgeReport, console: Console) -> None:
    console.print(f"{report.num_pairs} pairs, {report.num_labelled} of them labelled", markup=False)
    table = Table("", "asked", "yes", "no", "unknown", "false yes", "false no")
    for name, rates in (
        ("rule", report.rule_rates),
        (f"judge ({report.judge})", report.judge_rates),
        ("rule or judge", report.hybrid_rates),
    ):
        table.add_row(Text(printable(name)), *_cells(rates))
    console.print(table)
    console.print(
        f"the judge alone accepts {report.num_judge_alone_accepts} and alone rejects {report.num_judge_alone_rejects}",
        markup=False,
    )
    if changed := report.num_today_accepts + report.num_today_rejects:
        console.print(
            f"today's rules decide {changed} of these answers otherwise: {report.num_today_accepts} that the run "
            f"rejected are accepted, {report.num_today_rejects} that it accepted are rejected",
            markup=False,
            soft_wrap=True,
        )
    if report.disagreements:
        console.print(_examples(report.disagreements))


def _cells(rates: ErrorRates) -> list[str]:
    errors = (
        (rates.false_positive_rate, rates.num_different),
        (rates.false_negative_rate, rates.num_equivalent),
    )
    shares = [_percent(rates.unknown_rate), *(f"{_percent(rate)} of {number}" for rate, number in errors)]
    return [str(rates.num_asked), str(rates.num_yes), str(rates.num_no), *shares]


def _examples(pairs: Sequence[AnswerPair]) -> Table:
    """Show disagreements; model text is data, so its mark-up is not read and control characters are escaped."""
    table = Table("judge", "label", "answer", "truth", "question")
    for pair in pairs:
        label = {None: "", True: "same", False: "different"}[pair.label]
        texts = (pair.prediction, pair.truths[0], pair.question)
        table.add_row(str(pair.verdict), label, *[Text(printable(text[:SHOWN_CHARS])) for text in texts])
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
