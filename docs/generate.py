"""Write the pages that the code itself knows: `python -m docs.generate`, or `make docs`.

docs/metrics.md comes from the declarations of metrics (`curriculum.metric`), docs/recipe.md from the models of the
recipe. The text of both is that of the attribute docstrings.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cluster.recipe.changes import KEY_CLASSES, KeyClass
from cluster.recipe.config import RunConfig
from cluster.run.metrics import DECLARING
from curriculum.metric import Metric, declared_metrics

FOLDER = Path(__file__).parent

NOTICE = "<!-- Written by `make docs` from the docstrings in the code; change those. -->\n\n"

METRICS_HEAD = """# Metrics

One line per training step goes to `metrics.jsonl` of the run folder, to Weights & Biases (offline unless
`WANDB_API_KEY` is set) and to Ray as gauges named `qwenlong_<key>` with `/` replaced by `_`. Every line also has
`step` (counted over all stages, from 0) and `stage` (`sft` or the name of the phase). A key is absent where it has no
value: the learner's keys in a step that trained on nothing, the accuracy of replayed groups in a step without any. A
run that is resumed repeats the steps after its last checkpoint; of two lines with the same step the later one counts,
and they differ in their times, in what the object store held, and in when the probe was asked, only.

An evaluation of the held-out questions has a line of its own, with the `heldout/` keys. Its `step` is the number of
finished steps, so it tells of the weights with which that step begins: what `reward/accuracy` of the same step tells of
training questions. Its `stage` is `base` before the first step. One row for each step:

```python
pandas.read_json("runs/demo/metrics.jsonl", lines=True).groupby("step").last()
```

A key that ends in `/*` is a family, with a number for each part: `source:hotpotqa` for a data source (the 32 largest),
`length:4K-8K` for a range of prompt tokens, a name alone for the lengths of a phase. Characters other than letters,
digits and `_.-~` are escaped as in a URL. In Ray a family is one gauge, `qwenlong_reward_accuracy_of`, with the tag
`part`.

*Group*: the answers to one prompt. *Known*: an answer whose reward neither rule nor judge left open.
"""
LEDGER_HEAD = """
Totals over the run. Every lease that is opened ends in exactly one of these ways; `summary.json` has them as well, with
what does not add up (`imbalance`, `null` when all does).
"""
METRICS_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "Warm-up": ("sft",),
    "Learner": ("learner",),
    "Reward": ("reward",),
    "Held-out questions": ("heldout",),
    "Rollout": ("rollout",),
    "Ledger of leases": ("ledger",),
    "Curriculum": ("curriculum",),
    "Weight updates and time": ("sync", "time"),
}
"""Title -> what the keys of the section begin with."""

RECIPE_HEAD = """# Recipe

A run is described by one YAML file, for example [recipes/local.yaml](../recipes/local.yaml); `key=value` on the command
line overrides a key, with dots between the levels: `qwenlong train recipes/local.yaml learner.mini_batches=2`. An
unknown key is an error. `qwenlong check` prints what a recipe comes to, refuses a setting that cannot do what it says,
and tells of one that does nothing. Below, every key with its default; a key without one must be given. *None* is `null`
in YAML; `[]` stands for a position in a list.
"""

RESUME_HEAD = """
## What a resumed run may change

`qwenlong train --resume RUN KEY=VALUE` goes on with another value of a key, and prints and records the change
([operations.md](operations.md#resuming-with-changes)).
"""
RESUME_CLASSES: Final[Mapping[KeyClass, str]] = {
    KeyClass.FREE: "no option is needed.",
    KeyClass.ON_REQUEST: "with `--allow-change KEY`, because the numbers change.",
    KeyClass.NEVER: "a checkpoint holds nothing that would fit the new value.",
}


def pages() -> dict[Path, str]:
    """Return the text of every generated page."""
    return {FOLDER / "metrics.md": metrics_page(), FOLDER / "recipe.md": recipe_page()}


# ---- docstrings of attributes


def attribute_docstrings(kind: type) -> dict[str, list[str]]:
    """Return the paragraphs under each attribute of a class and of its bases, and of each property."""
    found: dict[str, list[str]] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.split(".")[0] not in {"builtins", "typing", "pydantic"}:
            found |= _own_docstrings(base)
    return found


def _own_docstrings(kind: type) -> dict[str, list[str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str | None] = {}
    for statement, following in pairwise([*definition.body, ast.Pass()]):
        if isinstance(statement, ast.FunctionDef):
            found[statement.name] = ast.get_docstring(statement)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = _text(following)
    return {name: _paragraphs(text) for name, text in found.items() if text}


def _text(statement: ast.stmt) -> str | None:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _paragraphs(docstring: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(docstring).split("\n\n")]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


# ---- docs/metrics.md


def metrics_page() -> str:
    """Return the table of all metrics, in sections.

    Raises:
        ValueError: a metric has no docstring, or belongs to no section.
    """
    explained = [row for kind in DECLARING for row in explained_metrics(kind)]
    text = NOTICE + METRICS_HEAD
    for title, stages in METRICS_SECTIONS.items():
        text += f"\n## {title}\n{LEDGER_HEAD if stages == ('ledger',) else ''}\n"
        text += _row("key", "unit", "meaning", "how to read it") + "|---|---|---|---|\n"
        for metric, meaning, reading in explained:
            if metric.key.split("/")[0] in stages:
                text += _row(f"`{metric.key}`", metric.unit or "–", meaning, reading)
    missing = [metric.key for metric, *_ in explained if f"| `{metric.key}` |" not in text]
    if missing:
        raise ValueError(f"metrics {missing} are in no section; add what they begin with to METRICS_SECTIONS")
    return text


def explained_metrics(kind: type) -> Iterator[tuple[Metric, str, str]]:
    """Yield the metrics that a class declares, what each one means, and how to read it."""
    docstrings = attribute_docstrings(kind)
    for name, metric in declared_metrics(kind).items():
        if name not in docstrings:
            raise ValueError(f"{kind.__name__}.{name}: metric {metric.key} has no docstring; say what it means")
        meaning, *reading = docstrings[name]
        yield metric, meaning, " ".join(reading)


# ---- docs/recipe.md


def recipe_page() -> str:
    """Return every key of the recipe, a table for each section of it.

    Raises:
        ValueError: a key has no docstring.
    """
    return NOTICE + RECIPE_HEAD + "".join(key_tables("", RunConfig, None)) + resume_section()


def resume_section() -> str:
    """Return the keys by what a resumed run may do with them."""
    text = RESUME_HEAD
    for key_class, meaning in RESUME_CLASSES.items():
        keys = [f"`{key}`" for key, found in KEY_CLASSES.items() if found is key_class]
        text += f"\n**{key_class.capitalize()}**: {meaning}\n\n{', '.join(keys)}\n"
    return text


def key_tables(path: str, model: type[BaseModel], given: BaseModel | None, kind: str = "") -> Iterator[str]:
    """Yield the table of the keys of a model, then those of the models inside.

    Args:
        path: What the keys begin with, its dot included; empty for the recipe itself.
        model: The keys.
        given: The default of the whole model; None where it has none.
        kind: Its `type` in a union.
    """
    docstrings = attribute_docstrings(model)
    level = "#" * min(4, 1 + path.count("."))
    if path:
        yield f"\n{level} `{path.removesuffix('.')}`{f' with `type: {kind}`' if kind else ''}\n"
        yield f"\n{_docstring(model)}\n"
    if not all(map(_is_tag, model.model_fields.values())):
        yield "\n" + _row("key", "type", "default", "range", "meaning") + "|---|---|---|---|---|\n"
    inner: list[tuple[str, type[BaseModel], BaseModel | None, str]] = []
    for name, field in model.model_fields.items():
        if _is_tag(field):
            continue
        default = field.get_default(call_default_factory=True) if given is None else getattr(given, name)
        key, models = path + name, _models(field.annotation)
        meaning = " ".join(docstrings.get(name, [])) or (_docstring(models[0]) if len(models) == 1 else "")
        if not meaning:
            raise ValueError(f"{model.__name__}.{name}: recipe key {key} has no docstring; say what it means")
        text = _default(field, default, models)
        yield _row(f"`{key}`", _type(field.annotation), text, _range(field.metadata, field.annotation), meaning)
        below = f"{key}[]." if get_origin(_without_none(field.annotation)) is tuple else f"{key}."
        inner += [(below, x, default if type(default) is x else None, _tag(x)) for x in models]
    for arguments in inner:
        yield from key_tables(*arguments)


def _docstring(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _is_tag(field: FieldInfo) -> bool:
    """Whether the field only tells the models of a union apart."""
    return get_origin(field.annotation) is Literal and get_args(field.annotation) == (field.default,)


def _tag(model: type[BaseModel]) -> str:
    field = model.model_fields.get("type")
    return str(field.default) if field is not None and _is_tag(field) else ""


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every model that a value may be, or that its entries may be."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _without_none(annotation: Any) -> Any:
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return parts[0] if get_origin(annotation) in (Union, UnionType) and len(parts) == 1 else annotation


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of: {_type(parts[0])}"
    if origin is tuple:
        return "[" + ", ".join(_type(part) for part in parts) + "]"
    if origin is dict:
        return f"map of {_type(parts[0])} to {_type(parts[1])}"
    if annotation is JsonValue:
        return "any value"
    if issubclass(annotation, Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    if issubclass(annotation, BaseModel):
        return f"`type: {_tag(annotation)}`" if _tag(annotation) else "section"
    return {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null"}[annotation]


def _default(field: FieldInfo, default: Any, models: list[type[BaseModel]]) -> str:
    if default is PydanticUndefined:
        return "see below" if models and not _tag(models[0]) and not _must_be_given(models[0]) else "–"
    if isinstance(default, BaseModel):
        return f"`type: {_tag(type(default))}`" if _tag(type(default)) else "see below"
    if isinstance(default, Enum):
        return f"`{default.value}`"
    if isinstance(default, bool) or default is None:
        return {True: "true", False: "false", None: "null"}[default]
    if isinstance(default, tuple) and any(isinstance(x, BaseModel) for x in default):
        return ", ".join(f"`{x}`" for x in default)
    if isinstance(default, tuple):
        return "`[" + ", ".join(str(x) for x in default) + "]`"
    return f"`{default}`"


def _must_be_given(model: type[BaseModel]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


def _range(metadata: list[Any], annotation: Any) -> str:
    """Bounds of a number, of what a text must match, or of the parts of a value."""
    told = [_bound(entry) for entry in metadata]
    told += [_range(list(part.__metadata__), part.__origin__) for part in get_args(annotation) if _is_annotated(part)]
    return ", ".join(dict.fromkeys(x for x in told if x))


def _is_annotated(annotation: Any) -> bool:
    return get_origin(annotation) is Annotated


def _bound(entry: Any) -> str:
    if isinstance(entry, FieldInfo):
        return _range(entry.metadata, None)
    for kind, sign, name in ((Gt, ">", "gt"), (Ge, "≥", "ge"), (Lt, "<", "lt"), (Le, "≤", "le")):
        if isinstance(entry, kind):
            return f"{sign} {getattr(entry, name)}"
    if isinstance(entry, MinLen):
        return "not empty"
    pattern = getattr(entry, "pattern", None)
    return f"matches `{pattern}`" if pattern else ""


if __name__ == "__main__":
    for page, content in pages().items():
        page.write_text(content, encoding="utf-8")
