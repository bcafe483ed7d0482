"""A metric is declared where its number is, and read from there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

from curriculum.metric import Metric, declared_metrics, is_declared, member, metrics_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    loss: Annotated[float, Metric("a/loss", "nats", mean_over="tokens")]
    is_masked: Annotated[bool, Metric("a/masked")] = False
    gap: Annotated[float | None, Metric("a/gap", "nats")] = None
    note: str = ""

    @property
    def double(self) -> Annotated[float, Metric("a/double")]:
        return 2 * self.loss

    @property
    def silent(self) -> int:
        raise AssertionError("no metric, so nobody asks")


class Store(Protocol):
    @property
    def num_bytes(self) -> Annotated[int, Metric("store/bytes", "bytes")]: ...


class PlainStore:
    num_bytes = 7


def test_fields_and_properties_declare_metrics():
    assert declared_metrics(Report) == {
        "loss": Metric("a/loss", "nats", "tokens"),
        "is_masked": Metric("a/masked"),
        "gap": Metric("a/gap", "nats"),
        "double": Metric("a/double"),
    }


def test_a_value_is_read_by_key_and_a_truth_value_is_a_number():
    assert metrics_of(Report(loss=0.5, is_masked=True)) == {"a/loss": 0.5, "a/masked": 1.0, "a/double": 1.0}


def test_what_has_no_value_is_left_out():
    assert metrics_of(None) == {}
    assert "a/gap" not in metrics_of(Report(loss=0.5))
    assert metrics_of(Report(loss=math.nan)) == {"a/masked": 0.0}
    assert metrics_of(Report(loss=math.inf))["a/loss"] == math.inf, "a guard must see it"


def test_a_protocol_declares_the_metrics_of_what_fulfils_it():
    assert metrics_of(PlainStore(), Store) == {"store/bytes": 7}
    assert metrics_of(PlainStore()) == {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    accuracy: Annotated[Mapping[str, float], Metric("a/accuracy/*", "share")]


def test_a_family_has_a_number_for_each_member():
    parts = Parts(accuracy={"phase-1": 0.5, member("multi hop/中", of="source"): 0.25, "none": math.nan})

    assert metrics_of(parts) == {"a/accuracy/phase-1": 0.5, "a/accuracy/source:multi%20hop%2F%E4%B8%AD": 0.25}


def test_the_declaration_of_a_family_covers_its_members_only():
    declared = {"a/accuracy/*", "a/loss"}

    assert is_declared("a/accuracy/phase-1", declared)
    assert is_declared("a/loss", declared)
    assert not is_declared("a/accuracy/*", declared)
    assert not is_declared("a/accuracy", declared)
    assert not is_declared("a/accuracy/phase/1", declared), "a member holds no slash"
    assert not is_declared("a/loss/phase-1", declared)


def test_no_name_makes_two_members_one():
    assert len({member(name) for name in ("a b", "a%20b", "source:a")} | {member("a", of="source")}) == 4
