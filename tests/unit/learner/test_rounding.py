"""What rounding explains, and what it does not: two right computations, and wrong ones."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.attention.flash import Spans
from learner.attention.shared_prefix import ATTENTION_KEY, register
from learner.batch.microbatch import TrainingGroup
from learner.batch.packing import RowPlan
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Placement, to_device
from learner.forward.sharing_check import dense_row, mean_gap, shared_row
from learner.rounding import LOG_SOFTMAX, largest_gap
from learner.zero3.policy import Policy, load_policy

CPU = Placement(device=torch.device("cpu"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BASE = Path(__file__).parents[3] / "recipes" / "assets" / "local_base"
VOCAB, WIDTH = 800, 128


def test_the_limit_by_hand():
    assert largest_gap(3.0, "bf16") == pytest.approx(16 / 256 * 3.0 + 1e-5)
    assert largest_gap(3.0, "fp32", "bf16") == largest_gap(3.0, "bf16"), "the coarser type counts"
    assert largest_gap(3.0, "fp32") == pytest.approx(16 * 64 / 2**24 * 3.0 + 1e-5)
    assert largest_gap(0.0, "bf16") == LOG_SOFTMAX, "where every token is certain"


def _model(level, spread):
    """Four layers; the logits lie around `level` and spread by about `spread`."""
    register()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            initializer_range=0.08,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=0.3)
        model.model.embed_tokens.weight[:, 0] = 4.0
        hidden = model.model(torch.arange(64)[None]).last_hidden_state[0]
        model.lm_head.weight *= spread / (hidden @ model.lm_head.weight.T).std()
        model.lm_head.weight[:, 0] = level / hidden[:, 0].mean()
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # so that both types start from the same numbers
    model.set_attn_implementation(ATTENTION_KEY)
    return model


def _groups():
    rng = np.random.default_rng(0)
    return {
        0: TrainingGroup(
            prompt_ids=rng.integers(VOCAB, size=96, dtype=np.int32),
            response_ids=tuple(rng.integers(VOCAB, size=n, dtype=np.int32) for n in (40, 60)),
            rollout_logprobs=tuple(np.full(n, -4.0, np.float32) for n in (40, 60)),
            advantages=(1.0, -1.0),
            temperature=0.7,
        )
    }


PLAN = RowPlan(responses={0: (0, 1)})
GROUPS = _groups()


def _scored(policy, build, *, dense):
    row = to_device(build(PLAN, GROUPS), CPU, dense=dense)
    with torch.no_grad():
        return row, TokenScores(*policy(row)[1:])


@pytest.fixture(params=[(0.0, 0.5), (0.0, 4.0), (20.0, 0.5), (20.0, 4.0)], ids="level {0[0]}, spread {0[1]}".format)
def model(request):
    return _model(*request.param)


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture
def policy(model, dtype):
    return Policy(copy.deepcopy(model).to(DTYPES[dtype]))


@pytest.fixture
def gap(dtype, monkeypatch):
    """The gap of the self-check between two policies; 1 is the largest that rounding explains."""
    monkeypatch.setattr("learner.forward.sharing_check.take_maximum", lambda x: x)

    def compare(shared, dense):
        rows = _scored(shared, shared_row, dense=False), _scored(dense, dense_row, dense=True)
        return mean_gap(*rows, CPU, dtype)

    return compare


def test_rounding_stays_below_half_of_the_limit(policy, gap):
    assert 0 < gap(policy, policy) < 0.5


def test_another_way_to_round_stays_below_half_of_the_limit(model, policy, gap, dtype):
    """Products in fp64, rounded where the type rounds: another kernel that is right."""
    exact = copy.deepcopy(model).to(DTYPES[dtype])
    for module in exact.modules():
        if isinstance(module, torch.nn.Linear) and module is not exact.lm_head:
            module.forward = lambda x, m=module: torch.nn.functional.linear(
                x.double(), m.weight.double(), None if m.bias is None else m.bias.double()
            ).to(x.dtype)
    assert 0 < gap(Policy(exact), policy) < 0.5


@pytest.fixture
def trained(dtype):
    """The base of the local recipe, which minds positions as a trained model does."""
    return load_policy(str(BASE), dtype=DTYPES[dtype], trust_remote_code=False)


def _with_positions(policy, positions_of):
    """Another policy that puts the tokens of a row elsewhere; the prompt has 96."""
    wrong = copy.deepcopy(policy)
    rotary = wrong.causal_lm.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: forward(x, position_ids=positions_of(position_ids))
    return wrong


def _leaking(policy):
    """The same policy with a second response that sees the first."""

    def forward(row):
        (part,) = row.parts
        assert part.layout.spans.lengths == (96, 40, 60)
        layout = replace(part.layout, spans=Spans((96, 40 + 60), CPU.device))
        return policy(replace(row, parts=(replace(part, layout=layout),)))

    return forward


def _stale(policy):
    """Another policy whose head lags behind an update that changed it."""
    other = copy.deepcopy(policy)
    head = other.causal_lm.get_output_embeddings()
    head.weight = torch.nn.Parameter(0.7 * head.weight)
    return other


FAULTS = {
    "positions off by one behind the prompt": (lambda p: _with_positions(p, lambda i: i + (i >= 96)), 1),
    "a second response that goes on behind the first": (
        lambda p: _with_positions(p, lambda i: torch.arange(i.shape[1])[None]),
        4,
    ),
    "responses that start at zero": (lambda p: _with_positions(p, lambda i: torch.where(i >= 96, i - 96, i)), 10),
    "a response that sees its neighbour": (_leaking, 10),
    "a stale head": (_stale, 4),
}


def test_a_trained_model_stays_below_half_of_the_limit(trained, gap):
    assert 0 < gap(trained, trained) < 0.5


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_above_the_limit(trained, gap, dtype, name):
    make, times = FAULTS[name]
    assert gap(make(trained), trained) > times * (1 if dtype == "bf16" else 500)
