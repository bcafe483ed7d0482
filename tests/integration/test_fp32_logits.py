"""A bf16 engine whose logits are in fp32, against the learner; before and after an update of tied weights."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.config import EngineConfig
from actors.engine import VLLMEngine
from benchmarks.logit_gap import BASE, save_crowded
from learner.batch.rows import single_row
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Placement, to_device
from learner.rounding import largest_gap
from learner.weights.sender import WeightSender, WeightSource
from learner.zero3.policy import Policy, load_policy

pytestmark = pytest.mark.integration

PROBE = np.random.default_rng(0).integers(10, 800, size=257).tolist()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    measured = asyncio.run(_measure(save_crowded(tmp_path_factory.mktemp("model"), seed=0)))
    gc.collect()  # vLLM's engines are in reference cycles and must not be found by the interpreter's own end
    return measured


async def _measure(crowded: Path) -> dict:
    engine = _engine(crowded)
    try:
        found = {"crowded": _gap(await engine.score(PROBE), _policy(crowded))}
    finally:
        engine.shutdown()
    base, other = _policy(BASE), _policy(BASE)
    with torch.no_grad():
        other.causal_lm.get_input_embeddings().weight.mul_(0.7)
    sender = WeightSender(WeightSource(other.causal_lm), is_root=True, every_byte=False)
    engine = _engine(BASE)
    try:
        found["before"] = _gap(await engine.score(PROBE), base)
        await engine.load_weights(sender.publish(1))
        found["after"] = _gap(await engine.score(PROBE), other)
        found["after, against the old weights"] = _gap(await engine.score(PROBE), base)
    finally:
        engine.shutdown()
    return found


def test_logits_that_compete_near_20_are_not_rounded(found):
    assert found["crowded"] < 0.2, "rounding them to bf16 costs more than half of the limit"


def test_an_update_reaches_the_fp32_head_with_tied_embeddings(found):
    assert found["before"] < 0.5
    assert found["after"] < 0.5
    assert found["after, against the old weights"] > 4, "else the test could not tell the weights apart"


def _engine(model: Path) -> VLLMEngine:
    config = EngineConfig(dtype="bf16", enforce_eager=True)
    return VLLMEngine(str(model), config, max_model_len=512, stop_token_ids=(), seed=0, on_gpu=False, fp32_logits=True)


def _policy(model: Path) -> Policy:
    return load_policy(str(model), dtype=torch.bfloat16, trust_remote_code=False)


def _gap(theirs: tuple[float, ...], policy: Policy) -> float:
    """Mean difference between engine and learner over the probe; 1 is the largest that rounding explains."""
    row = to_device(single_row(np.array(PROBE, np.int32)), Placement(device=torch.device("cpu")))
    with torch.no_grad():
        scores = TokenScores(*policy(row)[1:])
    gap = (scores.logprobs_N - torch.tensor(theirs)).abs().mean()
    return gap.item() / largest_gap(scores.scale_N.mean().item(), "bf16")
