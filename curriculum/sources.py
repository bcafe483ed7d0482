"""Sources of raw rows: files, globs and folders of them, data sets of the hub, and the generator.

This module knows places, not layouts. A row that cannot be read is a `Reject` in the stream of rows; a source that
cannot be read is a `UserError`.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from curriculum.config import DemonstrationSource, GeneratedData, GeneratedJudgePairs
from curriculum.errors import MAX_LINE_CHARS, UserError, in_line, library_words
from curriculum.file_rows import FORMS, file_kind, open_file
from curriculum.files import expanded, file_errors
from curriculum.hub import is_hub_id
from curriculum.rows import USED_COLUMNS, Row, Table
from curriculum.synthetic import GeneratedRow, generate_demonstrations, generate_items
from curriculum.synthetic_judge import JudgePrompt, generate_judge_pairs

QUOTE_SHARE = WORD_SHARE = 0.5
"""Of generated demonstrations: share whose thinking quotes the document, share of numeric answers written as a word."""
GENERATED_SEEDS = {"train": 1, "sft": 2, "evaluation": 3}
"""By the part of `data` that the documents are for; no two parts draw the same documents."""
JUDGE_PAIRS_SEED = 1
MAX_GENERATED_WORDS = 500_000_000
"""Generated documents are held in memory."""

_HUB_PLACE = re.compile(r"(?P<name>[^:]+)(?::(?P<config>[^:\[\]]+)(?=:))?(?::(?P<split>(?!:)[\w.%\[\]:+-]*))?")
_MAX_NEAR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """One file, or one data set of the hub."""

    given: str
    """As the recipe has it, or as a glob or folder expands it."""
    path: Path | None
    """None for the hub."""


def open_table(
    source: DemonstrationSource,
    *,
    key: str,
    demonstrations: bool = False,
    judge_prompt: JudgePrompt | None = None,
    columns: Collection[str] = (),
) -> Table:
    """Open a source.

    Args:
        source: File, glob, folder or hub id, several of them, or generated data.
        key: Recipe key of the source, for messages; its last part names the generated items.
        demonstrations: Generate items with responses.
        judge_prompt: Words of the judge, for generated judge pairs.
        columns: Columns to load beside those that layouts read.

    Raises:
        UserError: There is no such file, its extension is unknown, file or hub id cannot be read, or judge pairs lack
            their prompt.
    """
    if isinstance(source, GeneratedData):
        _check_size(source, key)
        return _generate(source, role=key.rpartition(".")[2], demonstrations=demonstrations)
    if isinstance(source, GeneratedJudgePairs):
        if judge_prompt is None:
            raise UserError(f"{key}.type={source.type}: there is no judge prompt to fill; only data.sft takes it")
        rows = generate_judge_pairs(num_items=source.num_items, seed=JUDGE_PAIRS_SEED, prompt=judge_prompt)
        return Table(name=source.type, columns=tuple(rows[0]), rows=_number(rows))
    given = [source] if isinstance(source, str) else list(source)
    places = [place for entry in given for place in _places(entry, key)]
    wanted = USED_COLUMNS | frozenset(columns)
    if len(places) == 1:
        return _open_place(places[0], key, wanted)
    if not places:
        raise UserError(f"{key}=[]: names no source; name at least one, or leave the key out")
    return _joined(places, key, wanted, name=in_line(given[0] if len(given) == 1 else f"[{', '.join(given)}]"))


def _open_place(place: _Place, key: str, wanted: frozenset[str]) -> Table:
    shown = in_line(place.given)
    if place.path is None:
        return _open_hub(place.given, key, wanted)
    with file_errors(f"{key}={shown}", "read"):
        return open_file(place.path, name=f"{key}={shown}", shown=shown, wanted=wanted)


def _joined(places: Sequence[_Place], key: str, wanted: frozenset[str], *, name: str) -> Table:
    """Return the rows of several places one after another, each with the name of its place."""
    bases = Counter(Path(place.given).name for place in places)
    tables: dict[str, Table] = {}
    for place in places:
        base = Path(place.given).name
        shown = in_line(base if bases[base] == 1 and place.path else place.given)
        if shown in tables:
            raise UserError(f"{key}={name}: {in_line(place.given)} is named twice; name it once")
        tables[shown] = _open_place(place, key, wanted)
        if not tables[shown].columns:
            raise UserError(f"{key}={in_line(place.given)}: no row in it can be read; leave it out or write it again")
    return Table(
        name=name,
        columns=tuple(dict.fromkeys(column for table in tables.values() for column in table.columns)),
        rows=(replace(row, file=file) for file, table in tables.items() for row in table.rows),
        columns_of={file: table.columns for file, table in tables.items()},
    )


# ---- places


def _places(source: str, key: str) -> list[_Place]:
    """Return what a text of the recipe names, a glob and a folder in the order of their names."""
    name = f"{key}={in_line(source)}"
    with file_errors(name, "read"):
        path = expanded(source, name=name)
        if path.is_dir():
            return _places_of_folder(path, name)
        if path.is_file():
            return [_Place(given=source, path=path)]
        if _looks_like_hub_id(source, path):
            return [_Place(given=source, path=None)]
        if any(character in source for character in "*?["):
            found = sorted(entry for entry in map(Path, glob.glob(str(path), recursive=True)) if entry.is_file())
            if not found:
                raise UserError(f"{name}: no file matches{_nearest_files(path)}; check the pattern")
            return [_Place(given=str(entry), path=entry) for entry in found]
        raise UserError(f"{name}: no such file{_nearest_file(path)}; check the path")


def _places_of_folder(folder: Path, name: str) -> list[_Place]:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    kinds = Counter(kind for kind in map(file_kind, files) if kind is not None)
    if not kinds:
        raise UserError(f"{name}: is a folder without data files; name one ({FORMS}), or {folder}/**/*.parquet")
    if len(kinds) > 1:
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise UserError(
            f"{name}: is a folder with files of several kinds ({found}); name those that are meant: "
            f"{folder}/*{next(iter(kinds))}*"
        )
    return [_Place(given=str(entry), path=entry) for entry in files if file_kind(entry) is not None]


def _looks_like_hub_id(source: str, path: Path) -> bool:
    found = _HUB_PLACE.fullmatch(source)
    is_named_like_file = file_kind(path) is not None or path.suffix.lower() == ".txt"
    return found is not None and is_hub_id(found["name"]) and not is_named_like_file and not path.parent.is_dir()


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (the folder {path.parent} does not exist either)"
    near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def _nearest_files(pattern: Path) -> str:
    """Return the names that are nearest to the last part of a glob."""
    if any(character in str(pattern.parent) for character in "*?["):
        return ""
    if not pattern.parent.is_dir():
        return f" (there is no folder {pattern.parent})"
    names = sorted(entry.name for entry in pattern.parent.iterdir())
    near = get_close_matches(re.sub(r"[*?\[\]]", "", pattern.name), names, n=_MAX_NEAR, cutoff=0.3)
    return f" (near it: {', '.join(near)})" if near else ""


# ---- hub


def _open_hub(source: str, key: str, wanted: frozenset[str]) -> Table:
    from datasets import load_dataset

    place = _HUB_PLACE.fullmatch(source)
    assert place is not None
    try:
        data = load_dataset(place["name"], place["config"], split=place["split"] or "train")
    except Exception as error:  # the library has many types for "not there", "no network" and "no such split"
        raise _hub_error(source, key, place, error) from error
    columns = tuple(data.column_names or ())
    used = data.select_columns([column for column in columns if column in wanted])
    return Table(name=source, columns=columns, rows=_number(used))


def _hub_error(source: str, key: str, place: re.Match[str], error: Exception) -> UserError:
    """Return what a person can do about a data set that cannot be loaded; all its configurations, if they matter."""
    configurations = _configurations(str(error))
    if not configurations:
        return UserError(
            f"{key}={source}: neither a file here nor a data set that the hub delivers ({library_words(error)}); "
            f"check the name and the network, or give a file: {FORMS}"
        )
    name, split = place["name"], place["split"] or "train"
    what = "has several configurations" if place["config"] is None else f"has no configuration {place['config']!r}"
    example = split if split in configurations else configurations[0]
    wish = "train" if split in configurations else split
    return UserError(
        f"{key}={source}: {name} {what}; name one of the {len(configurations)} below, such as {name}:{example}:{wish}",
        *_wrapped(configurations),
    )


def _configurations(message: str) -> list[str]:
    """Return the configurations that the library lists in its refusal of a missing or unknown one."""
    found = re.search(r"(?:available configs: |BuilderConfig .* not found\. Available: )\[(.*?)\]", message, re.DOTALL)
    return [name for _, name in re.findall(r"(['\"])(.*?)\1", found[1])] if found else []


def _wrapped(names: Sequence[str]) -> list[str]:
    """Return names in lines that a message does not shorten."""
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + len(name) + 4 > MAX_LINE_CHARS:
            lines.append("")
        lines[-1] += f", {name}" if lines[-1] else f"  {name}"
    return lines


# ---- generator


def _check_size(source: GeneratedData, key: str) -> None:
    num_words = source.items_per_length * sum(longest for _, longest in source.lengths)
    if num_words > MAX_GENERATED_WORDS:
        raise UserError(
            f"{key}.items_per_length={source.items_per_length}: the documents would have up to {num_words} words, more "
            f"than the {MAX_GENERATED_WORDS} that memory should hold; lower it, or {key}.lengths"
        )


def _generate(source: GeneratedData, *, role: str, demonstrations: bool) -> Table:
    generate: Callable[..., list[GeneratedRow]] = generate_items
    if demonstrations:
        generate = partial(generate_demonstrations, quote_share=QUOTE_SHARE, word_share=WORD_SHARE)
    rows: list[GeneratedRow] = []
    for index, (min_words, max_words) in enumerate(source.lengths):
        rows += generate(
            num_items=source.items_per_length,
            min_words=min_words,
            max_words=max_words,
            seed=GENERATED_SEEDS[role],
            prefix=f"{role}-{index}",
        )
    return Table(name="generated", columns=tuple(rows[0]) if rows else (), rows=_number(rows))


def _number(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return (Row(number=number, values=values) for number, values in enumerate(rows, start=1))
