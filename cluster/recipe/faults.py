"""Errors in a recipe, in the words of a recipe: one line for each key, with its value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cluster.recipe.config import RunConfig
from curriculum.errors import described, shortened


def explain_faults(error: ValidationError, values: dict[str, Any]) -> list[str]:
    """Return one line for each faulty key; of a union, only faults of the branch that the recipe chose by `type`."""
    located = [(_locate(fault["loc"], values), fault) for fault in error.errors()]
    chosen = [(place, fault) for place, fault in located if place.is_chosen]
    lines = {tuple(place.keys): _explain(place, fault) for place, fault in reversed(chosen or located)}
    return list(lines.values())[::-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a fault is."""

    keys: list[str]
    """As a recipe writes them."""
    is_chosen: bool
    """Whether it is in the branches of unions that the recipe chose."""
    parents: list[type[BaseModel]]
    """Models that the last key would belong to: those of the chosen branch."""


def _explain(place: _Place, fault: Any) -> str:
    location = place.keys
    key = ".".join(location) or "recipe"
    value = fault.get("input")
    if location[-1:] == ["[key]"] and "expected" in fault.get("ctx", {}):
        return f"{shortened('.'.join(location[:-1]), 120)}: unknown name; known: {fault['ctx']['expected']}"
    if fault["type"] == "extra_forbidden":
        return f"{shortened(key, 120)}={shortened(repr(value), 80)}: {_unknown_key(place)}"
    if fault["type"] == "missing":
        return f"{key}: missing; add it to the recipe"
    if fault["type"] == "value_error":
        return f"{key}: {fault['ctx']['error']}" if location else str(fault["ctx"]["error"])
    if fault["type"] == "union_tag_invalid":
        return f"{key}.type={fault['ctx']['tag']!r:.80}: unknown; known: {fault['ctx']['expected_tags']}"
    if fault["type"] == "union_tag_not_found":
        return f"{key}.type: missing; add it to say which kind of {key} this is"
    shown = shortened(repr(value), 80)
    if fault["type"] == "model_type":
        return f"{key}={shown}: expected a mapping of keys, found {described(value)}"
    return f"{key}={shown}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _unknown_key(place: _Place) -> str:
    """Return what is wrong with a key that its mapping does not have, and the way out."""
    *section, key = place.keys
    known = sorted({name for model in place.parents for name in model.model_fields})
    owners = [model for model in alternatives(section) if key in model.model_fields and model not in place.parents]
    tags = [str(_tag(model)) for model in place.parents if _tag(model)]
    if owners and tags:
        others = ", ".join(name for name in known if name != "type") or "no keys"
        return f"{key} belongs to {' and '.join(str(_tag(owner)) for owner in owners)}; {tags[0]} has {others}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return (
        f"unknown key; did you mean {'.'.join([*section, near[0]])}?"
        if near
        else (f"unknown key; known: {', '.join(known)}")
    )


def alternatives(location: Sequence[str]) -> list[type[BaseModel]]:
    """Return the models that a mapping may be at a place of a recipe; indices of lists are passed over."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in location:
        inner = [
            m for parent in models if part in parent.model_fields for m in _models(parent.model_fields[part].annotation)
        ]
        models = inner or models
    return models


def alternative(location: Sequence[str], tag: Any) -> tuple[type[BaseModel] | None, list[type[BaseModel]]]:
    """Return the model of that `type` at a place of a recipe, None without one, and the other ones."""
    models = alternatives(location)
    chosen = next((model for model in models if _tag(model) == tag), None)
    return chosen, [model for model in models if model is not chosen]


def _locate(location: Sequence[str | int], values: Any) -> _Place:
    """Return where a fault is; pydantic puts the tag or the name of a branch after the key of a union."""
    keys: list[str] = []
    models: list[type[BaseModel]] = [RunConfig]
    is_chosen, is_branch, node = True, False, values
    for part in location:
        if is_branch and str(part).startswith("tagged-union["):
            continue  # a union inside a union; the branch comes next
        if is_branch:
            models = [model for model in models if part in (model.__name__, _tag(model))]
            is_chosen = is_chosen and _chooses(node, models) and not (part == "str" and isinstance(node, list))
            is_branch = False
            continue
        keys.append(str(part))
        node = _child(node, part)
        annotations = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if annotations:
            models = [model for annotation in annotations for model in _models(annotation)]
            is_branch = any(_num_branches(annotation) > 1 for annotation in annotations)
    return _Place(keys=keys, is_chosen=is_chosen, parents=models)


def _child(node: Any, part: str | int) -> Any:
    try:
        return node[part]
    except (KeyError, IndexError, TypeError):
        return None


def _chooses(node: Any, branch: Sequence[type[BaseModel]]) -> bool:
    """Return whether a value chooses this branch of a union; a branch without models is plain text."""
    if not isinstance(node, dict):
        return not branch
    chosen = cast("dict[str, Any]", node)
    return any(chosen.get("type", _tag(model)) == _tag(model) for model in branch)


def _tag(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("type")
    return field.default if field else None


def _num_branches(annotation: Any) -> int:
    """Return the number of members of a union besides None; 0 for anything else."""
    if get_origin(annotation) not in (Union, UnionType):
        return 0
    return sum(argument is not type(None) for argument in get_args(annotation))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
