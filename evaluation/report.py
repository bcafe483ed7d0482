"""The report of an evaluation: JSON for programs, Markdown for people, with the paper's results for comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from curriculum.controls import Control
from curriculum.leaks import Overlap
from curriculum.printable import printable_lines
from evaluation.behaviours import Behaviour
from evaluation.config import EvaluationConfig
from evaluation.exclusion import Comparison, possibly_trained_on
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

MARK = " †"
FOOTNOTE = "† possibly measured on questions that were trained on; see below."


def report_json(summary: Summary, config: EvaluationConfig) -> dict[str, Any]:
    """Return the whole report as JSON values, accuracies as fractions."""
    return {
        "model": config.generator.model,
        "config": config.model_dump(mode="json"),
        **asdict(summary),
        "possibly_trained_on": list(possibly_trained_on(summary.comparisons)),
    }


def report_markdown(summary: Summary, config: EvaluationConfig, paper: PaperTable) -> str:
    """Write the report for people, accuracies in percent."""
    marked = possibly_trained_on(summary.comparisons)
    parts = [
        f"# Evaluation of {cell(config.generator.model)}",
        how_measured(config),
        "## Accuracy",
        _accuracy_table("benchmark", summary.benchmarks, summary, marked),
        *([FOOTNOTE] if marked else []),
        "## Accuracy by prompt tokens",
        _accuracy_table("prompt tokens", summary.lengths, None),
        f"## Beside the paper ({paper.source})",
        beside_the_paper({config.generator.model: _means(summary)}, paper, marked),
        "## Questions that are trained on",
        compared_markdown(summary.comparisons),
        *(["## Does the model read or guess?", _control_table(summary)] if summary.under else []),
        "## Reasoning",
        _reasoning_table(summary),
    ]
    refused = {source: count for source, count in summary.rejects.items() if count}
    if refused:
        parts += [
            "## Refused rows",
            table(("source", "rows"), [(cell(s), str(c)) for s, c in refused.items()]),
        ]
    return printable_lines("\n\n".join(parts)) + "\n"


def how_measured(config: EvaluationConfig) -> str:
    """Return one paragraph: how answers were drawn and scored."""
    sampling, reward = config.sampling, config.reward
    return (
        f"{sampling.num_samples} answers to each question, temperature {sampling.temperature:g}, top-p "
        f"{sampling.top_p:g}, input up to {sampling.max_prompt_tokens:,} tokens (the middle is cut out), output up to "
        f"{sampling.max_response_tokens:,}. Score: {reward.rules} rules, judge {cell(reward.judge.name)}. Intervals: "
        "95 %, bootstrap over items. Failed, truncated and unknown answers are in the denominator."
    )


def shown_name(benchmark: str, marked: Collection[str] = ()) -> str:
    """Return the name of a benchmark in a table, with a mark where it may be measured on training questions."""
    return SHORT_NAMES.get(benchmark, cell(benchmark)) + (MARK if benchmark in marked else "")


def compared_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return which questions were left out because they leak from training sets, as tables and sentences."""
    if not comparisons:
        return "The questions were not compared with any training set; `--exclude DATASET` leaves out what leaks."
    head = ("training set", "benchmark", *(str(overlap) for overlap in Overlap), "left out")
    rows = [
        (cell(comparison.name), shown_name(name), *map(str, counts), str(comparison.num_left_out(name)))
        for comparison in comparisons
        if comparison.fault is None
        for name in comparison.benchmarks
        if (counts := [comparison.count(name, overlap) for overlap in Overlap])
    ]
    lines = [
        f"**Not compared with {cell(comparison.name)}**: {cell(comparison.fault)}. The accuracies of "
        f"{', '.join(map(shown_name, comparison.benchmarks))} may be measured on questions that were trained on."
        for comparison in comparisons
        if comparison.fault is not None
    ]
    lines += [
        f"{comparison.num_unreadable} rows of {cell(comparison.name)} could not be read, and were not compared."
        for comparison in comparisons
        if comparison.num_unreadable
    ]
    note = (
        "Left out, and in no number: the first three columns. Questions that share only their words with one that is "
        "trained on, about another document, are kept."
    )
    return "\n\n".join([*([table(head, rows), note] if rows else []), *lines])


def _accuracy_table(
    first: str, rows: Mapping[str, AccuracySummary], summary: Summary | None, marked: Collection[str] = ()
) -> str:
    ks = sorted({k for row in rows.values() for k in row.pass_at if k > 1})
    head = (first, "items", "answers", "accuracy", "95 %", *(f"pass@{k}" for k in ks), "failed", "truncated", "unknown")
    body: list[tuple[str, ...]] = [
        (
            shown_name(name, marked),
            str(row.num_items),
            str(row.num_answers),
            percent(row.accuracy.mean),
            interval(row.accuracy),
            *(percent(row.pass_at.get(k)) for k in ks),
            str(row.num_failed),
            str(row.num_truncated),
            str(row.num_unknown),
        )
        for name, row in rows.items()
    ]
    if summary is not None:
        passes = [percent(summary.macro_pass_at.get(k)) for k in ks]
        failed = str(sum(row.num_failed for row in rows.values()))
        truncated = str(sum(row.num_truncated for row in rows.values()))
        unknown = str(sum(row.num_unknown for row in rows.values()))
        answers = str(sum(row.num_answers for row in rows.values()))
        items = str(sum(row.num_items for row in rows.values()))
        macro = summary.macro
        average = ("**macro average**", items, answers, f"**{percent(macro.mean)}**", interval(macro))
        body.append((*average, *passes, failed, truncated, unknown))
    return table(head, body)


def _means(summary: Summary) -> dict[str, float]:
    return {name: row.accuracy.mean for name, row in summary.benchmarks.items()}


def beside_the_paper(models: Mapping[str, Mapping[str, float]], paper: PaperTable, marked: Collection[str] = ()) -> str:
    """Write the paper's table with models as its last rows; their average only where all its benchmarks were run.

    Args:
        models: accuracies by benchmark, by the name of a model.
        paper: its table.
        marked: benchmarks that may be measured on training questions.
    """
    body = [
        (model, *(f"{accuracy[name]:.1f}" for name in paper.benchmarks), f"{paper.average[model]:.1f}")
        for model, accuracy in paper.accuracy.items()
    ]
    for model, accuracies in models.items():
        ours = [accuracies.get(name) for name in paper.benchmarks]
        known = [value for value in ours if value is not None]
        average = percent(sum(known) / len(known)) if len(known) == len(ours) else None
        cells = [
            "-" if value is None else f"**{percent(value)}**{MARK if name in marked else ''}"
            for name, value in zip(paper.benchmarks, ours, strict=True)
        ]
        body.append((f"**{cell(model)}**", *cells, "-" if average is None else f"**{average}**"))
    rows = table(("model", *(SHORT_NAMES[name] for name in paper.benchmarks), "average"), body)
    return (
        f"{rows}\n\nThe paper's rows were judged by DeepSeek-V3 on the questions that the paper names; compare only "
        "where questions, rules and judge are the same."
    )


def _control_table(summary: Summary) -> str:
    """Write the accuracies with and without the documents side by side."""
    controls = list(summary.under)
    head = ("benchmark", "with its document", "95 %", *(part for name in controls for part in (words_of(name), "95 %")))
    body: list[tuple[str, ...]] = []
    for name, row in summary.benchmarks.items():
        cells = [percent(row.accuracy.mean), interval(row.accuracy)]
        for control in controls:
            other = summary.under[control].get(name)
            cells += ["-", "-"] if other is None else [percent(other.accuracy.mean), interval(other.accuracy)]
        body.append((shown_name(name), *cells))
    return (
        f"{table(head, body)}\n\nThe same questions, asked without their documents or with that of another question. A "
        "model that answers as well so remembers or guesses; it does not read."
    )


def words_of(control: Control) -> str:
    """Return a control in words."""
    return control.replace("_", " ")


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
            shown_name(name),
            *("-" if (value := row.behaviours[behaviour]) is None else f"{value:.2f}" for behaviour in Behaviour),
            percent(row.grounding_precision),
            str(row.num_passages),
            f"{row.mean_response_tokens:,.0f}",
        )
        for name, row in summary.reasoning.items()
    ]
    uncounted = summary.reasoning["all"].num_uncounted
    note = f"\n\nBehaviours of {uncounted} answers could not be counted." if uncounted else ""
    return f"{table(head, body)}\n\nBehaviours: mean instances in one answer.{note}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table; all columns but the first are aligned to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(value: float | None) -> str:
    """Write a fraction in percent; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def interval(estimate: Estimate) -> str:
    """Write an interval in percent."""
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
