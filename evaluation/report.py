"""The report of an evaluation: JSON for programs, Markdown for people, with the paper's results for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from curriculum.printable import printable_lines
from evaluation.behaviours import Behaviour
from evaluation.config import EvaluationConfig
from evaluation.markdown import cell
from evaluation.paper import PaperTable
from evaluation.statistics import Estimate
from evaluation.summary import AccuracySummary, Summary

SHORT_NAMES = {
    "docmath": "DocMath",
    "frames": "Frames",
    "2wikimqa": "2Wiki",
    "hotpotqa": "HotpotQA",
    "musique": "MuSiQue",
    "narrativeqa": "NarrativeQA",
    "qasper": "Qasper",
}


def report_json(summary: Summary, config: EvaluationConfig) -> dict[str, Any]:
    """Return the whole report as JSON values, accuracies as fractions."""
    return {"model": config.generator.model, "config": config.model_dump(mode="json"), **asdict(summary)}


def report_markdown(summary: Summary, config: EvaluationConfig, paper: PaperTable) -> str:
    """Write the report for people, accuracies in percent."""
    sampling, judge = config.sampling, config.reward.judge
    parts = [
        f"# Evaluation of {cell(config.generator.model)}",
        f"{sampling.num_samples} answers to each question, temperature {sampling.temperature:g}, top-p "
        f"{sampling.top_p:g}, input up to {sampling.max_prompt_tokens:,} tokens (the middle is cut out), output up to "
        f"{sampling.max_response_tokens:,}. Score: {config.reward.rules} rules, judge {cell(judge.name)}. Intervals: "
        "95 %, bootstrap over items. Failed, truncated and unknown answers are in the denominator.",
        "## Accuracy",
        _accuracy_table("benchmark", summary.benchmarks, summary),
        "## Accuracy by prompt tokens",
        _accuracy_table("prompt tokens", summary.lengths, None),
        f"## Beside the paper ({paper.source})",
        _side_by_side(summary, config, paper),
        "## Reasoning",
        _reasoning_table(summary),
    ]
    refused = {source: count for source, count in summary.rejects.items() if count}
    if refused:
        parts += [
            "## Refused rows",
            _table(("source", "rows"), [(cell(s), str(c)) for s, c in refused.items()]),
        ]
    return printable_lines("\n\n".join(parts)) + "\n"


def _accuracy_table(first: str, rows: Mapping[str, AccuracySummary], summary: Summary | None) -> str:
    ks = sorted({k for row in rows.values() for k in row.pass_at if k > 1})
    head = (first, "items", "answers", "accuracy", "95 %", *(f"pass@{k}" for k in ks), "failed", "truncated", "unknown")
    body: list[tuple[str, ...]] = [
        (
            SHORT_NAMES.get(name, cell(name)),
            str(row.num_items),
            str(row.num_answers),
            _percent(row.accuracy.mean),
            _interval(row.accuracy),
            *(_percent(row.pass_at.get(k)) for k in ks),
            str(row.num_failed),
            str(row.num_truncated),
            str(row.num_unknown),
        )
        for name, row in rows.items()
    ]
    if summary is not None:
        passes = [_percent(summary.macro_pass_at.get(k)) for k in ks]
        failed = str(sum(row.num_failed for row in rows.values()))
        truncated = str(sum(row.num_truncated for row in rows.values()))
        unknown = str(sum(row.num_unknown for row in rows.values()))
        answers = str(sum(row.num_answers for row in rows.values()))
        items = str(sum(row.num_items for row in rows.values()))
        macro = summary.macro
        average = ("**macro average**", items, answers, f"**{_percent(macro.mean)}**", _interval(macro))
        body.append((*average, *passes, failed, truncated, unknown))
    return _table(head, body)


def _side_by_side(summary: Summary, config: EvaluationConfig, paper: PaperTable) -> str:
    """Write the paper's table with this evaluation as its last row; its average only where all seven were run."""
    ours = {name: row.accuracy.mean for name, row in summary.benchmarks.items() if name in paper.benchmarks}
    body = [
        (model, *(f"{accuracy[name]:.1f}" for name in paper.benchmarks), f"{paper.average[model]:.1f}")
        for model, accuracy in paper.accuracy.items()
    ]
    average = _percent(sum(ours.values()) / len(ours)) if len(ours) == len(paper.benchmarks) else "-"
    cells = [f"**{_percent(ours.get(name))}**" if name in ours else "-" for name in paper.benchmarks]
    body.append((f"**{cell(config.generator.model)}**", *cells, f"**{average}**" if average != "-" else "-"))
    table = _table(("model", *(SHORT_NAMES[name] for name in paper.benchmarks), "average"), body)
    return (
        f"{table}\n\nThe paper's rows were judged by DeepSeek-V3 on the questions that the paper names; compare only "
        "where questions, rules and judge are the same."
    )


def _reasoning_table(summary: Summary) -> str:
    head = (
        "benchmark",
        *(behaviour.replace("_", " ") for behaviour in Behaviour),
        "grounding precision",
        "passages",
        "response tokens",
    )
    body = [
        (
            SHORT_NAMES.get(name, cell(name)),
            *("-" if (value := row.behaviours[behaviour]) is None else f"{value:.2f}" for behaviour in Behaviour),
            _percent(row.grounding_precision),
            str(row.num_passages),
            f"{row.mean_response_tokens:,.0f}",
        )
        for name, row in summary.reasoning.items()
    ]
    uncounted = summary.reasoning["all"].num_uncounted
    note = f"\n\nBehaviours of {uncounted} answers could not be counted." if uncounted else ""
    return f"{_table(head, body)}\n\nBehaviours: mean instances in one answer.{note}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
