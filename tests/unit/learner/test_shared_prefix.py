"""The packed row against forwarding every prompt-response pair on its own, with large random weights."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from learner.attention.shared_prefix import ATTENTION_KEY, register, shared_prefix_attention, whole_layout
from learner.batch.microbatch import PrefixSegment

VOCAB = 97
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
}
LAYOUTS = {
    "ragged": [(9, (4, 7, 1))],
    "equal_lengths": [(5, (6, 6, 6))],
    "one_response": [(8, (5,))],
    "one_token_prompt": [(1, (3, 2))],
    "one_token_responses": [(6, (1, 1, 1))],
    "one_token_everything": [(1, (1,))],
    "several_groups": [(7, (3, 9)), (1, (1,)), (12, (2, 2, 5)), (4, (6,)), (1, (1, 3))],
}


def _model(family, **overrides):
    model_class, config_class = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SHAPE, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 2 else 0.5))
    return model.train()


def _sequences(layout):
    generator = torch.Generator().manual_seed(1)

    def ids(length):
        return torch.randint(VOCAB, (length,), generator=generator)

    return [(ids(prompt), [ids(length) for length in responses]) for prompt, responses in layout]


def _dense_states(model, groups):
    """Last hidden states in row order; the prompt's from its first pair."""
    model.set_attn_implementation("sdpa")
    states = []
    for prompt, responses in groups:
        pairs = [model.model(input_ids=torch.cat((prompt, r))[None]).last_hidden_state[0] for r in responses]
        states += [pairs[0][: len(prompt)], *(pair[len(prompt) :] for pair in pairs)]
    return torch.cat(states)


def _packed_states(model, groups):
    register()
    model.set_attn_implementation(ATTENTION_KEY)
    segments, ids, positions, start = [], [], [], 0
    for prompt, responses in groups:
        lengths = tuple(len(response) for response in responses)
        segments.append(PrefixSegment(start=start, prompt_tokens=len(prompt), response_tokens=lengths))
        ids += [prompt, *responses]
        positions += [torch.arange(len(prompt)), *(len(prompt) + torch.arange(length) for length in lengths)]
        start = segments[-1].end
    return model.model(
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat(positions)[None],
        use_cache=False,
        row_layout=whole_layout(segments, torch.device("cpu")),
    ).last_hidden_state[0]


def _gradients(model, states):
    """Gradients of a loss in which every position counts differently."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(2)
    (states * torch.randn(states.shape, generator=generator)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def _assert_equal_to_dense(model, layout):
    groups = _sequences(layout)
    expected = _dense_states(model, groups)
    expected_gradients = _gradients(model, expected)
    states = _packed_states(model, groups)
    gradients = _gradients(model, states)
    assert _relative_error(states, expected) < 1e-6
    assert gradients.keys() == expected_gradients.keys()
    assert _relative_error(_flat(gradients), _flat(expected_gradients)) < 1e-6
    for name, gradient in gradients.items():  # biases of keys nearly cancel, so a single tensor gets more room
        assert _relative_error(gradient, expected_gradients[name]) < 1e-5, name


def _flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_row_equals_forwarding_every_pair_on_its_own(family, layout):
    _assert_equal_to_dense(_model(family), LAYOUTS[layout])


def test_it_holds_without_grouped_heads():
    _assert_equal_to_dense(_model("qwen2", num_key_value_heads=4), LAYOUTS["several_groups"])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_it_holds_under_gradient_checkpointing(use_reentrant):
    model = _model("qwen2")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    _assert_equal_to_dense(model, LAYOUTS["several_groups"])


def test_a_response_does_not_see_its_sibling_or_the_next_group():
    model = _model("qwen2")
    groups = _sequences([(4, (3, 3)), (5, (2,))])
    changed = [
        (groups[0][0], [groups[0][1][0], groups[0][1][1] + 1 - VOCAB * (groups[0][1][1] == VOCAB - 1)]),
        groups[1],
    ]
    before, after = _packed_states(model, groups), _packed_states(model, changed)
    same = [*range(7), *range(10, 17)]
    assert torch.equal(before[same], after[same])
    assert not torch.allclose(before[7:10], after[7:10])


def test_masks_dropout_and_sliding_windows_are_refused():
    x = torch.zeros(1, 1, 2, 4)
    layout = whole_layout([PrefixSegment(start=0, prompt_tokens=1, response_tokens=(1,))], torch.device("cpu"))
    for extra in ({"dropout": 0.1}, {"sliding_window": 8}):
        with pytest.raises(ValueError, match="shared-prefix attention"):
            shared_prefix_attention(torch.nn.Module(), x, x, x, None, row_layout=layout, **extra)
    with pytest.raises(ValueError, match="mask=True"):
        shared_prefix_attention(torch.nn.Module(), x, x, x, torch.zeros(1), row_layout=layout)
