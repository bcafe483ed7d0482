"""Beyond the length of its training, a model with YaRN is the same for engine, learner and exported folder."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from actors.config import EngineConfig, YarnConfig
from actors.engine import VLLMEngine
from actors.model_folder import config_overrides
from actors.rollout import Sampling
from learner.batch.rows import single_row
from learner.forward.row_tensors import Placement, to_device
from learner.zero3.policy import load_policy

pytestmark = pytest.mark.integration

YARN = YarnConfig(factor=4, original_max_tokens=64)
NUM_TOKENS = 232
"""Three and a half times the original length; with the response of 24 tokens all of the new one."""
TOKENS = np.random.default_rng(0).integers(0, 256, size=NUM_TOKENS).tolist()
SAMPLING = Sampling(num_samples=2, temperature=1.0, top_p=1.0, max_response_tokens=YARN.max_tokens - NUM_TOKENS)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base, exported = _save_base(folder / "base"), folder / "exported"
    overrides = config_overrides(str(base), YARN)
    policy = _policy(base, overrides)
    weights = {name: weight.detach() for name, weight in _policy(base, {}).causal_lm.state_dict().items()}
    policy.write(exported, weights, weights.__getitem__, str(base), overrides, max_file_bytes=1 << 30)
    found = asyncio.run(_measure(base, exported))
    gc.collect()  # vLLM's engines are in reference cycles and must not be found by the interpreter's own end
    return found | {
        "learner": _scores(policy, TOKENS),
        "without": _scores(_policy(base, {}), TOKENS),
        "transformers": _by_transformers(exported, TOKENS),
        "responses, by the learner": [
            _scores(policy, [*TOKENS, *sample.token_ids])[NUM_TOKENS - 1 :] for sample in found["samples"]
        ],
    }


async def _measure(base: Path, exported: Path) -> dict:
    engine = _engine(base, YARN)
    try:
        found = {"engine": await engine.score(TOKENS), "samples": await engine.sample(TOKENS, SAMPLING, seed=5)}
    finally:
        engine.shutdown()
    engine = _engine(exported, None)
    try:
        found["engine of the exported folder"] = await engine.score(TOKENS)
    finally:
        engine.shutdown()
    return found


def test_engine_and_learner_agree_beyond_the_original_length(found):
    assert _gap(found["engine"], found["learner"]) < 1e-4


def test_sampled_tokens_have_the_log_probabilities_of_the_learner(found):
    for sample, expected in zip(found["samples"], found["responses, by the learner"], strict=True):
        assert len(sample.token_ids) == len(expected) == YARN.max_tokens - NUM_TOKENS
        assert _gap(sample.logprobs, expected) < 1e-4


def test_transformers_and_vllm_load_the_exported_folder_with_the_same_rope(found):
    assert _gap(found["transformers"], found["learner"]) < 1e-4
    assert _gap(found["engine of the exported folder"], found["learner"]) < 1e-4


def test_without_the_key_it_is_another_model(found):
    assert _gap(found["without"], found["learner"]) > 0.1


def _save_base(folder: Path) -> Path:
    """A random model in the form of published folders, its attention sharp enough for positions to matter."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=YARN.original_max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.25,
        architectures=["Qwen2ForCausalLM"],
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _engine(model: Path, yarn: YarnConfig | None) -> VLLMEngine:
    return VLLMEngine(
        str(model),
        EngineConfig(dtype="fp32", enforce_eager=True),
        max_model_len=YARN.max_tokens,
        stop_token_ids=(),
        seed=0,
        on_gpu=False,
        fp32_logits=True,
        yarn=yarn,
    )


def _policy(model: Path, overrides: dict):
    return load_policy(str(model), dtype=torch.float32, trust_remote_code=False, overrides=overrides)


def _scores(policy, token_ids) -> list[float]:
    row = to_device(single_row(np.array(token_ids, np.int32)), Placement(device=torch.device("cpu")))
    with torch.no_grad():
        return policy(row)[1].tolist()


def _by_transformers(folder: Path, token_ids) -> list[float]:
    model, ids = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), torch.tensor(token_ids)
    with torch.no_grad():
        logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, ids[1:, None]).squeeze(1).tolist()


def _gap(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
