"""Recipe files: YAML with `extends`, and typed `key=value` overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from pydantic import ValidationError

from cluster.recipe.config import RunConfig
from cluster.recipe.faults import alternative, explain_faults
from cluster.recipe.strict_yaml import MAX_CHARS, YamlFault, read_yaml
from curriculum.config import dotted
from curriculum.errors import UserError, described
from curriculum.files import file_errors


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, the recipes that it extends, and the overrides; later ones replace earlier ones.

    Raises:
        UserError: one line for each fault, with key, value and way out.
    """
    values = _read(Path(path), seen=())
    apply_overrides(values, overrides)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(*explain_faults(error, values)) from error


def dump_recipe(config: RunConfig) -> str:
    """Return the resolved recipe as YAML, which `load_recipe` reads back to an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    with file_errors(f"recipe {path}", "read"):
        return _read_file(path, seen)


def _read_file(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"recipe {path}: is a folder; name a YAML file in it")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; give the path of a YAML recipe"
        raise UserError(f"recipe {path}: no such file{hint}")
    path = path.resolve()
    if path in seen:
        raise UserError(
            f"recipe {path}: extends itself through {' -> '.join(p.name for p in (*seen, path))}; remove one `extends`"
        )
    with path.open("rb") as file:
        content = file.read(4 * MAX_CHARS + 1)
    try:
        values = read_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except YamlFault as error:
        raise UserError(f"recipe {path}: {error}") from error
    if not _is_mapping(values):
        raise UserError(f"recipe {path}: holds {described(values)}; expected a mapping of keys")
    if "extends" not in values:
        return values
    parent = values.pop("extends")
    if not isinstance(parent, str):
        raise UserError(f"recipe {path}: extends={parent!r:.80} is {described(parent)}; give the path of a recipe")
    return _merge(_read(path.parent / parent, (*seen, path)), values)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; a mapping of another `type`, a list or a scalar replaces what it overrides."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if _is_mapping(old) and _is_mapping(value) and value.get("type", old.get("type")) == old.get("type"):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _is_mapping(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put the values of `key=value` texts into the values of a recipe, which need not be valid yet.

    An override `….type=` drops the keys of the recipe that only another type has. One that an override gives stays, and
    is refused later where its type does not have it.

    Raises:
        UserError: one has another form, its value is no YAML, or its key goes through something that has no keys.
    """
    for override in overrides:
        _apply(values, override)
    given = {name for override in overrides for name in _keys_of(override)}
    for key in sorted(given):
        if key.endswith(".type"):
            _drop_replaced(values, key.split(".")[:-1], given)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r:.200}: expected key=value, for example learner.learning_rate=1e-6")
    try:
        value = read_yaml(text)
    except YamlFault as error:
        raise UserError(f"override {override!r:.200}: {error}") from error
    node: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        node = _descend(node, parent, override)
    if _is_list(node):
        node[_list_index(node, last, override)] = value
    elif _is_mapping(node):
        node[last] = value
    else:
        raise UserError(
            f"override {override!r:.200}: {last!r:.80} is a key of {described(node)}; remove it from the key"
        )


def _drop_replaced(values: dict[str, Any], section: Sequence[str], given: Collection[str]) -> None:
    node = _at(values, section)
    if not _is_mapping(node):
        return
    chosen, others = alternative(section, node.get("type"))
    known = chosen.model_fields if chosen else node
    foreign = {name for model in others for name in model.model_fields if name not in known}
    for name in foreign & node.keys():
        if ".".join([*section, name]) not in given:
            del node[name]


def _keys_of(override: str) -> list[str]:
    """Return the dotted keys that an override gives a value; several for a mapping."""
    key, _, text = override.partition("=")
    return list(dotted(read_yaml(text), key))


def _at(node: Any, keys: Sequence[str]) -> Any:
    """Return what lies at a place, None where nothing does any more because a later override replaced it."""
    for key in keys:
        if _is_list(node):
            node = node[int(key)] if key.isdecimal() and int(key) < len(node) else None
        else:
            node = node.get(key) if _is_mapping(node) else None
    return node


def _descend(node: Any, key: str, override: str) -> Any:
    if _is_list(node):
        return node[_list_index(node, key, override)]
    if not _is_mapping(node):
        raise UserError(
            f"override {override!r:.200}: {key!r:.80} is a key of {described(node)}; remove it from the key"
        )
    if not isinstance(node.get(key), dict | list):
        node[key] = {}
    return node[key]


def _list_index(node: list[Any], key: str, override: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", key) or int(key) >= len(node):
        choice = f"an index from 0 to {len(node) - 1}" if node else "left out: the list is empty"
        raise UserError(f"override {override!r:.200}: {key!r:.80} must be {choice}")
    return int(key)
