"""Which benchmarks there are, and how a name, a file or a hub id becomes items."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from curriculum.dataset import Loaded, convert_rows
from curriculum.errors import UserError, library_words
from curriculum.layout import QuestionItem
from curriculum.rejects import Reject
from curriculum.rows import USED_COLUMNS, Row, Table
from curriculum.sources import open_table
from evaluation.layouts import BENCHMARK_LAYOUTS
from evaluation.record import Item

LONGBENCH = "THUDM/LongBench"
"""Published as one archive of JSONL files."""
DOCMATH_NAME = "docmath"
DOCMATH = "yale-nlp/DocMath-Eval"
DOCMATH_SPLITS = ("simpshort_testmini", "simplong_testmini", "compshort_testmini", "complong_testmini")
LONGBENCH_NAMES = ("2wikimqa", "hotpotqa", "musique", "narrativeqa", "qasper")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def load_items(source: str) -> Loaded[Item]:
    """Read one source: a published name, a file, or a hub id.

    `NAME=` in front makes all its rows one benchmark of that name. Without a name each row belongs to the benchmark
    that its data source names.

    Raises:
        UserError: The source cannot be read, its columns fit no layout, or no row is usable.
    """
    name, table = open_source(source)
    return convert_rows(
        table, BENCHMARK_LAYOUTS, lambda item: _item(name, item), name=f"benchmark {source}", merge=_with_answers_of
    )


def merge_items(sources: Iterable[Loaded[Item]]) -> tuple[Item, ...]:
    """Return all items in order.

    Raises:
        UserError: Two sources hold different items of the same benchmark under one id.
    """
    items: dict[tuple[str, str], Item] = {}
    for item in chain.from_iterable(source.records for source in sources):
        if items.get(item.key, item) != item:
            raise UserError(
                f"two sources hold different items with the id {item.item_id!r} of the benchmark {item.benchmark}; "
                "give one of them another name with NAME=SOURCE"
            )
        items.setdefault(item.key, item)
    return tuple(items.values())


def first_items(items: Iterable[Item], max_items: int | None) -> tuple[Item, ...]:
    """Return the first items of each benchmark; None: all of them."""
    counts: Counter[str] = Counter()
    found: list[Item] = []
    for item in items:
        counts[item.benchmark] += 1
        if max_items is None or counts[item.benchmark] <= max_items:
            found.append(item)
    return tuple(found)


def _with_answers_of(item: Item, repetition: QuestionItem) -> Item:
    """Return an item that also accepts what a repetition of its question accepts."""
    return replace(item, answers=tuple(dict.fromkeys([*item.answers, *repetition.answers])))


def _item(name: str | None, item: QuestionItem) -> Item:
    """Put a question into a benchmark: the named one, else the one of its data source."""
    return Item(
        benchmark=name or item.data_source,
        item_id=item.item_id,
        data_source=item.data_source,
        context=item.context,
        question=item.question,
        answers=item.answers,
    )


def open_source(source: str, *, key: str = "benchmark") -> tuple[str | None, Table]:
    """Open a published name, a file or a hub id; return the name in front of it, if it has one, and its table.

    Args:
        source: as `load_items` takes it.
        key: what names it, for messages.

    Raises:
        UserError: it cannot be opened.
    """
    name, equals, place = source.partition("=")
    if equals and _NAME.fullmatch(name):
        return name, open_table(place, key=f"{key} {name}")
    if source in LONGBENCH_NAMES:
        return source, _longbench(source)
    if source == DOCMATH_NAME:
        tables = [open_table(f"{DOCMATH}:{split}", key="benchmark docmath") for split in DOCMATH_SPLITS]
        return source, Table(name=DOCMATH, columns=tables[0].columns, rows=_renumbered(tables))
    if source == "frames":
        raise UserError(
            "benchmark frames: it is published with links instead of documents; fetch the linked pages into a column "
            "`context` beside Prompt and Answer, and give the file as frames=FILE"
        )
    return None, open_table(source, key=key)


def _renumbered(tables: Iterable[Table]) -> Iterator[Row | Reject]:
    rows = chain.from_iterable(table.rows for table in tables)
    for number, row in enumerate(rows, start=1):
        yield Row(number=number, values=row.values) if isinstance(row, Row) else row


def _longbench(name: str) -> Table:
    from datasets import load_dataset

    member = f"zip://data/{name}.jsonl::hf://datasets/{LONGBENCH}/data.zip"
    try:
        data = load_dataset("json", data_files={"test": member}, split="test")
    except Exception as error:  # the library has many types for "not there" and "no network"
        raise UserError(
            f"benchmark {name}: {LONGBENCH} cannot be read from the hub ({library_words(error)}); check the network, "
            f"or unpack its data.zip and give {name}=PATH/{name}.jsonl"
        ) from error
    columns = tuple(data.column_names or ())
    used = data.select_columns([column for column in columns if column in USED_COLUMNS])
    return Table(name=name, columns=columns, rows=(Row(number=n, values=row) for n, row in enumerate(used, start=1)))
