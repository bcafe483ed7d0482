"""Questions of an evaluation that leak from a training set: found, listed, and left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from curriculum.columns import loaded_columns
from curriculum.config import DataConfig
from curriculum.dataset import row_layouts, with_our_columns
from curriculum.errors import UserError
from curriculum.layout import (
    DEMONSTRATION_LAYOUTS,
    DemonstrationItem,
    Layout,
    QuestionItem,
    question_layouts,
)
from curriculum.leaks import KnownQuestions, Overlap, traces_of, traces_of_item
from curriculum.rejects import Reject, RowError
from curriculum.rows import Row, Table
from curriculum.sources import open_table
from evaluation.benchmarks import DOCMATH_NAME, open_source
from evaluation.config import ExcludedSet
from evaluation.layouts import BENCHMARK_LAYOUTS
from evaluation.progress import Progress
from evaluation.record import Item

PUBLISHED_TRAINING_SET = "Tongyi-Zhiwen/DocQA-RL-1.6K"
"""Holds three quarters of the questions of the benchmark `docmath`."""
_ANY_LAYOUT: tuple[Layout[Any], ...] = (
    *BENCHMARK_LAYOUTS, *question_layouts(DataConfig(prompt="keep")), *DEMONSTRATION_LAYOUTS,
)  # fmt: skip


def excluded_sets(
    named: Sequence[str], sources: Sequence[str], own: Sequence[ExcludedSet] = ()
) -> tuple[ExcludedSet, ...]:
    """Return the training sets that an evaluation is compared with.

    Args:
        named: values of `--exclude`; "none" turns off what is compared by default.
        sources: what is evaluated; the benchmark `docmath` is compared with the published training set by default.
        own: what the model was trained on, likewise.
    """
    by_default = list(own)
    if PUBLISHED_TRAINING_SET not in named and any(source.partition("=")[0] == DOCMATH_NAME for source in sources):
        published = f"{PUBLISHED_TRAINING_SET}:train"
        by_default.append(
            ExcludedSet(name=PUBLISHED_TRAINING_SET, source=published, benchmark=DOCMATH_NAME, is_required=False)
        )
    if "none" in named:
        by_default = [one.model_copy(update={"fault": "turned off by --exclude none"}) for one in by_default]
    asked = [ExcludedSet(name=name, source=name) for name in dict.fromkeys(named) if name != "none"]
    return *asked, *by_default


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemMatch:
    """A question of a benchmark that has something in common with a training set."""

    benchmark: str
    item_id: str
    overlap: Overlap
    trained_id: str
    """The item of the training set, or one of several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the questions of an evaluation have in common with one training set."""

    name: str
    benchmarks: tuple[str, ...]
    """Those that were to be compared with it."""
    num_trained: int
    """Items of the set."""
    num_unreadable: int
    """Rows of the set that could not be read, and so not compared."""
    fault: str | None
    """Why it was not compared; None where it was."""
    matches: tuple[ItemMatch, ...]

    def count(self, benchmark: str, overlap: Overlap) -> int:
        """Return the number of questions of a benchmark with an overlap."""
        return sum(match.benchmark == benchmark and match.overlap is overlap for match in self.matches)

    def num_left_out(self, benchmark: str) -> int:
        """Return the number of questions of a benchmark that leak from the set."""
        return sum(match.benchmark == benchmark and match.overlap.is_leak for match in self.matches)


def compare(items: Sequence[Item], excluded: Iterable[ExcludedSet], progress: Progress) -> tuple[Comparison, ...]:
    """Compare questions with training sets, and tell what comes of it.

    Raises:
        UserError: a set that a person named cannot be read.
    """
    found = tuple(
        _compare([item for item in items if one.benchmark in (None, item.benchmark)], one) for one in excluded
    )
    for comparison in found:
        leaks = sum(match.overlap.is_leak for match in comparison.matches)
        names = ", ".join(comparison.benchmarks)
        if comparison.fault is not None:
            progress.say(
                f"not compared with {comparison.name}: {comparison.fault}; accuracies of {names} may be measured on "
                "questions that were trained on"
            )
        else:
            progress.say(f"{leaks} questions of {names} leak from {comparison.name} and are left out")
    return found


def without_leaks(items: Sequence[Item], comparisons: Iterable[Comparison]) -> tuple[Item, ...]:
    """Return the items that leak from no set.

    Raises:
        UserError: all of them do.
    """
    comparisons = tuple(comparisons)
    leaking = {
        (match.benchmark, match.item_id)
        for comparison in comparisons
        for match in comparison.matches
        if match.overlap.is_leak
    }
    left = tuple(item for item in items if item.key not in leaking)
    if not left:
        names = ", ".join(one.name for one in comparisons if any(match.overlap.is_leak for match in one.matches))
        raise UserError(
            f"--exclude {names}: all {len(items)} questions leak from it, none is left to ask; name another benchmark, "
            "or another set"
        )
    return left


def possibly_trained_on(comparisons: Iterable[Comparison]) -> tuple[str, ...]:
    """Return the benchmarks that should have been compared with a training set and were not."""
    names = [name for comparison in comparisons if comparison.fault is not None for name in comparison.benchmarks]
    return tuple(dict.fromkeys(names))


def _compare(items: Sequence[Item], excluded: ExcludedSet) -> Comparison:
    benchmarks = tuple(dict.fromkeys(item.benchmark for item in items))
    fault, known, num_trained, num_unreadable = excluded.fault, KnownQuestions(), 0, 0
    if fault is None:
        try:
            num_trained, num_unreadable = _read(excluded, known)
        except UserError as error:
            if excluded.is_required:
                raise
            fault = error.lines[0]
    matches = [(item, known.match(traces_of(item.context, item.question))) for item in items] if not fault else []
    return Comparison(
        name=excluded.name,
        benchmarks=benchmarks,
        num_trained=num_trained,
        num_unreadable=num_unreadable,
        fault=fault,
        matches=tuple(
            ItemMatch(benchmark=item.benchmark, item_id=item.item_id, overlap=match.overlap, trained_id=match.item_id)
            for item, match in matches
            if match is not None
        ),
    )


def _read(excluded: ExcludedSet, known: KnownQuestions) -> tuple[int, int]:
    """Read a training set into `known`; return its numbers of items and of rows that cannot be read.

    Rows are taken whatever their ids: one that shares its id with another row is trained on as well.
    """
    layouts = _layouts(excluded)
    table = _table(excluded, layouts)
    name = f"{excluded.key}={table.name}"
    layout_of = row_layouts(table, layouts, name=name)
    num_items, num_unreadable = 0, 0
    for row in table.rows:
        item = _parsed(row, layout_of[row.file])
        if item is None:
            num_unreadable += 1
            continue
        known.add(traces_of_item(item), item.item_id)
        num_items += 1
    if not num_items:
        raise UserError(f"{name}: none of its {num_unreadable} rows is a question; give another set")
    return num_items, num_unreadable


def _parsed(row: Row | Reject, layout: Layout[Any] | None) -> QuestionItem | DemonstrationItem | None:
    """Return the item of a row; None where it cannot be read."""
    if isinstance(row, Reject) or layout is None:
        return None
    try:
        return layout.parse(row)
    except RowError:
        return None


def _layouts(excluded: ExcludedSet) -> tuple[Layout[Any], ...]:
    match excluded.key:
        case "--exclude":
            return _ANY_LAYOUT
        case "data.train":
            return question_layouts(excluded.form)
        case "data.sft":
            return DEMONSTRATION_LAYOUTS


def _table(excluded: ExcludedSet, layouts: tuple[Layout[Any], ...]) -> Table:
    key, source, form = excluded.key, excluded.source, excluded.form
    if key == "--exclude" and isinstance(source, str):
        return open_source(source, key=key)[1]
    columns = loaded_columns(form.columns)
    table = open_table(source, key=key, demonstrations=key == "data.sft", columns=columns)
    return with_our_columns(source, table, layouts, form, key)
