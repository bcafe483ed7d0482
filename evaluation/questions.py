"""The questions of an evaluation: read, compared with what models are trained on, and asked under controls besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from curriculum.controls import Control, documents_under
from curriculum.dataset import Loaded
from evaluation.benchmarks import first_items, load_items, merge_items
from evaluation.config import EvaluationConfig
from evaluation.exclusion import Comparison, compare, without_leaks
from evaluation.progress import Progress
from evaluation.record import Item
from evaluation.store import fingerprint

_DRAW_SEED = 0
"""Of the other documents: the same in every evaluation, whatever the seed of its answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What is asked, and what is not."""

    items: tuple[Item, ...]
    under: Mapping[Control, tuple[Item, ...]]
    """The same questions under each control; those that have no other document are left out."""
    rejects: Mapping[str, int]
    """Refused rows by source."""
    comparisons: tuple[Comparison, ...]
    """What they have in common with training sets."""


def read_questions(config: EvaluationConfig, progress: Progress) -> Questions:
    """Read the questions of an evaluation.

    Raises:
        UserError: a source or a training set cannot be read, or no question is left.
    """
    sources = read_sources(config.sources, progress)
    every = merge_items(sources.values())
    comparisons = compare(every, config.exclude, progress)
    items = first_items(without_leaks(every, comparisons), config.max_items)
    return Questions(
        items=items,
        under={control: items_under(control, items, every) for control in config.control},
        rejects=num_rejects(sources),
        comparisons=comparisons,
    )


def read_sources(names: Sequence[str], progress: Progress) -> dict[str, Loaded[Item]]:
    """Read all sources, by name; print the first refused rows of each, one line per row."""
    sources = {name: load_items(name) for name in names}
    for name, loaded in sources.items():
        for reject in loaded.rejects[:5]:
            progress.say(f"{name}: {reject.place} refused ({reject.reason}): {reject.detail}")
        if len(loaded.rejects) > 5:
            progress.say(f"{name}: {len(loaded.rejects)} rows refused in all")
    return sources


def num_rejects(sources: Mapping[str, Loaded[Item]]) -> dict[str, int]:
    """Count the refused rows of each source."""
    return {name: len(loaded.rejects) for name, loaded in sources.items()}


def items_under(control: Control, items: Sequence[Item], every: Sequence[Item]) -> tuple[Item, ...]:
    """Return questions as they are asked under a control: items of benchmarks of their own.

    Their ids depend on the document that is shown, so that a stored answer is never taken for that to another prompt.

    Args:
        control: what becomes of their documents.
        items: questions that are asked.
        every: questions among whose documents another one is drawn, benchmark by benchmark: all that were read, so that
            a draw does not depend on how many are asked.
    """
    other_of: dict[tuple[str, str], str | None] = {}
    for benchmark in dict.fromkeys(item.benchmark for item in items):
        peers = [item for item in every if item.benchmark == benchmark]
        documents = documents_under(control, [item.context for item in peers], seed=_DRAW_SEED)
        other_of |= {item.key: document for item, document in zip(peers, documents, strict=True)}
    return tuple(
        replace(
            item,
            benchmark=f"{item.benchmark}/{control}",
            item_id=f"{item.item_id}/{fingerprint(document)}",
            context=document,
        )
        for item in items
        if (document := other_of[item.key]) is not None
    )
