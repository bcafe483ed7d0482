"""Leaks between the sets of a recipe: found while they are read, told in notes, and kept out of the held-out set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from curriculum.config import DataConfig, DemonstrationSource
from curriculum.errors import UserError, in_line
from curriculum.layout import DemonstrationItem, QuestionItem
from curriculum.leaks import KnownQuestions, Overlap, traces_of_item
from curriculum.rejects import RejectReason, RowError

HELD_OUT = "data.evaluation"


def check_sources_differ(data: DataConfig) -> None:
    """Check, before anything is read, that no source is both trained on and held out.

    Raises:
        UserError: one is.
    """
    held_out = dict(_sources(data.evaluation))
    for key, source in (("data.train", data.train), ("data.sft", data.sft)):
        for identity, given in _sources(source):
            if identity in held_out:
                raise UserError(
                    f"{HELD_OUT}={in_line(held_out[identity])}: {key} names it too, as {in_line(given)}; hold out "
                    "questions that are not trained on, or set data.evaluation=null"
                )


def _sources(source: DemonstrationSource | None) -> Iterator[tuple[str, str]]:
    """Yield (what names the same thing, as it is given) of every file, folder, glob or hub id."""
    given = [source] if isinstance(source, str) else source if isinstance(source, tuple) else ()
    for text in given:
        path = os.path.expanduser(text)
        yield os.path.realpath(path) if os.path.exists(path) else text.removesuffix(":train"), text


class LeakWatch:
    """What the sets of a recipe have in common; is shown their items one by one, the held-out ones last."""

    def __init__(self) -> None:
        self._known = {"data.train": KnownQuestions(), "data.sft": KnownQuestions()}
        self._counts: Counter[tuple[str, Overlap]] = Counter()
        self._shared_lessons: Counter[Overlap] = Counter()
        self._num_lessons = self._num_held_out = 0

    def train(self, item: QuestionItem) -> None:
        """Remember a question of `data.train`."""
        self._known["data.train"].add(traces_of_item(item), item.item_id)

    def sft(self, item: DemonstrationItem) -> None:
        """Remember a demonstration of `data.sft`, and what it has in common with `data.train`."""
        traces = traces_of_item(item)
        self._num_lessons += 1
        if (match := self._known["data.train"].match(traces)) is not None:
            self._shared_lessons[match.overlap] += 1
        self._known["data.sft"].add(traces, item.item_id)

    def held_out(self, item: QuestionItem) -> None:
        """Refuse a question of `data.evaluation` that leaks.

        Raises:
            RowError: it does.
        """
        self._num_held_out += 1
        traces = traces_of_item(item)
        matches = [(key, match) for key, known in self._known.items() if (match := known.match(traces)) is not None]
        if not matches:
            return
        key, match = min(matches, key=lambda found: list(Overlap).index(found[1].overlap))
        self._counts[key, match.overlap] += 1
        if match.overlap.is_leak:
            detail = f"{match.overlap} as item {match.item_id!r:.40} of {key}; hold out what is not trained on"
            raise RowError(RejectReason.LEAK, detail)

    def notes(self) -> Iterator[str]:
        """Yield what a person should know, one line each."""
        shared = {overlap: count for overlap, count in self._shared_lessons.items() if overlap.is_leak}
        if shared:
            yield (
                f"data.sft: {sum(shared.values())} of {self._num_lessons} demonstrations are about documents of "
                f"data.train ({_in_words(shared)}); those questions are no longer new to the reinforcement learning"
            )
        leaks = {key: self._counts_of(key, leaks=True) for key in self._known}
        if total := sum(sum(counts.values()) for counts in leaks.values()):
            by_set = "; ".join(f"{key}: {_in_words(counts)}" for key, counts in leaks.items() if counts)
            yield f"{HELD_OUT}: {total} of {self._num_held_out} questions are left out because they leak ({by_set})"
        wordings = sum(sum(self._counts_of(key, leaks=False).values()) for key in self._known)
        if wordings:
            yield (
                f"{HELD_OUT}: {wordings} of {self._num_held_out} questions are worded as one that is trained on, about "
                "another document; they are kept"
            )

    def _counts_of(self, key: str, *, leaks: bool) -> dict[Overlap, int]:
        counts = {overlap: self._counts[key, overlap] for overlap in Overlap if overlap.is_leak is leaks}
        return {overlap: count for overlap, count in counts.items() if count}


def _in_words(counts: dict[Overlap, int]) -> str:
    return ", ".join(f"{overlap} {counts[overlap]}" for overlap in Overlap if overlap in counts)
