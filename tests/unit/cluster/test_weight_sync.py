"""An update that is under way while the learner goes on; an engine that loaded something else than was sent, or
computes something else, stops the run."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from actors.weights.update import TensorRecord, WeightReceipt, WeightUpdate
from cluster.weights.sync import WeightSync, WeightSyncError, check_probe, check_receipt
from learner.rounding import TextScores

A = TensorRecord(name="a", dtype="float32", shape=(2, 3), num_bytes=24, checksum=1)
B = TensorRecord(name="b", dtype="float32", shape=(4,), num_bytes=16, checksum=2)
C = TensorRecord(name="c", dtype="float32", shape=(1,), num_bytes=4, checksum=3)
UPDATE = WeightUpdate(version=3, source="p", tensors=(A, B))
RECEIPT = WeightReceipt(version=3, tensors=(A, B), pause_s=0.1)


class FakeTransport:
    """Ranks that are free at once, and engines that wait for `gate` or fail with `error`."""

    def __init__(self) -> None:
        self.calls = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def transfer(self, version):
        self.calls.append(f"publish {version}")
        return replace(UPDATE, version=version), asyncio.create_task(self._receipts(version))

    async def _receipts(self, version):
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.calls.append(f"deliver {version}")
        return {"rollout-0": replace(RECEIPT, version=version)}

    async def restore(self, update, name, handle):
        self.calls.append(f"restore {name} to {update.version}")


class NoProbe:
    """Never due."""

    async def score_by_learner(self):
        return None


def updates(scenario, *, overlaps):
    """Run `scenario(sync, transport)`; return the calls of the transport and what the scenario returned."""

    async def run():
        transport = FakeTransport()
        sync = WeightSync(transport, NoProbe(), overlaps=overlaps)
        result = await scenario(sync, transport)
        await sync.close()
        return transport.calls, result

    return asyncio.run(run())


def test_without_overlap_an_update_is_over_when_the_engines_have_it():
    heard = []

    async def hear(report):
        heard.append(report.version)

    async def send(sync, transport):
        sync.on_delivered = hear
        transport.gate.set()
        await sync.send(1)
        return sync.last.version

    assert updates(send, overlaps=False) == (["publish 1", "deliver 1"], 1)
    assert heard == [1]


def test_with_overlap_it_is_over_when_the_ranks_are_free_and_the_next_one_waits_for_it():
    async def send(sync, transport):
        await sync.send(1)
        before = sync.last
        second = asyncio.create_task(sync.send(2))
        await asyncio.sleep(0.01)
        published = [*transport.calls]
        transport.gate.set()
        await second
        await sync.settle()
        return before, published

    calls, (before, published) = updates(send, overlaps=True)
    assert before is None
    assert published == ["publish 1"]
    assert calls == ["publish 1", "deliver 1", "publish 2", "deliver 2"]


def test_an_update_under_way_that_fails_is_heard_of_by_whoever_waits_for_that():
    async def send(sync, transport):
        await sync.send(1)
        failure = asyncio.create_task(sync.failure())
        await asyncio.sleep(0.01)
        assert not failure.done()
        transport.error = WeightSyncError("rollout-0: tensor norm is missing")
        transport.gate.set()
        with pytest.raises(WeightSyncError, match="norm"):
            await failure
        with pytest.raises(WeightSyncError, match="norm"):
            await sync.send(2)

    assert updates(send, overlaps=True) == (["publish 1"], None)


def test_whoever_waits_for_a_failure_hears_nothing_of_an_update_that_arrives():
    async def send(sync, transport):
        transport.gate.set()
        await sync.send(1)
        failure = asyncio.create_task(sync.failure())
        await sync.settle()
        await asyncio.sleep(0.01)
        still_waiting = not failure.done()
        failure.cancel()
        return still_waiting

    assert updates(send, overlaps=True) == (["publish 1", "deliver 1"], True)


def test_an_update_that_is_given_up_leaves_no_task_behind():
    async def send(sync, transport):
        await sync.send(1)
        await sync.close()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert updates(send, overlaps=True) == (["publish 1"], set())


def test_an_engine_that_restarts_gets_the_update_under_way():
    async def restart(sync, transport):
        await sync.bring_up_to_date("rollout-0", None)
        await sync.send(1)
        await sync.bring_up_to_date("rollout-0", None)

    assert updates(restart, overlaps=True)[0] == ["publish 1", "restore rollout-0 to 1"]


def test_a_receipt_that_equals_the_announcement_is_accepted():
    check_receipt(UPDATE, RECEIPT, "rollout-0")
    check_receipt(UPDATE, replace(RECEIPT, tensors=(B, A)), "rollout-0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version=2, but the learner sent version=3,"),
        ({"tensors": (A,)}, "tensor b is missing"),
        ({"tensors": ()}, "tensor a and 1 others are missing"),
        ({"tensors": (A, B, C)}, "tensor c is unexpected (the learner did not send it)"),
        ({"tensors": (A, replace(B, checksum=9))}, "tensor b is different from what the learner sent (other values)"),
        (
            {"tensors": (replace(A, dtype="bfloat16"), B)},
            "tensor a is different from what the learner sent (dtype=bfloat16 instead of float32)",
        ),
        (
            {"tensors": (replace(A, shape=(3, 2)), B)},
            "tensor a is different from what the learner sent (shape=(3, 2) instead of (2, 3))",
        ),
    ],
)
def test_a_difference_names_the_engine_and_the_tensor(change, message):
    with pytest.raises(WeightSyncError) as error:
        check_receipt(UPDATE, replace(RECEIPT, **change), "rollout-1")
    assert str(error.value) == f"rollout-1: {message} after the weight update; resume from the last checkpoint"


OURS = TextScores(logprobs=(-1.0, -2.0), scale=6.5)
"""16 / 2^8 * 6.5 = 0.41 nats in bf16, 16 / 2^18 * 6.5 + 1e-5 = 4.1e-4 in fp32."""


def test_a_probe_within_the_tolerance_gives_the_mean_gap():
    gap = check_probe(OURS, (-1.5, -1.75), engine="rollout-0", version=3, dtypes=("fp32", "bf16"))
    assert gap == 0.375
    with pytest.raises(WeightSyncError, match=r"difference 3\.75e-01 is above 4\.1e-04, which rounding could explain"):
        check_probe(OURS, (-1.5, -1.75), engine="rollout-0", version=3, dtypes=("fp32", "fp32"))


@pytest.mark.parametrize("theirs", [(-1.0, -4.0), (-1.0, float("nan"))])
def test_a_probe_beyond_it_names_the_engine_and_both_means(theirs):
    with pytest.raises(WeightSyncError, match=r"rollout-1: after weight update 3 .* the learner's -1\.5000; .*stale"):
        check_probe(OURS, theirs, engine="rollout-1", version=3, dtypes=("bf16",))
