"""One go on a machine with a GPU: what a part that fails costs, and the arithmetic of the figures."""

import json
import sys
import time

import pytest

from benchmarks.gpu.__main__ import MAX_SECONDS, Part, parts, run
from benchmarks.gpu.learner_step import STATIC_BYTES, predicted_bytes
from benchmarks.gpu.options import GROUPS, TINY, Group, peak_flops
from benchmarks.gpu.rates import ideal_seconds
from benchmarks.gpu.wheels import ROOT, chosen
from tests.harness.meta_learner import SIZES

PRINTS = 'import json, sys; print(json.dumps({"benchmark": "a", "claims": [], "detail": {}}), flush=True)'


def part(name, code, max_seconds=60.0):
    return Part(name=name, command=(sys.executable, "-c", code), max_seconds=max_seconds)


def results(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_part_that_fails_keeps_what_it_printed_and_the_next_ones_run(tmp_path, capsys):
    failing = part("failing", f"{PRINTS}; sys.exit('the card fell off')")
    assert run([failing, part("good", PRINTS)], tmp_path, seconds=100) == ["failing"]
    first, problem, second = results(tmp_path)
    assert (first["benchmark"], second["benchmark"]) == ("a", "a")
    assert problem["detail"] == {"problem": "exit status 1: the card fell off"}
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [first, problem, second]


def test_a_part_that_hangs_is_ended_with_its_children(tmp_path):
    hanging = part("hanging", f"{PRINTS}; import os; os.fork(); import time; time.sleep(600)", max_seconds=6)
    started = time.monotonic()
    assert run([hanging, part("good", PRINTS)], tmp_path, seconds=100) == ["hanging"]
    assert time.monotonic() - started < 60
    assert [line["detail"] for line in results(tmp_path)] == [{}, {"problem": "took more than 6 s"}, {}]


def test_no_part_begins_without_time(tmp_path):
    assert run([part("late", PRINTS)], tmp_path, seconds=1) == ["late"]
    assert [line["detail"] for line in results(tmp_path)] == [{"problem": "no time left"}]


def test_the_go_ends_before_eight_minutes_and_begins_with_what_matters_most():
    assert MAX_SECONDS < 8 * 60
    names = [part.name for part in parts("cuda", tiny=False)]
    assert names[:3] == ["kernels", "rates-fa2", "learner-fa2"]
    assert sum(part.max_seconds for part in parts("cuda", tiny=False)[:3]) < MAX_SECONDS


def test_the_groups_are_those_of_the_goal():
    assert [(group.prompt // 1024, group.response, group.size) for group in GROUPS] == [(32, 2048, 8), (60, 2048, 8)]
    short, long = (group.shape(SIZES["1.5B"]).ceiling for group in GROUPS)
    assert 4 < short < long < 8


def test_the_flops_of_a_tiny_update_add_up_by_hand():
    shape = Group(prompt=3, response=2, size=2).shape(TINY)
    linear = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    pairs = 6 + 2 * (2 * 3 + 3)
    assert shape.shared_attention_flops == 2 * 4 * 64 * pairs
    assert shape.shared_flops == 2 * (2 * linear * 7 + 4 * 64 * pairs) + 2 * 64 * 512 * 4
    assert shape.dense_flops == 2 * (2 * linear * 10 + 4 * 64 * 2 * 15) + 2 * 64 * 512 * 4


def test_at_one_rate_for_all_a_checkpointed_update_takes_four_forward_passes_and_half_an_attention():
    group = Group(prompt=3, response=2, size=2)
    shape = group.shape(TINY)
    flops = 4 * shape.shared_flops + 0.5 * shape.shared_attention_flops
    assert ideal_seconds(TINY, group, 10.0, 10.0, 10.0) == pytest.approx(flops / 10)


def test_the_prediction_is_what_a_rank_holds_and_the_activations():
    group = Group(prompt=256, response=32, size=2)
    held = STATIC_BYTES * TINY.num_parameters
    assert held == 18 * TINY.num_parameters
    inputs = TINY.layers * (256 + 64) * TINY.hidden * 2
    assert held + inputs < predicted_bytes(TINY, group, "whole") < held + 20 * inputs


@pytest.mark.parametrize(("name", "rate"), [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("cpu", None)])
def test_the_rate_of_a_card_is_found_by_its_name(name, rate):
    assert peak_flops(name) == rate


def test_what_is_carried_is_pinned_and_has_no_part_of_torch_or_cuda():
    pins = set((ROOT / "requirements-gpu.lock").read_text().split())
    wheels = chosen()
    assert set(wheels) <= pins
    names = {line.split("==")[0] for line in wheels}
    assert {"deepspeed", "transformers", "numpy", "pydantic", "safetensors", "pytest"} <= names
    assert not {name for name in names if name.startswith(("nvidia", "torch", "triton", "vllm", "ray"))}
