"""Weights broadcast to real vLLM engines over gloo: exact, again and again, and loud when a member stands still."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.config import EngineConfig
from actors.engine import VLLMEngine
from actors.faults import EngineDied
from actors.rollout import Sampling
from actors.weights.update import WeightGroupError, WeightLoadError, WeightUpdate
from cluster.weights.sync import check_receipt
from learner.weights.sender import WeightSender, WeightSource

pytestmark = pytest.mark.integration

BASE = Path(__file__).parents[2] / "recipes" / "assets" / "local_base"
PROBE = list(range(20, 84))
TIMEOUT_S = 3.0


@pytest.fixture(scope="module")
def findings():
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return asyncio.run(_measure())


async def _measure() -> dict:
    """Two engines in a group; one of them is stopped, then it dies, and the other one takes an update alone."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    sender = WeightSender(WeightSource(model), is_root=True, every_byte=False)
    found = {}
    engines, processes = [], []
    try:
        for _ in range(2):
            before = set(psutil.Process().children(recursive=True))
            engines.append(_engine())
            processes.append(set(psutil.Process().children(recursive=True)) - before)
        group = _open(sender, num_receivers=2, epoch=1)
        _disturb(model)
        found["first"] = await _update(sender, engines, group, 1)
        found["after first"] = [(_logprobs(model), await engine.score(PROBE)) for engine in engines]

        _disturb(model)
        sampling = Sampling(num_samples=2, temperature=1.0, top_p=1.0, max_response_tokens=300)
        running = asyncio.create_task(engines[0].sample(PROBE, sampling, seed=1))
        await asyncio.sleep(0.05)
        found["second"] = await _update(sender, engines, group, 2)
        found["after second"] = [(_logprobs(model), await engine.score(PROBE)) for engine in engines]
        found["running"] = await running

        _signal(processes[1], signal.SIGKILL)
        found["killed"] = await _death(engines[1])
        _disturb(model)
        group = _open(sender, num_receivers=1, epoch=2)
        found["third"] = await _update(sender, engines[:1], group, 3)
        found["after third"] = [(_logprobs(model), await engines[0].score(PROBE))]

        _signal(processes[0], signal.SIGSTOP)
        receiving = asyncio.create_task(_error(engines[0].load_weights(_announcement(group, 4, 0))))
        try:
            await asyncio.sleep(0.2)  # else the broadcast of so small a model could be over before it is waited for
            found["stopped"] = await _error(asyncio.to_thread(sender.publish, 4))
            found["stopped: silent"] = not receiving.done()
        finally:
            _signal(processes[0], signal.SIGKILL)
        found["died"] = await receiving
    finally:
        for engine in engines:
            engine.shutdown()
    del engine, engines
    gc.collect()  # vLLM's engines are in reference cycles and must not be found by the interpreter's own end
    return found


def test_engines_compute_with_what_was_broadcast_tied_embeddings_included(findings):
    assert max(_gap(pair) for pair in findings["after first"]) < 1e-4


def test_a_group_carries_one_update_after_the_other(findings):
    assert max(_gap(pair) for pair in findings["after second"]) < 1e-4


def test_a_group_without_the_engine_that_died_carries_the_next_update(findings):
    assert isinstance(findings["killed"], EngineDied)
    check_receipt(*findings["third"], "rollout-0")
    assert max(_gap(pair) for pair in findings["after third"]) < 1e-4


def test_the_sender_gives_up_on_an_engine_that_stands_still_which_says_nothing_until_it_dies(findings):
    error = findings["stopped"]
    assert error is None or isinstance(error, WeightGroupError), "a small model fits into the buffers of a socket"
    assert findings["stopped: silent"]
    assert isinstance(findings["died"], EngineDied)


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_receipts_equal_what_was_sent(findings, name):
    sent, *receipts = findings[name]
    assert len(receipts) == 2
    for receipt in receipts:
        check_receipt(sent, receipt, "rollout-0")


def test_requests_that_run_during_a_broadcast_are_finished(findings):
    assert [sample.finish_reason in ("stop", "length") for sample in findings["running"]] == [True, True]


def _engine() -> VLLMEngine:
    config = EngineConfig(dtype="fp32", enforce_eager=True)
    return VLLMEngine(str(BASE), config, max_model_len=512, stop_token_ids=(), seed=0, on_gpu=False)


def _open(sender: WeightSender, *, num_receivers: int, epoch: int):
    return sender.open_group(
        1, host="127.0.0.1", num_receivers=num_receivers, epoch=epoch, timeout_s=TIMEOUT_S, device=torch.device("cpu")
    )


async def _update(sender, engines, group, version: int):
    """What was sent and what came of it, errors included; sender and engines work at the same time."""
    calls = [engine.load_weights(_announcement(group, version, index)) for index, engine in enumerate(engines)]
    return await asyncio.gather(asyncio.to_thread(sender.publish, version), *calls, return_exceptions=True)


def _announcement(group, version: int, index: int) -> WeightUpdate:
    return replace(group, version=version, first_rank=1 + index)


def _signal(processes: set[psutil.Process], number: int) -> None:
    """To the engine process; the largest one, beside the helpers of multiprocessing."""
    os.kill(max(processes, key=lambda process: process.memory_info().rss).pid, number)


async def _error(call) -> Exception | None:
    try:
        await call
    except (EngineDied, WeightGroupError, WeightLoadError) as error:
        return error
    return None


async def _death(engine: VLLMEngine) -> EngineDied | None:
    """What an engine says of its own death, of which it is told a moment later."""
    for _ in range(200):
        try:
            engine.check_alive()
        except EngineDied as error:
            return error
        await asyncio.sleep(0.05)
    return None


def _disturb(model) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)


def _logprobs(model) -> list[float]:
    ids = torch.tensor(PROBE)
    with torch.no_grad():
        logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, ids[1:, None]).squeeze(1).tolist()


def _gap(pair) -> float:
    ours, theirs = pair
    return float(np.abs(np.subtract(ours, theirs)).max())
