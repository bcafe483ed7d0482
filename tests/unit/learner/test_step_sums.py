"""What rows and updates add up to, on one rank; hand-made scores of two tokens a row."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from learner.forward.logprobs import TokenScores
from learner.objective.objective import TOKEN_SUMS
from learner.objective.step_sums import StepAccumulator
from learner.reports import SftReport, StepReport

CPU = torch.device("cpu")
RL = {"learning_rate": 0.1, "prompt_sharing": True}
LABELS, ROLLOUT_LOGPROBS = torch.tensor([1, 2]), torch.tensor([-1.0, -2.0])
ROW = SimpleNamespace(is_placeholder=False, labels_N=LABELS, rollout_logprobs_N=ROLLOUT_LOGPROBS)


@pytest.fixture(autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def scores(entropy=0.5, hits=(1.0, 0.0), logprobs=(-1.0, -2.0)):
    ones = torch.ones(2)
    return TokenScores(
        logprobs_N=torch.tensor(logprobs), entropy_N=entropy * ones, hits_N=torch.tensor(hits), log_nucleus_N=0 * ones,
        inside_N=ones, spread_N=ones,
    )  # fmt: skip


def sums(**values):
    return torch.tensor([float(values.get(name, 0.0)) for name in TOKEN_SUMS], dtype=torch.float64)


def test_the_warm_up_reports_means_over_tokens_and_updates():
    steps = StepAccumulator(CPU)
    steps.add_row(ROW, scores(), torch.tensor(1.5))
    steps.add_row(ROW, scores(hits=(1.0, 1.0)), torch.tensor(0.5))
    steps.close_update(3.0)
    found = steps.report(SftReport, learning_rate=0.1)
    assert found == SftReport(loss=2.0, token_accuracy=0.75, grad_norm=3.0, learning_rate=0.1, num_response_tokens=4)


def test_every_sum_of_the_policy_loss_becomes_the_mean_of_its_name():
    steps = StepAccumulator(CPU)
    steps.add_row(ROW, scores(), torch.tensor(1.0), sums(**{name: i for i, name in enumerate(TOKEN_SUMS)}))
    steps.close_update(1.0)
    found = dataclasses.asdict(steps.report(StepReport, **RL))
    assert [found[name] for name in TOKEN_SUMS] == [i / 2 for i in range(len(TOKEN_SUMS))]


def test_a_skipped_update_is_counted_and_its_rows_are_not():
    steps = StepAccumulator(CPU)
    for grad_norm, loss, entropy in ((1.0, 1.0, 0.5), (None, 9.0, 9.0), (2.0, 2.0, 1.5)):
        steps.add_row(ROW, scores(entropy=entropy), torch.tensor(loss), sums())
        steps.close_update(grad_norm)
    found = steps.report(StepReport, **RL)
    assert (found.num_updates, found.num_skipped_updates, found.num_response_tokens) == (2, 1, 4)
    assert (found.loss, found.grad_norm, found.entropy) == (1.5, 1.5, 1.0)


def test_means_over_no_updates_are_not_a_number():
    steps = StepAccumulator(CPU)
    steps.add_row(ROW, scores(), torch.tensor(1.0), sums())
    steps.close_update(None)
    found = steps.report(StepReport, **RL)
    assert (found.num_updates, found.num_response_tokens) == (0, 0)
    assert math.isnan(found.loss)
    assert math.isnan(found.entropy)


def test_the_gap_is_a_mean_over_the_compared_tokens_even_if_the_update_is_skipped():
    steps = StepAccumulator(CPU)
    steps.add_gap(ROW, scores(logprobs=(-1.5, -2.0)))
    unknown = SimpleNamespace(**{**vars(ROW), "rollout_logprobs_N": torch.tensor([-1.0, math.nan])})
    steps.add_gap(unknown, scores(logprobs=(-2.0, -9.0)))
    steps.close_update(None)
    found = steps.report(StepReport, **RL)
    assert found.rollout_logprob_gap_mean == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert found.rollout_logprob_gap_max == 1.0


def test_a_token_outside_the_learners_nucleus_is_not_compared_with_the_sampler():
    steps = StepAccumulator(CPU)
    steps.add_gap(ROW, scores(logprobs=(-1.5, -9.0))._replace(inside_N=torch.tensor([1.0, 0.0])))
    steps.close_update(None)
    found = steps.report(StepReport, **RL)
    assert (found.rollout_logprob_gap_mean, found.rollout_logprob_gap_max) == (0.5, 0.5)


def test_the_loss_of_a_mini_batch_that_came_short_is_scaled_to_the_groups_that_came():
    steps = StepAccumulator(CPU)
    steps.add_row(ROW, scores(), torch.tensor(1.0), sums())
    steps.close_update(1.0, share=0.5)
    assert steps.report(StepReport, **RL).loss == 2.0


def test_tokens_are_counted_per_update_without_placeholders():
    steps = StepAccumulator(CPU)
    placeholder = SimpleNamespace(**{**vars(ROW), "is_placeholder": True})
    for row in (ROW, placeholder, ROW):
        steps.add_row(row, scores(), torch.tensor(1.0), sums())
    assert steps.num_tokens() == 4
    steps.close_update(1.0)
    assert steps.num_tokens() == 0
