"""Compares what the product uses of the libraries with what was recorded of their builds for GPUs."""

from __future__ import annotations

import ast
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance.signatures import Parameters, parameters_of, schema_parameters, signature
from tests.conformance.uses import ROOT, Use

RECORD = ROOT / "tests" / "data" / "gpu_signatures.json"
LOCK = ROOT / "requirements-gpu.lock"
PACKAGES = ("vllm", "deepspeed", "torch", "ray", "transformers")
OPERATORS = "torch.ops.aten."
PRIVATE = Path(__file__).with_name("private_names.toml")
RECORD_AGAIN = "run `python -m tests.conformance.record`"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateName:
    """A name that a package does not document, and that the product uses nevertheless."""

    package: str
    name: str
    file: str
    """Where it is defined, below the folder of the package."""


def listed_names() -> list[PrivateName]:
    """The list of private names."""
    packages = tomllib.loads(PRIVATE.read_text(encoding="utf-8"))
    return [
        PrivateName(package=package, name=name, file=file)
        for package, listed in packages.items()
        for name, (file, _) in listed["names"].items()
    ]


def listed_versions() -> dict[str, str]:
    """Versions in which the private names were read."""
    return {name: listed["version"] for name, listed in tomllib.loads(PRIVATE.read_text(encoding="utf-8")).items()}


def operator_schema(name: str) -> str:
    """The schema of an operator of torch in this process.

    Raises:
        AttributeError: there is no such operator.
    """
    import torch

    operator: Any = torch.ops.aten
    for part in name.removeprefix(OPERATORS).split("."):
        operator = getattr(operator, part)
    return str(getattr(operator, "default", operator)._schema)


def recorded() -> dict[str, Any]:
    """The record."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def locked_versions(lock: Path = LOCK) -> dict[str, str]:
    """Versions of the packages that a machine with GPUs gets."""
    pins = dict(line.split("==") for line in lock.read_text(encoding="utf-8").split())
    return {package: pins[package] for package in PACKAGES}


def problems(uses: list[Use], record: dict[str, Any]) -> list[str]:
    """What the libraries do not have, or would refuse; one line for each place."""
    found = [problem for use in uses if (problem := _problem(use, record["names"])) is not None]
    return list(dict.fromkeys(found))


def _problem(use: Use, names: dict[str, Any]) -> str | None:
    if use.name not in names:
        return f"{use.where}: {use.name} is not in the record; {RECORD_AGAIN}"
    parameters = names[use.name]
    if parameters is not None:
        split = schema_parameters if use.name.startswith(OPERATORS) else _split
        parameters = split(parameters)
    if use.overrides is not None:
        return None if _accepts(use.overrides, parameters) else f"{use.where}: {use.name} is called with {parameters}"
    if not use.is_call or parameters is None:
        return None
    try:
        bind(parameters, use.positional, use.keywords)
    except TypeError as error:
        return f"{use.where}: {use.name}: {error}"
    return None


def _split(parameters: str) -> Parameters:
    return parameters.split(", ") if parameters else []


def bind(parameters: Parameters, positional: int | None, keywords: tuple[str, ...]) -> None:
    """Bind arguments to parameters; with an unknown number of positional ones, the keywords alone.

    Raises:
        TypeError: they do not fit.
    """
    named = dict.fromkeys(keywords)
    if positional is None:
        signature(parameters).bind_partial(**named)
    else:
        signature(parameters).bind(*[None] * positional, **named)


def _accepts(own: ast.arguments, base: Parameters) -> bool:
    """Whether a method of ours can be called with every parameter of the one that it overrides."""
    given = [entry for entry in base if not entry.startswith("*") and entry != "/"]
    try:
        signature(parameters_of(own, drop_first=True)).bind(*given)
    except TypeError:
        return False
    return True
