"""vLLM's engines on CUDA cards, in bf16 with an fp32 head: graphs, chunks, two cards, and both of its model runners.

The reference are the same weights in fp32 on the CPU. `tests/integration/test_engine_features.py` has the same checks
for what vLLM's CPU build shares.
"""

import asyncio
import gc

import numpy as np
import pytest
import torch

from actors.config import EngineConfig, YarnConfig
from actors.engine import VLLMEngine
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

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

ROUNDING = largest_gap(1.0, "bf16")
"""Mean difference (nats) that bf16 explains for logits that spread by no more than 1."""
EAGER = EngineConfig(dtype="bf16", enforce_eager=True, gpu_memory_utilization=0.3)
GRAPHS = EAGER.model_copy(update={"enforce_eager": False})
ENGINES = {
    "eager": EAGER,
    "CUDA graphs": GRAPHS,
    "chunked prefill": GRAPHS.model_copy(update={"max_num_seqs": 16, "max_num_batched_tokens": 64}),
    "tensor parallel 2": GRAPHS.model_copy(update={"tensor_parallel_size": 2}),
}
RUNNERS = {"V1": "0", "V2": "1"}
"""Value of vLLM's environment variable for each of its model runners."""


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", RUNNERS[request.param])
        yield request.param


@pytest.fixture(scope="module", params=ENGINES)
def found(request, runner):
    config = ENGINES[request.param]
    if torch.cuda.device_count() < config.tensor_parallel_size:
        pytest.skip("fewer than two CUDA devices on this machine")
    return _with_engine(config, lambda engine: find(engine, other_policy(torch.bfloat16)), runner)


def test_sampled_log_probabilities_are_those_of_the_model_after_temperature_and_top_p(found):
    for prompt, samples in zip(PROMPTS, found.cold, strict=True):
        assert share_inside(_base(), prompt, samples, SAMPLING) > 0.95, "rounding moves the edge of a nucleus"
        assert sampling_gaps(_base(), prompt, samples, SAMPLING).mean() < ROUNDING


def test_those_of_a_hot_distribution_are_too(found):
    for prompt, samples in zip(PROMPTS, found.hot, strict=True):
        assert sampling_gaps(_base(), prompt, samples, HOT).mean() < ROUNDING


def test_equal_requests_with_equal_seeds_get_equal_first_tokens_and_others_do_not(found):
    """Rounding depends on the batch, so that answers part later on."""
    together, alone = ([sample.token_ids[:2] for sample in samples] for samples in (found.hot[0], found.alone))
    assert sum(ours == theirs for ours, theirs in zip(together, alone, strict=True)) >= 3
    assert len(set(alone)) > 1


def test_a_cached_prefix_keeps_the_log_probabilities(found):
    for prompt, samples in zip(PROMPTS, found.warm, strict=True):
        assert sampling_gaps(_base(), prompt, samples, SAMPLING).mean() < ROUNDING


def test_decoding_reports_what_scoring_does_before_and_after_an_update(found):
    assert found.decoding_gap < ROUNDING
    assert found.decoding_gap_after < ROUNDING


def test_tokens_carry_the_version_of_the_weights_that_gave_their_log_probabilities(found):
    """Answers that were under way are kept; captured graphs compute with the new weights."""
    crossed = 0
    for sample in found.updated:
        by_old, by_new = (sampling_gaps(policy, PROMPTS[0], [sample], HOT) for policy in (_base(), _other()))
        (start,) = [first for first, version in sample.versions if version == "1"] or [len(sample.token_ids)]
        if not 0 < start < len(sample.token_ids):
            continue
        crossed += 1
        assert by_old[:start].mean() < ROUNDING < by_new[:start].mean()
        assert by_new[start:].mean() < ROUNDING
    assert crossed, "no answer was under way"


def test_no_prefix_of_the_old_weights_is_left_after_an_update(found):
    assert sampling_gaps(_other(), PROMPTS[0], found.fresh, SAMPLING).mean() < ROUNDING


def test_graphs_give_what_eager_execution_gives(runner):
    async def sampled(engine):
        return await engine.sample(PROMPTS[0], HOT, seed=1), [await engine.score(prompt) for prompt in PROMPTS]

    samples, by_graphs = _with_engine(GRAPHS, sampled, runner)
    _, by_eager = _with_engine(EAGER, sampled, runner)
    assert sampling_gaps(_base(), PROMPTS[0], samples, HOT).mean() < ROUNDING
    for ours, theirs in zip(by_graphs, by_eager, strict=True):
        assert np.abs(np.subtract(ours, theirs)).mean() < ROUNDING


def test_yarn_reaches_beyond_the_original_length(runner):
    """Engine alone: the rope of the learner is checked on the CPU."""
    yarn = YarnConfig(factor=4, original_max_tokens=128)

    async def scored(engine):
        return await engine.score(PROMPTS[0]), await engine.decoding_gap(PROMPTS[0])

    plain, gap = _with_engine(EAGER, scored, runner)
    scaled, scaled_gap = _with_engine(EAGER, scored, runner, yarn=yarn)
    assert max(gap, scaled_gap) < ROUNDING
    assert np.abs(np.subtract(plain, scaled)).mean() > ROUNDING


def _with_engine(config, work, runner, *, yarn=None):
    """What `work(engine)` returns, of an engine with this runner."""

    async def run():
        engine = VLLMEngine(
            str(BASE), config, max_model_len=500, stop_token_ids=(), seed=0, on_gpu=True, fp32_logits=True, yarn=yarn
        )
        try:
            assert engine._engine.vllm_config.use_v2_model_runner == (runner == "V2")
            return await work(engine)
        finally:
            engine.shutdown()

    found = asyncio.run(run())
    gc.collect()
    return found


def _base():
    return base_policy(torch.bfloat16).float()


def _other():
    return other_policy(torch.bfloat16).float()
