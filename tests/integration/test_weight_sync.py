"""After a weight update, vLLM and the learner must agree on every log-probability."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.config import EngineConfig
from actors.engine import VLLMEngine
from actors.prompt import ChatPrompt, load_tokenizer
from actors.rollout import Sampling
from cluster.weights.sync import WeightSyncError, check_receipt
from curriculum.synthetic import generate_items
from learner.weights.sender import WeightSender, WeightSource

pytestmark = pytest.mark.integration

BASE = Path(__file__).parents[2] / "recipes" / "assets" / "local_base"
SAMPLING = Sampling(num_samples=8, temperature=1.0, top_p=1.0, max_response_tokens=16)
ENGINE = EngineConfig(dtype="fp32", enforce_eager=True)


@pytest.fixture(scope="module")
def findings(reference):
    return asyncio.run(_measure(reference.folder / "model"))


async def _measure(trained: Path) -> dict:
    """One engine of the base model that takes the trained weights while it works, and one that starts with them."""
    prompt = ChatPrompt(load_tokenizer(str(BASE)))
    # longer than a block of the prefix cache, so that a stale cache would show
    items = generate_items(num_items=2, min_words=180, max_words=200, seed=9, prefix="parity")
    prompts = [prompt.encode(item["context"], item["question"]).tolist() for item in items]
    engine = _engine(BASE, prompt)
    found = {}
    try:
        found["before"] = await _sample(engine, prompts)
        found["again"] = await _sample(engine, prompts)
        found["other seed"] = await _sample(engine, prompts, seed=8)
        sender = WeightSender(WeightSource(_model(trained)), is_root=True, every_byte=False)
        running = asyncio.create_task(engine.sample(prompts[0], replace(SAMPLING, max_response_tokens=200), seed=1))
        await asyncio.sleep(0.05)
        found["announcement"] = sender.publish(1)
        found["receipt"] = await engine.load_weights(found["announcement"])
        found["after"] = await _sample(engine, prompts)
        found["running"] = await running
    finally:
        engine.shutdown()
    fresh = _engine(trained, prompt)
    try:
        found["fresh"] = await _sample(fresh, prompts)
    finally:
        fresh.shutdown()
    del engine, fresh
    gc.collect()  # vLLM's engines are in reference cycles and must not be found by the interpreter's own end
    return found


def test_the_base_model_gives_the_same_log_probabilities_in_vllm_and_in_transformers(findings):
    assert _gap(findings["before"], BASE) < 1e-4


def test_after_an_update_vllm_samples_from_the_new_weights_with_tied_embeddings(findings, reference):
    assert _gap(findings["after"], reference.folder / "model") < 1e-4
    assert _gap(findings["after"], BASE) > 0.1, "else the test could not tell the weights apart"


def test_requests_that_run_during_an_update_are_finished(findings):
    assert len(findings["running"]) == SAMPLING.num_samples
    assert all(sample.finish_reason in ("stop", "length") for sample in findings["running"])


def test_the_exported_model_loads_in_vllm(findings, reference):
    assert _gap(findings["fresh"], reference.folder / "model") < 1e-4


def test_samples_depend_on_the_seed_alone(findings):
    ids = {name: _ids(findings[name]) for name in ("before", "again", "other seed")}
    assert ids["before"] == ids["again"]
    assert ids["before"] != ids["other seed"]
    first_prompt = ids["before"][: SAMPLING.num_samples]
    assert len(set(first_prompt)) > 1, "the samples of a group differ"


def test_the_receipt_of_an_engine_equals_the_announcement_of_the_learner(findings):
    check_receipt(findings["announcement"], findings["receipt"], "rollout-0")
    with pytest.raises(WeightSyncError, match="rollout-0: version=1, but the learner sent version=2"):
        check_receipt(replace(findings["announcement"], version=2), findings["receipt"], "rollout-0")


def test_every_batch_is_sampled_from_the_weights_that_the_learner_holds(reference, disturbed):
    """Over updates of the learner, a restarted rollout actor, and resumes."""
    for run in (reference, disturbed):
        gaps = [line["learner/rollout_logprob_gap_max"] for line in run.metrics if line["stage"] != "sft"]
        assert len(gaps) >= 8
        assert max(gaps) < 1e-4


def _engine(model: Path, prompt: ChatPrompt) -> VLLMEngine:
    return VLLMEngine(str(model), ENGINE, max_model_len=512, stop_token_ids=prompt.stop_token_ids, seed=0, on_gpu=False)


async def _sample(engine, prompts, *, seed=7):
    """(prompt, sample) pairs."""
    groups = [(ids, await engine.sample(ids, SAMPLING, seed=seed)) for ids in prompts]
    return [(ids, sample) for ids, samples in groups for sample in samples]


def _ids(samples):
    return [tuple(sample.token_ids) for _, sample in samples]


def _model(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _gap(samples, folder: Path) -> float:
    """Largest difference (nats) between the engine's log-probabilities and those of transformers."""
    import torch

    model = _model(folder)
    gaps = []
    with torch.no_grad():
        for prompt, sample in samples:
            ids = torch.tensor([*prompt, *sample.token_ids])
            logprobs = model(ids[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(1, ids[len(prompt) :, None]).squeeze(1).numpy()
            gaps.append(np.abs(expected - np.asarray(sample.logprobs)).max())
    return float(max(gaps))
