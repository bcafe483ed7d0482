"""The models of a run, evaluated one after another on the same questions: one table, as the paper has it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curriculum.errors import UserError
from curriculum.files import file_errors, private_files, write_text
from curriculum.printable import printable_lines
from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluate
from evaluation.exclusion import possibly_trained_on
from evaluation.markdown import cell
from evaluation.paper import paper_table
from evaluation.progress import Progress
from evaluation.questions import read_questions
from evaluation.report import (
    FOOTNOTE,
    beside_the_paper,
    compared_markdown,
    how_measured,
    interval,
    percent,
    shown_name,
    table,
    words_of,
)
from evaluation.statistics import Estimate
from evaluation.summary import Summary

LIST = "models.json"
"""Names the models of such a folder, and tells it from others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageModel:
    """One of the models of a run."""

    label: str
    """Row of the table, for example "after phase-1"."""
    path: str
    """Folder or hub id."""
    folder: str
    """Name of its folder below that of the evaluation."""


@private_files()
def evaluate_stages(
    stages: Sequence[tuple[StageModel, EvaluationConfig]], *, run: str, out: Path, progress: Progress
) -> dict[str, Summary]:
    """Evaluate models on the same questions, or continue; write and print their table, and one report of each.

    Args:
        stages: models with their configurations, which differ in the model alone.
        run: name of the run.
        out: folder; each model gets one below it.
        progress: is told what happens.

    Returns:
        Summaries by label.

    Raises:
        UserError: a source, a model or the folder cannot be used.
        GeneratorDown: a model does not answer any more; the same command continues the evaluation.
    """
    config = stages[0][1]
    questions = read_questions(config, progress)
    _open(out, [stage for stage, _ in stages])
    progress.say(f"answers, scores and reports of {len(stages)} models: {out}")
    summaries: dict[str, Summary] = {}
    for stage, own in stages:
        progress.say(f"{stage.label}: {stage.path}")
        summaries[stage.label] = evaluate(own, out=out / stage.folder, progress=progress, questions=questions)
    write_text(out / "report.json", json.dumps(_json(summaries, stages, run), indent=2, ensure_ascii=False) + "\n")
    report = _markdown(summaries, stages, config, run)
    write_text(out / "report.md", report)
    sys.stdout.write(report)
    return summaries


def _open(out: Path, stages: Sequence[StageModel]) -> None:
    """Create the folder, or take that of an earlier evaluation of a run.

    Raises:
        UserError: it holds something else, or cannot be written.
    """
    with file_errors(f"--out {out}", "written"):
        if out.exists() and not (out / LIST).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {out}: holds something else than the evaluation of a run; choose another folder")
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_text(out / LIST, json.dumps([asdict(stage) for stage in stages], indent=2) + "\n")


def _json(
    summaries: Mapping[str, Summary], stages: Sequence[tuple[StageModel, EvaluationConfig]], run: str
) -> dict[str, Any]:
    first = next(iter(summaries.values()))
    return {
        "run": run,
        "config": stages[0][1].model_dump(mode="json", exclude={"generator"}),
        "models": [
            {
                **asdict(stage),
                "accuracy": {name: asdict(row.accuracy) for name, row in summaries[stage.label].benchmarks.items()},
                "average": asdict(summaries[stage.label].macro),
                "under": {
                    control: {name: asdict(row.accuracy) for name, row in rows.items()}
                    for control, rows in summaries[stage.label].under.items()
                },
            }
            for stage, _ in stages
        ],
        "comparisons": [asdict(comparison) for comparison in first.comparisons],
        "possibly_trained_on": list(possibly_trained_on(first.comparisons)),
    }


def _markdown(
    summaries: Mapping[str, Summary],
    stages: Sequence[tuple[StageModel, EvaluationConfig]],
    config: EvaluationConfig,
    run: str,
) -> str:
    first = next(iter(summaries.values()))
    benchmarks, marked = list(first.benchmarks), possibly_trained_on(first.comparisons)
    head = ("model", *(shown_name(name, marked) for name in benchmarks), "average")
    body = [
        (cell(label), *(_shown(summary.benchmarks[name].accuracy) for name in benchmarks), _shown(summary.macro))
        for label, summary in summaries.items()
    ]
    counts = ", ".join(f"{shown_name(name)} {row.num_items}" for name, row in first.benchmarks.items())
    means = {
        label: {name: row.accuracy.mean for name, row in summary.benchmarks.items()}
        for label, summary in summaries.items()
    }
    paper = paper_table()
    parts = [
        f"# Evaluation of the run {cell(run)}",
        how_measured(config),
        "## Accuracy after every stage",
        table(head, body),
        *([FOOTNOTE] if marked else []),
        f"Questions: {counts}. The average is the unweighted mean of the benchmarks.",
        *(["## Does the model read or guess?", _control_table(summaries)] if first.under else []),
        *(
            [f"## Beside the paper ({paper.source})", beside_the_paper(means, paper, marked)]
            if set(benchmarks) & set(paper.benchmarks)
            else []
        ),
        "## Questions that are trained on",
        compared_markdown(first.comparisons),
        "## Reports",
        "\n".join(f"* {cell(stage.label)}: [{stage.folder}]({stage.folder}/report.md)" for stage, _ in stages),
    ]
    return printable_lines("\n\n".join(parts)) + "\n"


def _control_table(summaries: Mapping[str, Summary]) -> str:
    """Write the averages with and without the documents, model by model."""
    controls = list(next(iter(summaries.values())).under)
    body = [
        (cell(label), percent(summary.macro.mean), *(percent(_mean_under(summary, name)) for name in controls))
        for label, summary in summaries.items()
    ]
    rows = table(("model, average", "with its document", *map(words_of, controls)), body)
    return f"{rows}\n\nA model that answers as well without its document remembers or guesses; it does not read."


def _mean_under(summary: Summary, control: str) -> float | None:
    rows = [row.accuracy.mean for name, under in summary.under.items() if name == control for row in under.values()]
    return sum(rows) / len(rows) if rows else None


def _shown(estimate: Estimate) -> str:
    return f"{percent(estimate.mean)} ({interval(estimate)})"
