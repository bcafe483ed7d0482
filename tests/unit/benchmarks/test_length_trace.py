from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.length_trace import (
    MAX_RESPONSE_TOKENS,
    RECORDED,
    TracedGroup,
    long_tailed_trace,
    read_trace,
    write_trace,
)


def traced(*response_tokens, prompt_tokens=5, has_signal=True):
    return TracedGroup(prompt_tokens=prompt_tokens, response_tokens=response_tokens, has_signal=has_signal)


def test_a_trace_comes_back_from_its_file(tmp_path):
    trace = (traced(3, 4), traced(1, 9, has_signal=False))
    write_trace(trace, tmp_path / "trace.json")
    assert read_trace(tmp_path / "trace.json") == trace


def test_a_run_is_read_from_its_trajectories(tmp_path):
    (tmp_path / "trajectories").mkdir()
    rows = [  # lease, prompt, response, accuracy
        (1, 7, 3, 1.0), (1, 7, 4, 0.0), (0, 6, 2, 1.0), (0, 6, 2, 1.0), (2, 8, 9, None), (2, 8, 1, 0.0),
    ]  # fmt: skip
    names = ("lease_id", "prompt_tokens", "response_tokens", "accuracy")
    table = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
    pq.write_table(table, tmp_path / "trajectories" / "step-000000.parquet")
    assert read_trace(tmp_path) == (
        traced(2, 2, prompt_tokens=6, has_signal=False),
        traced(3, 4, prompt_tokens=7),
        traced(9, 1, prompt_tokens=8, has_signal=False),
    )


def test_a_folder_without_trajectories_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trajectories/step-\*\.parquet"):
        read_trace(tmp_path)


@pytest.mark.parametrize("text", ["{", "[[1, 2]]", "[[0, [1], true]]", "[[1, [], true]]", "7"])
def test_a_file_that_is_no_trace_is_refused(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json: not a length trace"):
        read_trace(path)


def test_the_recorded_trace_is_there_and_has_groups_of_both_kinds():
    trace = read_trace(RECORDED)
    assert {group.has_signal for group in trace} == {True, False}
    assert {len(group.response_tokens) for group in trace} == {8}


def test_the_synthetic_trace_has_the_papers_mean_and_a_long_tail():
    trace = long_tailed_trace(4096, group_size=8, acceptance=0.5, seed=1)
    lengths = np.array([group.response_tokens for group in trace])
    assert 1_000 < lengths.mean() < 1_470
    assert lengths.max() == MAX_RESPONSE_TOKENS
    assert 0.001 < (lengths == MAX_RESPONSE_TOKENS).mean() < 0.01
    assert np.mean([group.has_signal for group in trace]) == pytest.approx(0.5, abs=0.03)
    assert trace == long_tailed_trace(4096, group_size=8, acceptance=0.5, seed=1)
