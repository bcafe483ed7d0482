"""A metric is declared where its number is, and read from there."""

import math
from dataclasses import dataclass
from typing import Annotated, Protocol

from curriculum.metric import Metric, declared_metrics, metrics_of


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
