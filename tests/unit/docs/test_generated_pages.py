"""docs/metrics.md and docs/recipe.md say what the code says, and the code says something of every metric and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import Field

from curriculum.config import StrictModel
from curriculum.metric import Metric
from docs.generate import attribute_docstrings, explained_metrics, key_tables, pages


class Small(StrictModel):
    """One of two."""

    type: Literal["small"] = "small"
    share: float = Field(default=0.5, ge=0, lt=1)
    """How much."""


class Large(StrictModel):
    """The other."""

    type: Literal["large"] = "large"
    sizes: tuple[int, ...] = (1, 2)
    """How large."""


class Recipe(StrictModel):
    """A recipe of a few keys."""

    name: str = Field(pattern="^[a-z]+$")
    """What it is called."""
    kind: Annotated[Small | Large, Field(discriminator="type")] = Large(sizes=(3,))
    """Which of the two."""
    small: Small | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    loss: Annotated[float, Metric("a/loss")]


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize(("path", "text"), [pytest.param(*page, id=page[0].name) for page in pages().items()])
def test_the_page_is_what_the_code_says(path, text):
    assert path.read_text(encoding="utf-8") == text, "run `make docs` and commit what it writes"


def test_every_key_is_listed_with_type_default_range_and_meaning():
    assert rows("".join(key_tables("", Recipe, None))) == [
        "| `name` | text | – | matches `^[a-z]+$` | What it is called. |",
        "| `kind` | `type: small` or `type: large` | `type: large` |  | Which of the two. |",
        "| `small` | `type: small` or null | null |  | One of two. |",
        "| `kind.share` | number | `0.5` | ≥ 0, < 1 | How much. |",
        "| `kind.sizes` | list of: integer | `[3]` |  | How large. |",
        "| `small.share` | number | `0.5` | ≥ 0, < 1 | How much. |",
    ]


def test_the_default_of_a_section_wins_over_that_of_its_model():
    class Holder(StrictModel):
        inner: Small = Small(share=0.75)
        """A section with a default of its own."""

    row = next(row for row in rows("".join(key_tables("", Holder, None))) if "`inner.share`" in row)
    assert "| `0.75` |" in row


def test_a_docstring_of_a_base_class_explains_the_key_of_a_derived_one():
    class Derived(Small):
        share: float = 0.25

    assert attribute_docstrings(Derived)["share"] == ["How much."]


def test_a_key_without_a_docstring_is_refused():
    class Bare(StrictModel):
        steps: int = 3

    with pytest.raises(ValueError, match=r"^Bare.steps: recipe key learner.steps has no docstring"):
        list(key_tables("learner.", Bare, None))


def test_a_metric_without_a_docstring_is_refused():
    with pytest.raises(ValueError, match=r"^Silent.loss: metric a/loss has no docstring"):
        list(explained_metrics(Silent))
