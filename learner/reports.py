"""What the learner reports of a step. Every field is a metric; `StepAccumulator` computes those declared as means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curriculum.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class SftReport:
    """One update of the warm-up, equal on every rank; means are NaN if it was skipped."""

    loss: Annotated[float, Metric("sft/loss", "nats", mean_over="updates")]
    """Mean over the demonstrations of the batch of their mean negative log-likelihood per response token (paper
    Eq. 11).

    Falls fast, then slowly. A floor above zero is normal where a prompt has several good responses. Rising again: lower
    `sft.learning_rate`."""
    token_accuracy: Annotated[float, Metric("sft/token_accuracy", "share", mean_over="tokens")]
    """Response tokens that the model would have chosen greedily.

    Close to 1 for the fixed parts of a response; the rest is the answer itself."""
    grad_norm: Annotated[float, Metric("sft/grad_norm", mean_over="updates")]
    """L2 norm of the gradient before clipping.

    Spikes in step with the loss: bad demonstrations or too high a learning rate."""
    learning_rate: Annotated[float, Metric("sft/learning_rate")]
    """Learning rate of the step.

    Follows `sft.schedule`."""
    num_response_tokens: Annotated[int, Metric("sft/response_tokens", "tokens")]
    """Response tokens in the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One training step on one batch of groups (all its mini-batches), equal on every rank.

    Means count the updates that were made; they are NaN if none was. The gap counts every batch.
    """

    loss: Annotated[float, Metric("learner/loss", mean_over="updates")]
    """Policy loss, mean over the updates of the step; with `learner.kl_coefficient` the penalty is part of it.

    Stays near zero and says little about progress: advantages have mean zero in every group. With `cispo` it holds
    log-probabilities and says nothing. Watch `reward/accuracy`."""
    grad_norm: Annotated[float, Metric("learner/grad_norm", mean_over="updates")]
    """L2 norm of the gradient before clipping, mean over the updates.

    Steady. Growth over many steps is an early sign of collapse; a value always above `learner.grad_clip` means that the
    clip sets the step size."""
    learning_rate: Annotated[float, Metric("learner/learning_rate")]
    """Learning rate of the step.

    Follows `learner.schedule`; starts anew in each phase unless `learner.schedule_over` is `run`."""
    entropy: Annotated[float, Metric("learner/entropy", "nats", mean_over="tokens")]
    """Mean entropy of the policy over the response tokens, at the sampling temperature.

    Falls slowly. A fall towards zero ends exploration (raise `clip_high` or the temperature); a rise that does not stop
    means that noise dominates the updates."""
    clip_fraction: Annotated[float, Metric("learner/clip_fraction", "share", mean_over="tokens")]
    """Tokens whose ratio a clip cut off, so that they gave no gradient; with `gspo` all tokens of the answers whose
    ratio it cut off; with `cispo` those whose weight it held, which still gave one.

    Exactly 0 with one mini-batch. With several, a few per mille to a few per cent, with `gspo` many times that."""
    clip_low_fraction: Annotated[float, Metric("learner/clip_low_fraction", "share", mean_over="tokens")]
    """Those of them whose ratio is below 1: tokens of wrong answers that were pushed down enough.

    Far above `learner/clip_high_fraction`: the update mostly suppresses."""
    clip_high_fraction: Annotated[float, Metric("learner/clip_high_fraction", "share", mean_over="tokens")]
    """Those of them whose ratio is above 1: tokens of right answers that were pushed up enough.

    The tokens that a larger `clip_high` would leave to explore with."""
    mean_ratio: Annotated[float, Metric("learner/mean_ratio", mean_over="tokens")]
    """Mean over the tokens of new / old probability, each by itself, whatever the algorithm.

    Exactly 1 with one mini-batch, close to 1 otherwise."""
    rollout_logprob_gap_mean: Annotated[
        float, Metric("learner/rollout_logprob_gap_mean", "nats", mean_over="compared_tokens")
    ]
    """Mean distance between the engine's log-probability of a sampled token and the learner's, before the first update.
    Tokens outside the learner's own nucleus (`learner/outside_nucleus`) are not compared.

    Rounding only: about 1e-6 in fp32, 1e-2 in bf16; with a policy lag also what the updates in between changed. A
    lasting jump means that engine and learner hold different weights."""
    rollout_logprob_gap_max: Annotated[float, Metric("learner/rollout_logprob_gap_max", "nats")]
    """Largest distance in the step between the engine's log-probability of a sampled token and the learner's, before
    the first update.

    Below 1e-4 in fp32; a few 1e-1 are possible in bf16."""
    kl_to_reference: Annotated[float, Metric("learner/kl_to_reference", "nats", mean_over="tokens")]
    """Mean over the tokens of the estimate k3 of KL(policy || reference), where the reference is the policy that the
    reinforcement learning started with; only with `learner.kl_coefficient` or in every `learner.kl_every`-th step, NaN
    in the others.

    Grows from 0."""
    masked_fraction: Annotated[float, Metric("learner/masked_fraction", "share", mean_over="tokens")]
    """Response tokens left out of the loss: no finite log-probability from the engine; with `learner.importance` also
    those outside the learner's own nucleus and the answers beyond `max_answer_ratio`.

    0 without `learner.importance`, below 1e-3 with it. More means that engine and learner disagree about the
    policy."""
    outside_nucleus: Annotated[float, Metric("learner/outside_nucleus", "share", mean_over="tokens")]
    """Sampled tokens that the learner's own nucleus at the sampler's top-p does not contain.

    0 at top-p 1, below 1e-3 otherwise. More means that engine and learner disagree about the policy."""
    importance_weight: Annotated[float, Metric("learner/importance_weight", mean_over="tokens")]
    """Mean weight of the truncated importance sampling; masked tokens count as 0.

    1 without `learner.importance`, close to 1 with it."""
    log_nucleus: Annotated[float, Metric("learner/log_nucleus", "nats", mean_over="tokens")]
    """Mean log of the probability mass of the learner's nucleus at the sampler's top-p: how far the log-probabilities
    that are trained lie below those of the distribution that was sampled.

    0 at top-p 1, about -0.03 at 0.95; never below log(top-p)."""
    prompt_sharing: Annotated[bool, Metric("learner/prompt_sharing")]
    """1 while prompts are forwarded once per group; 0 after the self-check has found a difference to the dense path.

    1. At 0, steps cost several times as much; the log says how large the difference was."""
    num_updates: Annotated[int, Metric("learner/updates", "count")]
    """Optimizer updates made.

    `learner.mini_batches`, less those that were skipped, and those without any group where the step was ended before
    its batch was complete."""
    num_skipped_updates: Annotated[int, Metric("learner/skipped_updates", "count")]
    """Updates left out because loss or gradient was not finite.

    0. More than three in a row stop the run."""
    num_response_tokens: Annotated[int, Metric("learner/response_tokens", "tokens")]
    """Response tokens trained on."""


KNOWN_BEFORE_UPDATE = (
    "learner/entropy",
    "learner/kl_to_reference",
    "learner/rollout_logprob_gap_mean",
    "learner/rollout_logprob_gap_max",
    "learner/masked_fraction",
    "learner/outside_nucleus",
    "learner/importance_weight",
    "learner/log_nucleus",
)
"""Keys of a `StepReport` that a preview knows: of the groups that have been forwarded before the first update, which
are those of the first mini-batch; the gap is that of the whole batch."""
