"""Weight updates of a real vLLM engine: exact, in order, and loud when something is wrong."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.config import EngineConfig
from actors.engine import VLLMEngine
from actors.rollout import Sampling
from actors.weights.update import HostCopy, WeightLoadError, WeightVersionError
from cluster.weights.sync import WeightSyncError, check_probe, check_receipt
from learner.rounding import TextScores
from learner.weights.sender import WeightSender, WeightSource
from tests.harness.scored import text_scores

pytestmark = pytest.mark.integration

BASE = Path(__file__).parents[2] / "recipes" / "assets" / "local_base"
PROBE = list(range(20, 84))


class Partial(WeightSource):
    """All weights but one."""

    def __init__(self, module) -> None:
        super().__init__(module)
        self._parameters = [pair for pair in self._parameters if pair[0] != "model.layers.0.mlp.down_proj.weight"]


class Extended(WeightSource):
    """All weights and one that no engine knows."""

    def __init__(self, module) -> None:
        super().__init__(module)
        self._parameters.append(("model.layers.0.mlp.side_proj.weight", torch.nn.Parameter(torch.zeros(2, 2))))


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return asyncio.run(_measure(tmp_path_factory.mktemp("stale")))


async def _measure(folder: Path) -> dict:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    senders = [WeightSender(WeightSource(model), is_root=True, every_byte=True) for _ in range(2)]
    found = {}

    def disturb(share=1.0):
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.05 * torch.randn_like(weight) * (torch.rand_like(weight) < share)

    torch.manual_seed(0)
    engine = _engine()
    try:
        disturb()
        sent = senders[0].publish(1)
        found["receipt"] = (sent, await engine.load_weights(sent))
        found["after"] = (_scores(model), await engine.score(PROBE))
        found["again"] = await engine.load_weights(sent)

        first, second = _updates(senders[0], disturb, 2, 3)
        sampling = Sampling(num_samples=2, temperature=1.0, top_p=1.0, max_response_tokens=300)
        running = asyncio.create_task(engine.sample(PROBE, sampling, seed=1))
        await asyncio.sleep(0.05)
        found["racing"] = await asyncio.gather(engine.load_weights(first), engine.load_weights(second))
        found["after racing"] = (_scores(model), await engine.score(PROBE))
        found["running"] = await running
        found["past"] = await _error(engine.load_weights(first))

        copy = HostCopy()
        copy.write(senders[0].with_values(3, delta=False))
        disturb(share=0.01)
        sent = senders[0].publish(4)
        changes = senders[0].with_values(4, delta=True)
        found["delta"] = (sent, await engine.load_weights(copy.write(changes)), changes.num_travelling_bytes)
        found["after delta"] = (_scores(model), await engine.score(PROBE))
        found["future"] = await _error(engine.load_weights(senders[1].publish(9)))

        disturb()
        model.save_pretrained(folder)
        await engine._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        found["no repack"] = (_scores(model), await engine.score(PROBE))
        found["unknown"], found["unknown: paused"] = await _refusal(engine, Extended(model), 5)
    finally:
        engine.shutdown()
    engine = _engine()  # the other one is stuck in its update
    try:
        found["missing"], found["missing: paused"] = await _refusal(engine, Partial(model), 1)
    finally:
        engine.shutdown()
    del engine
    gc.collect()  # vLLM's engines are in reference cycles and must not be found by the interpreter's own end
    return found


def test_the_engine_computes_with_the_new_weights_tied_embeddings_included(findings):
    assert _gap(findings["after"]) < 1e-4


def test_the_receipt_equals_what_was_announced(findings):
    update, receipt = findings["receipt"]
    check_receipt(update, receipt, "rollout-0")
    assert receipt.pause_s > 0


def test_an_update_that_comes_again_is_not_loaded_again(findings):
    assert findings["again"] is findings["receipt"][1]


def test_two_updates_at_once_take_turns(findings):
    assert [receipt.version for receipt in findings["racing"]] == [2, 3]
    assert _gap(findings["after racing"]) < 1e-4


def test_requests_that_run_during_updates_are_finished(findings):
    assert [sample.finish_reason in ("stop", "length") for sample in findings["running"]] == [True, True]


def test_a_version_from_the_past_or_the_future_is_refused_by_name(findings):
    past, future = findings["past"], findings["future"]
    assert isinstance(past, WeightVersionError)
    assert "version 2 are too old: the engine holds version 3" in str(past)
    assert isinstance(future, WeightVersionError)
    assert "version 9 are too new: the engine holds version 4 and loads 5 next" in str(future)


def test_changes_alone_make_the_same_weights_to_the_last_bit(findings):
    update, receipt, num_bytes = findings["delta"]
    assert update.stride == 1, "every byte is in the checksums"
    check_receipt(update, receipt, "rollout-0")
    assert num_bytes < 0.05 * update.num_bytes
    assert _gap(findings["after delta"]) < 1e-4


def test_the_probe_notices_a_tied_head_that_was_left_stale(findings):
    ours, theirs = findings["no repack"]
    with pytest.raises(WeightSyncError, match=r"rollout-0: after weight update 5 .* stale packed copy"):
        check_probe(ours, theirs, engine="rollout-0", version=5, dtypes=("fp32",))


@pytest.mark.parametrize("name", ["after", "after racing", "after delta"])
def test_the_probe_accepts_an_engine_that_computes_with_the_new_weights(findings, name):
    ours, theirs = findings[name]
    assert check_probe(ours, theirs, engine="rollout-0", version=5, dtypes=("fp32",)) < 1e-4


def test_an_update_without_a_parameter_of_the_engine_is_refused_by_its_name(findings):
    assert isinstance(findings["missing"], WeightLoadError)
    assert "parameter model.layers.0.mlp.down_proj.weight of the engine" in str(findings["missing"])


def test_an_update_with_a_tensor_that_the_engine_does_not_have_is_refused_by_its_name(findings):
    assert isinstance(findings["unknown"], WeightLoadError)
    assert "model.layers.0.mlp.side_proj.weight" in str(findings["unknown"])


@pytest.mark.parametrize("name", ["missing", "unknown"])
def test_an_engine_with_half_an_update_samples_no_more(findings, name):
    assert findings[f"{name}: paused"]


def _engine() -> VLLMEngine:
    config = EngineConfig(dtype="fp32", enforce_eager=True)
    return VLLMEngine(str(BASE), config, max_model_len=512, stop_token_ids=(), seed=0, on_gpu=False)


async def _refusal(engine: VLLMEngine, source: WeightSource, version: int) -> tuple[Exception | None, bool]:
    """What the engine says to these weights, and whether it stands still afterwards."""
    sender = WeightSender(source, is_root=True, every_byte=False)
    return await _error(engine.load_weights(sender.publish(version))), await engine._engine.is_paused()


def _updates(sender: WeightSender, disturb, *versions: int):
    found = []
    for version in versions:
        disturb()
        found.append(sender.publish(version))
    return found


async def _error(call) -> Exception | None:
    try:
        await call
    except (WeightLoadError, WeightVersionError) as error:
        return error
    return None


def _scores(model) -> TextScores:
    with torch.no_grad():
        return text_scores(model(torch.tensor([PROBE])).logits[0], PROBE)


def _gap(pair) -> float:
    ours, theirs = pair
    return float(np.abs(np.subtract(ours.logprobs, theirs)).max())
