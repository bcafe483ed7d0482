"""Layers on rows in parts: the same scores and gradients as on the whole row, with less in memory."""

import gc
import weakref

import pytest
import torch

from curriculum.errors import UserError
from learner.attention.shared_prefix import PrefixCache
from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.packing import RowPlan, plan_slice, unshare
from learner.batch.rows import build_microbatch
from learner.forward.host_copy import HostCopies
from learner.forward.layer_parts import _GradientSums, run_layers_in_parts
from learner.forward.row_tensors import Placement, to_device
from learner.objective.objective import Objective, PolicyLoss
from learner.zero3.policy import Policy

CPU = Placement(device=torch.device("cpu"))
OBJECTIVE = Objective(clip_low=0.2, clip_high=0.28, entropy_coefficient=0.1)


def _row(plan, groups, **kwargs):
    return to_device(build_microbatch(plan, groups, num_groups=len(groups), aggregation=TOKEN_MEAN), CPU, **kwargs)


def _plan(parts, batches=()):
    def responses(entries):
        return {group: own for group, *own in entries}

    return RowPlan(responses=responses(parts), batches=tuple(responses(batch) for batch in batches))


def _update(policy, row):
    """Loss and gradient."""
    policy.zero_grad(set_to_none=True)
    total, *_ = policy(row, PolicyLoss(row, OBJECTIVE, old=None, reference_N=None))
    total.backward()
    return total.item(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def _assert_equal(ours, theirs):
    """The model's norms compute in fp32, so that is the noise."""
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-6


@pytest.fixture
def groups(make_group):
    return {0: make_group(9, (4, 7, 1, 3)), 1: make_group(5, (6,)), 2: make_group(1, (2, 2))}


@pytest.fixture
def recomputing(policy):
    """Builds a policy with the same weights whose layers keep their inputs only."""

    def build(**settings):
        policy.causal_lm.set_output_embeddings(_plain_head(policy))
        for layer in policy.causal_lm.get_decoder().layers:
            del layer.forward  # the method of its class
        return Policy(policy.causal_lm, **settings).train()

    return build


def _plain_head(policy):
    weight = policy.causal_lm.get_output_embeddings().weight
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = weight
    return head


PARTS = [(0, 0, 1, 2, 3), (1, 0), (2, 0, 1)]
BATCHES = {
    "one": [PARTS],
    "several": [[(0, 1, 2), (2, 0)], [(0, 0)], [(0, 3), (1, 0), (2, 1)]],
    "in_another_order": [[(2, 0, 1), (0, 3)], [(1, 0), (0, 0, 1, 2)]],
}


@pytest.mark.parametrize("batches", BATCHES)
def test_the_gradient_of_a_row_in_parts_is_that_of_the_whole_row(policy, groups, batches):
    loss, expected = _update(policy, _row(_plan(PARTS), groups))
    in_parts, gradient = _update(policy, _row(_plan(PARTS, BATCHES[batches]), groups))
    assert in_parts == pytest.approx(loss, rel=1e-6)  # the loss is summed up in fp32
    _assert_equal(gradient, expected)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("batches", [(), BATCHES["several"]])
def test_what_is_computed_again_has_the_same_gradient(policy, groups, recomputing, batches, offload):
    row = _row(_plan(PARTS, batches), groups)
    expected = _update(policy, row)
    again = _update(recomputing(recompute=True, offload=offload), row)
    assert again[0] == expected[0]
    _assert_equal(again[1], expected[1])


def test_a_row_may_be_run_again(policy, groups):
    row = _row(_plan(PARTS, BATCHES["several"]), groups)
    with torch.no_grad():
        policy(row)
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    (_, gradient), (_, again) = _update(policy, row), _update(policy, row)
    _assert_equal(gradient, _update(policy, _row(_plan(PARTS), groups))[1])
    assert torch.equal(gradient, again)


def test_the_scores_are_those_of_the_whole_row(policy, groups):
    with torch.no_grad():
        _, whole, *_ = policy(_row(_plan(PARTS[:1]), groups))
        _, in_parts, *_ = policy(_row(_plan(PARTS[:1], [[(0, 0, 1)], [(0, 2, 3)]]), groups))
    torch.testing.assert_close(in_parts, whole)


def test_the_dense_path_gives_the_same_gradient(policy, groups):
    plan = plan_slice([groups[i] for i in range(3)], num_ranks=1, max_tokens=100)
    _, expected = _update(policy, _row(plan[0][0], groups))
    total = 0.0
    for single in unshare(plan)[0]:
        total = total + _update(policy, _row(single, groups, dense=True))[1]
    _assert_equal(total, expected)


def test_a_planned_group_beyond_the_budget_trains_like_one_within(policy, groups):
    (small,) = plan_slice([groups[0]], num_ranks=1, max_tokens=17)[0]
    (large,) = plan_slice([groups[0]], num_ranks=1, max_tokens=99)[0]
    in_parts = _row(small, groups)
    prompt, *batches = [part.tokens.stop - part.tokens.start for part in in_parts.parts]
    assert prompt == 9
    assert len(batches) > 1
    assert max(batches) <= 17 - 9
    _assert_equal(_update(policy, in_parts)[1], _update(policy, _row(large, groups))[1])


def test_a_layer_goes_through_every_part_once_forward_and_once_again_backward(policy, groups):
    seen = []
    layer = policy.causal_lm.get_decoder().layers[0]
    layer.mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    _update(policy, _row(_plan(PARTS, BATCHES["several"]), groups))
    assert seen == [15, 10, 4, 11] * 2  # prompts of 9 + 5 + 1 tokens, and three batches


def test_nothing_of_a_layer_is_kept_between_the_passes_but_its_input(policy, groups):
    kept = []
    for layer in policy.causal_lm.get_decoder().layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    row = _row(_plan(PARTS, BATCHES["several"]), groups)
    total, *_ = policy(row, PolicyLoss(row, OBJECTIVE, old=None, reference_N=None))
    gc.collect()
    assert len(kept) == 8
    assert not any(output() is not None for output in kept)
    total.backward()


def test_gradients_of_weights_are_summed_up_over_the_parts_in_fp32():
    weight = torch.zeros(1, dtype=torch.bfloat16)
    sums = _GradientSums([weight])
    for value in (256.0, 1.0, 1.0, 2.0):
        sums.add([torch.tensor([value], dtype=torch.bfloat16)])
    (total,) = sums.total()
    assert (total.item(), total.dtype) == (260, torch.bfloat16)  # in bf16, 256 + 1 is 256


def test_what_the_batches_leave_for_the_prompts_is_summed_up_in_fp32():
    cache, ones = PrefixCache(), torch.ones(1, 1, 3, 1, dtype=torch.bfloat16)
    cache.fill(ones, ones)
    for value in (256.0, 1.0, 1.0, 2.0):
        cache.accumulate(slice(1, 2), value * ones[:, :, 1:2], -value * ones[:, :, 1:2])
    keys, values = cache.added_to(0 * ones, ones)
    assert keys.flatten().tolist() == [0, 260, 0]
    assert values.flatten().tolist() == [1, -260, 1]  # -259 lies between two numbers of bf16
    assert keys.dtype == torch.bfloat16


def test_responses_without_their_prompts_are_refused():
    with pytest.raises(RuntimeError, match="forward them before their responses"):
        PrefixCache().states  # noqa: B018


def test_names_of_parameters_stay_those_of_the_model(policy):
    assert "causal_lm.model.layers.0.self_attn.q_proj.weight" in dict(policy.named_parameters())


def test_a_model_without_a_list_of_layers_is_refused():
    with pytest.raises(UserError, match="use a Qwen2, Qwen3 or Llama model"):
        run_layers_in_parts(torch.nn.Linear(1, 1), recompute=False, offload=False)


def test_inputs_come_back_in_the_opposite_order_and_once_each():
    copies = HostCopies()
    tensors = [torch.full((2,), float(i)) for i in range(3)]
    kept = [copies.put(x) for x in tensors]
    assert [copy.take().tolist() for copy in reversed(kept)] == [[2.0, 2.0], [1.0, 1.0], [0.0, 0.0]]
    with pytest.raises(RuntimeError, match="taken twice"):
        kept[0].take()


def test_inputs_of_a_pass_that_was_given_up_do_not_stay(policy, groups):
    copies = HostCopies()
    first = weakref.ref(copies.put(torch.ones(2)))
    gc.collect()
    assert first() is None
    assert copies.put(torch.ones(2)).take().tolist() == [1.0, 1.0]


def test_a_meta_tensor_comes_back_with_its_shape():
    copy = HostCopies().put(torch.empty(3, 5, dtype=torch.bfloat16, device="meta"))
    back = copy.take()
    assert (back.shape, back.dtype, back.device.type) == ((3, 5), torch.bfloat16, "meta")
