"""Whatever a recipe switches on in an engine, the log-probabilities of its samples are those of the learner."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import Any

import numpy as np
import pytest

from actors.config import EngineConfig
from actors.engine import VLLMEngine
from actors.vllm_arguments import engine_arguments, engine_config, set_environment
from cluster.weights.sync import WeightSyncError, check_decoding
from learner.rounding import largest_gap
from tests.harness.sampled import (
    BASE,
    HOT,
    PROMPTS,
    SAMPLING,
    base_policy,
    find,
    other_policy,
    sampling_gaps,
    share_inside,
)

pytestmark = pytest.mark.integration

PLAIN = EngineConfig(dtype="fp32", enforce_eager=True)
ENGINES = {
    "plain": PLAIN,
    "two sequences at a time": PLAIN.model_copy(update={"max_num_seqs": 2}),
    "large steps": PLAIN.model_copy(update={"max_num_batched_tokens": 16384}),
    "compiled": PLAIN.model_copy(update={"enforce_eager": False}),
}
"""What a recipe can set on a CPU; tests/gpu has CUDA graphs, tensor parallelism and chunked prefill."""
ROUNDING = largest_gap(1.0, "fp32")
"""Mean difference (nats) that fp32 explains for logits that spread by no more than 1."""
REPEATING = PROMPTS[1][:40] * 3
"""N-gram speculation finds its drafts in here."""


@pytest.fixture(scope="module", params=ENGINES)
def found(request):
    measured = asyncio.run(_measure(ENGINES[request.param]))
    gc.collect()  # vLLM's engines are in reference cycles and must not be found by the interpreter's own end
    return measured


async def _measure(config: EngineConfig):
    engine = VLLMEngine(str(BASE), config, max_model_len=512, stop_token_ids=(), seed=0, on_gpu=False, fp32_logits=True)
    try:
        return await find(engine, other_policy())
    finally:
        engine.shutdown()


def test_samples_have_the_log_probabilities_of_the_learner_after_temperature_and_top_p(found):
    for prompt, samples in zip(PROMPTS, found.cold, strict=True):
        assert share_inside(base_policy(), prompt, samples, SAMPLING) == 1
        assert sampling_gaps(base_policy(), prompt, samples, SAMPLING).max() < 1e-4


def test_samples_of_a_hot_distribution_have_them_too(found):
    for prompt, samples in zip(PROMPTS, found.hot, strict=True):
        assert sampling_gaps(base_policy(), prompt, samples, HOT).max() < 1e-4


def test_seeds_reproduce_every_sample_by_itself(found):
    assert [sample.token_ids for sample in found.hot[0]] == [sample.token_ids for sample in found.alone]
    assert len({sample.token_ids for sample in found.alone}) == HOT.num_samples


def test_a_cached_prefix_changes_neither_samples_nor_their_log_probabilities(found):
    for cold, warm in zip(found.cold, found.warm, strict=True):
        assert [sample.token_ids for sample in cold] == [sample.token_ids for sample in warm]
        for ours, theirs in zip(cold, warm, strict=True):
            assert np.allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def test_the_probe_finds_no_gap_between_decoding_and_scoring(found):
    assert found.decoding_gap < ROUNDING
    assert found.decoding_gap_after < ROUNDING


def test_tokens_after_an_update_have_the_log_probabilities_of_the_new_weights_over_the_whole_answer(found):
    """Tokens before it have those of the old ones: the spans of the versions are exact."""
    old, new, crossed = base_policy(), other_policy(), 0
    for sample in found.updated:
        by_old, by_new = (sampling_gaps(policy, PROMPTS[0], [sample], HOT) for policy in (old, new))
        (start,) = [first for first, version in sample.versions if version == "1"] or [len(sample.token_ids)]
        crossed += 0 < start < len(sample.token_ids)
        assert by_old[:start].max(initial=0) < 1e-4
        assert by_new[start:].max(initial=0) < 1e-4
        assert by_new[:start].max(initial=0) > 0.01 or not start, "else the test could not tell the weights apart"
    assert crossed, "no answer was under way"


def test_after_an_update_samples_have_the_log_probabilities_of_the_new_weights(found):
    """Their prefix was cached with the old ones."""
    assert sampling_gaps(other_policy(), PROMPTS[0], found.fresh, SAMPLING).max() < 1e-4


class SpeculatingEngine(VLLMEngine):
    """vLLM as a recipe would have it, but with n-gram speculation, which no recipe can have."""

    _engine: Any

    def __init__(self, num_drafts: int | None) -> None:
        set_environment(on_gpu=False)
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_arguments(
            str(BASE), PLAIN, max_model_len=512, seed=0, on_gpu=False, trust_remote_code=False, fp32_logits=True
        )
        if num_drafts is not None:
            drafts = {"num_speculative_tokens": num_drafts, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
            arguments["speculative_config"] = {"method": "ngram", **drafts}
        self._engine = AsyncLLM.from_vllm_config(engine_config(arguments, is_compared=num_drafts is None))
        self._request_ids = itertools.count()
        self._stop_token_ids = []

    async def found(self):
        """Hot samples, and the gap that the probe of a weight update would find."""
        try:
            return await self.sample(REPEATING, HOT, seed=5), await self.decoding_gap(REPEATING)
        finally:
            self._engine.shutdown()


async def _with_drafts(num_drafts: int | None):
    return await SpeculatingEngine(num_drafts).found()


def test_why_speculation_is_refused_and_that_the_probe_would_find_it():
    """vLLM 0.32 reports other numbers on a CPU, and some that are none. If this fails, the refusal can go."""
    plain, plain_gap = asyncio.run(_with_drafts(None))
    drafted, drafted_gap = asyncio.run(_with_drafts(3))
    gc.collect()
    assert sampling_gaps(base_policy(), REPEATING, plain, HOT).max() < 1e-4
    assert not sampling_gaps(base_policy(), REPEATING, drafted, HOT).max() < 1, "not a number counts, too"
    check_decoding(plain_gap, engine="rollout-0", version=1, max_gap=ROUNDING)
    with pytest.raises(WeightSyncError, match="the tokens that it samples have other log-probabilities"):
        check_decoding(drafted_gap, engine="rollout-0", version=1, max_gap=ROUNDING)
