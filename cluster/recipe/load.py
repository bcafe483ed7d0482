"""Recipe files: YAML with `extends`, and typed `key=value` overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from pydantic import ValidationError

from cluster.recipe.config import RunConfig
from cluster.recipe.faults import explain_faults
from cluster.recipe.strict_yaml import MAX_CHARS, YamlFault, read_yaml
from curriculum.errors import UserError, described
from curriculum.files import file_errors


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, the recipes that it extends, and the overrides; later ones replace earlier ones.

    Raises:
        UserError: one line for each fault, with key, value and way out.
    """
    values = _read(Path(path), seen=())
    for override in overrides:
        apply_override(values, override)
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


def apply_override(values: dict[str, Any], override: str) -> None:
    """Put the value of a `key=value` text into the values of a recipe, which need not be valid yet.

    Raises:
        UserError: it has another form, its value is no YAML, or its key goes through something that has no keys.
    """
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
