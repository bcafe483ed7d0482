"""Whatever a recipe switches on in an engine, the log-probabilities of its samples are those of the learner."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.config import EngineConfig
from actors.engine import VLLMEngine
from actors.rollout import Sample, Sampling
from actors.vllm_arguments import engine_arguments, engine_config, sampling_params, set_environment
from cluster.weights.sync import MAX_PROBE_GAP
from learner.weights.sender import WeightSender, WeightSource
from learner.zero3.policy import load_policy
from tests.harness.sampled import sampling_gaps

pytestmark = pytest.mark.integration

BASE = Path(__file__).parents[2] / "recipes" / "assets" / "local_base"
PLAIN = EngineConfig(dtype="fp32", enforce_eager=True)
ENGINES = {
    "plain": PLAIN,
    "two sequences at a time": PLAIN.model_copy(update={"max_num_seqs": 2}),
    "large steps": PLAIN.model_copy(update={"max_num_batched_tokens": 4096}),
    "compiled": PLAIN.model_copy(update={"enforce_eager": False}),
}
"""What a recipe can set on a CPU; see tests/gpu for CUDA graphs, tensor parallelism and chunked prefill."""
SAMPLING = Sampling(num_samples=4, temperature=0.7, top_p=0.95, max_response_tokens=40)
HOT = replace(SAMPLING, temperature=2.0, top_p=1.0)
PROMPTS = [np.random.default_rng(seed).integers(10, 800, size=size).tolist() for seed, size in ((0, 205), (1, 70))]
REPEATING = PROMPTS[1][:40] * 3
"""N-gram speculation finds its drafts in here."""


@pytest.fixture(scope="module", params=ENGINES)
def found(request):
    measured = asyncio.run(_measure(ENGINES[request.param]))
    gc.collect()  # vLLM's engines are in reference cycles and must not be found by the interpreter's own end
    return measured


async def _measure(config: EngineConfig) -> dict:
    engine = VLLMEngine(str(BASE), config, max_model_len=512, stop_token_ids=(), seed=0, on_gpu=False, fp32_logits=True)
    try:
        cold = await asyncio.gather(*[engine.sample(prompt, SAMPLING, seed=5) for prompt in PROMPTS])
        warm = await asyncio.gather(*[engine.sample(prompt, SAMPLING, seed=5) for prompt in PROMPTS])
        hot = [await engine.sample(prompt, HOT, seed=6) for prompt in PROMPTS]
        found = {"cold": cold, "warm": warm, "hot": hot, "decoding gap": await engine.decoding_gap(PROMPTS[1])}
        return found | await _update(engine)
    finally:
        engine.shutdown()


async def _update(engine) -> dict:
    """Other weights in the middle of answers."""
    sender = WeightSender(WeightSource(_disturbed().causal_lm), is_root=True, every_byte=False)
    sent = sender.publish(1)
    prefilled = engine.num_prefilled_tokens
    call = asyncio.create_task(engine.sample(PROMPTS[0], replace(HOT, max_response_tokens=250), seed=9))
    async with asyncio.timeout(60):
        while engine.num_prefilled_tokens == prefilled:
            await asyncio.sleep(0.005)
    await engine.load_weights(sent)
    return {
        "updated": await call,
        "fresh": await engine.sample(PROMPTS[0], SAMPLING, seed=9),
        "decoding gap after an update": await engine.decoding_gap(PROMPTS[1]),
    }


def test_samples_have_the_log_probabilities_of_the_learner_after_temperature_and_top_p(found):
    for prompt, samples in zip(PROMPTS, found["cold"], strict=True):
        assert sampling_gaps(_policy(), prompt, samples, SAMPLING).max() < 1e-3


def test_samples_of_a_hot_distribution_have_them_too(found):
    for prompt, samples in zip(PROMPTS, found["hot"], strict=True):
        assert sampling_gaps(_policy(), prompt, samples, HOT).max() < 1e-4


def test_a_cached_prefix_changes_neither_samples_nor_their_log_probabilities(found):
    for cold, warm in zip(found["cold"], found["warm"], strict=True):
        assert [sample.token_ids for sample in cold] == [sample.token_ids for sample in warm]
        for ours, theirs in zip(cold, warm, strict=True):
            assert np.allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def test_the_probe_finds_no_gap_between_decoding_and_scoring(found):
    assert found["decoding gap"] < MAX_PROBE_GAP["fp32"]
    assert found["decoding gap after an update"] < MAX_PROBE_GAP["fp32"]


def test_tokens_after_an_update_have_the_log_probabilities_of_the_new_weights_over_the_whole_answer(found):
    """Tokens before it those of the old ones: the spans of the versions are exact."""
    old, new, crossed = _policy(), _disturbed(), 0
    for sample in found["updated"]:
        by_old, by_new = (sampling_gaps(policy, PROMPTS[0], [sample], HOT) for policy in (old, new))
        (start,) = [first for first, version in sample.versions if version == "1"] or [len(sample.token_ids)]
        crossed += 0 < start < len(sample.token_ids)
        assert by_old[:start].max(initial=0) < 1e-4
        assert by_new[start:].max(initial=0) < 1e-4
        assert by_new[:start].max(initial=1) > 0.01, "else the test could not tell the weights apart"
    assert crossed, "no answer was under way"


def test_after_an_update_samples_have_the_log_probabilities_of_the_new_weights(found):
    assert sampling_gaps(_disturbed(), PROMPTS[0], found["fresh"], SAMPLING).max() < 1e-3


def test_why_speculation_is_refused():
    """vLLM 0.32 on a CPU reports other numbers with n-gram drafts. If this fails, the refusal can go."""
    plain, speculating = (asyncio.run(_with_drafts(drafts)) for drafts in (None, 3))
    gc.collect()
    assert sampling_gaps(_policy(), REPEATING, plain, HOT).max() < 1e-4
    gaps = sampling_gaps(_policy(), REPEATING, speculating, HOT)
    assert not gaps.max() < 1, "not a number counts, too"


async def _with_drafts(num_drafts: int | None) -> list[Sample]:
    """Samples of vLLM as a recipe would have it, with n-gram speculation, which no recipe can have."""
    set_environment(on_gpu=False)
    from vllm import TokensPrompt
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = engine_arguments(
        str(BASE), PLAIN, max_model_len=512, seed=0, on_gpu=False, trust_remote_code=False, fp32_logits=True
    )
    if num_drafts is not None:
        drafts = {"num_speculative_tokens": num_drafts, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
        arguments["speculative_config"] = {"method": "ngram", **drafts}
    engine = AsyncLLM.from_vllm_config(engine_config(arguments, is_compared=num_drafts is None))
    params, outputs = sampling_params(HOT, seed=5, stop_token_ids=()), {}
    try:
        async for reply in engine.generate(TokensPrompt(prompt_token_ids=REPEATING), params, "0"):
            outputs |= {output.index: output for output in reply.outputs}
    finally:
        engine.shutdown()
    return [
        Sample(token_ids=o.token_ids, logprobs=o.logprobs.logprobs, finish_reason="length", versions=())
        for o in outputs.values()
    ]


def _policy():
    return load_policy(str(BASE), dtype=torch.float32, gradient_checkpointing=False, trust_remote_code=False)


def _disturbed():
    """The base model with other weights, the same in every call."""
    policy = _policy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return policy
