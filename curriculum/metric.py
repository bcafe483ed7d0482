"""The declaration of a metric: it stands on the attribute that holds the number, wherever that is computed.

    entropy: Annotated[float, Metric("learner/entropy", "nats", mean_over="tokens")]
    \"\"\"Mean entropy of the policy over the response tokens.

    Falls slowly. A fall towards zero ends exploration.\"\"\"

The first paragraph of the docstring says what the number means, the others how to read it; docs/metrics.md is made of
them. A property declares its metric on what it returns.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cache
from math import isnan
from typing import Any, Literal, cast, get_args, get_type_hints
from urllib.parse import quote

Metrics = dict[str, float]
"""Key -> value. A key is absent where it has no value."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a step."""

    key: str
    """`stage/name`, as in metrics.jsonl; `stage/name/*` for a family."""
    unit: str = ""
    """Empty for a number without one."""
    mean_over: Literal["tokens", "compared_tokens", "updates"] | None = None
    """What the sum over rows and ranks of the learner is divided by; None where there is no such sum."""


@cache
def declared_metrics(kind: type) -> Mapping[str, Metric]:
    """Return the metrics that a class and its bases declare, by attribute, fields before properties."""
    hints = get_type_hints(kind, include_extras=True)
    for base in reversed(kind.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, property):
                hints[name] = get_type_hints(value.fget, include_extras=True).get("return")
    found = {name: [x for x in get_args(hint) if isinstance(x, Metric)] for name, hint in hints.items()}
    return {name: metrics[0] for name, metrics in found.items() if metrics}


def metrics_of(source: object, kind: type | None = None) -> Metrics:
    """Read the metrics off an object, members of families included; a value that is None or NaN is left out.

    Args:
        source: Any object; None has no metrics.
        kind: The class that declares them, where it is not that of the object: a protocol that the object fulfils.
    """
    if source is None:
        return {}
    declared = declared_metrics(kind or type(source))
    values: dict[str, Any] = {}
    for name, metric in declared.items():
        value = getattr(source, name)
        if isinstance(value, Mapping):
            members = cast("Mapping[str, float]", value)
            values |= {metric.key.removesuffix("*") + member: number for member, number in members.items()}
        else:
            values[metric.key] = value
    return {key: _number(value) for key, value in values.items() if value is not None and not isnan(value)}


def member(name: str, *, of: str = "") -> str:
    """Return how a member of a family is called: `source:hotpotqa`; odd characters are escaped as in a URL.

    Args:
        name: any text, for instance from data.
        of: what kind of part it names; "" where the family says so.
    """
    return (f"{of}:" if of else "") + quote(name, safe="")


def is_declared(key: str, declared: Container[str]) -> bool:
    """Return whether a key is one of the declared ones, or that of a member of a declared family."""
    family = f"{key.rpartition('/')[0]}/*"
    return key != family and (key in declared or family in declared)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, bool) else value
