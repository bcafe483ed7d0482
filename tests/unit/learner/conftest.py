"""A tiny policy with large weights, and ragged groups for it."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.attention.shared_prefix import ATTENTION_KEY, register
from learner.batch.microbatch import TrainingGroup
from learner.zero3.policy import Policy

VOCAB = 61

torch.set_num_threads(1)  # more of them only wait for each other on rows as small as these


@pytest.fixture
def policy():
    """Two layers, grouped heads, fp64 so that only real differences show."""
    register()
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        attn_implementation=ATTENTION_KEY,
    )
    model = Qwen2ForCausalLM(shape).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 2 else 0.5))
    return Policy(model).train()


@pytest.fixture
def make_group():
    """Groups by prompt length and response lengths; the seed decides the rest."""

    def make(prompt_tokens, response_tokens, seed=0, **settings):
        rng = np.random.default_rng([seed, prompt_tokens])
        return TrainingGroup(
            prompt_ids=rng.integers(VOCAB, size=prompt_tokens, dtype=np.int32),
            response_ids=tuple(rng.integers(VOCAB, size=n, dtype=np.int32) for n in response_tokens),
            rollout_logprobs=tuple((-4 + 0.1 * rng.standard_normal(n)).astype(np.float32) for n in response_tokens),
            advantages=tuple(float(a) for a in rng.standard_normal(len(response_tokens))),
            temperature=0.8,
            **settings,
        )

    return make
