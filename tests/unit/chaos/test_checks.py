"""What `make chaos` checks at the end of a run: each kind of loss is found, and named."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.checks import differences
from tests.chaos.parts import start_time
from tests.chaos.report import table
from tests.chaos.trial import Outcome
from tests.harness.workshop import Run

LEDGER = {"trained": 2, "no_variance": 1, "returned": 1, "imbalance": None}


def a_run(folder, *, steps=(0, 1), leases=(5, 6), ledger=LEDGER, opened=4, weights=b"w", loss=0.5):
    """A finished run of two steps that trained on one group each."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(weights)
    lines = [{"step": step, "learner/loss": loss, "reward/judge_calls": step, "time/step_s": step} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"ledger": ledger, "leases": {"opened": opened}, "stages": [{"groups_trained": 2}]}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "trajectories").mkdir()
    for step, lease in enumerate(leases):
        rows = [{"lease_id": lease, "trained": True, "sample": sample} for sample in (0, 1)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "trajectories" / f"step-{step:06d}.parquet")
    return Run(folder)


@pytest.fixture
def undisturbed(tmp_path):
    return a_run(tmp_path / "undisturbed")


def test_a_run_like_the_undisturbed_one_has_no_differences(tmp_path, undisturbed):
    assert differences(a_run(tmp_path / "run"), undisturbed) == []


def test_a_step_that_was_repeated_with_the_same_numbers_is_no_difference(tmp_path, undisturbed):
    assert differences(a_run(tmp_path / "run", steps=(0, 1, 0, 1)), undisturbed) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": b"x"}, "the weights differ from those of the undisturbed run"),
        ({"loss": 0.25}, "step 0 differs from the undisturbed run in learner/loss"),
        ({"steps": (0,)}, "steps [1] are missing"),
        ({"leases": (5, 5)}, "leases trained on twice: [5]"),
        ({"leases": (5,)}, "1 groups in trajectories/, 2 in the ledger"),
        ({"opened": 5}, "ledger: 5 leases were opened, {'trained': 2, 'no_variance': 1, 'returned': 1} ended"),
        ({"ledger": {**LEDGER, "imbalance": "one is missing"}}, "ledger: one is missing"),
        ({"ledger": {**LEDGER, "trained": 1, "returned": 2}}, "ledger: 1 groups trained, 2 in the stages"),
    ],
)
def test_what_was_lost_or_changed_is_named(tmp_path, undisturbed, change, said):
    assert said in differences(a_run(tmp_path / "run", **change), undisturbed)


def test_without_an_undisturbed_run_numbers_are_not_compared(tmp_path):
    assert differences(a_run(tmp_path / "run", loss=0.25), None) == []


def test_the_table_has_a_row_for_each_fault_with_median_and_longest_time():
    outcomes = [
        Outcome(fault="kill judge", lag=0, named_s=named_s, recovered_s=10.0, repeated=2) for named_s in (1, 2, 9)
    ]
    unnamed = Outcome(fault="kill driver", lag=0, recovered_s=30.0)
    assert table([*outcomes, unnamed]).splitlines()[2:] == [
        "| kill driver | 1 | – | 30.0 | 0 | 0 |",
        "| kill judge | 3 | 2.0 / 9.0 | 10.0 / 10.0 | 0 | 6 |",
    ]


def test_a_process_that_does_not_exist_has_no_start():
    assert start_time(1) is not None
    assert start_time(2**22 + 1) is None
