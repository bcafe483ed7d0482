"""The versions that this program was tested with, as its own package states them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

from cluster.doctor.facts import PACKAGES


def pinned_versions() -> dict[str, str]:
    """Return the pinned version of each package, by its name in `PACKAGES`; none where this is not installed."""
    try:
        return pins_of(requires("qwenlong-l1") or ())
    except PackageNotFoundError:
        return {}


def pins_of(requirements: Iterable[str]) -> dict[str, str]:
    """Return the exact versions among requirements, those of extras included, by the names in `PACKAGES`."""
    names = {distribution: name for name, distributions in PACKAGES.items() for distribution in distributions}
    pins: dict[str, str] = {}
    for requirement in map(Requirement, requirements):
        specifiers = list(requirement.specifier)
        if requirement.name in names and [one.operator for one in specifiers] == ["=="]:
            pins[names[requirement.name]] = specifiers[0].version
    return pins
