"""Guards: rules of the recipe that watch the metrics of a run, and what they find."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cluster.recipe.config import DEFAULT_GUARDS, GuardConfig, RunConfig
from cluster.run.group_statistics import GroupStatistics
from cluster.run.guard_state import GuardState
from cluster.run.heldout_statistics import HeldOutStatistics
from cluster.run.metrics import METRICS
from curriculum.controls import CONTROLS
from curriculum.errors import RunFailed, UserError
from curriculum.metric import Metrics, declared_metrics, is_declared
from learner.reports import KNOWN_BEFORE_UPDATE

ACTIONS: Final = {
    "warn": "look at the metrics",
    "skip": "the update is left out",
    "roll_back": "the learner goes back to the last good checkpoint",
    "stop": "the run stops",
}
"""What a guard does, in words."""
KL: Final = "learner/kl_to_reference"
MAX_SKIPPED_IN_A_ROW = 3
"""Updates that one guard may leave out in a row; it stops the run at one more."""
MAX_ROLL_BACKS = 3
"""Times that a run may go back; it stops at one more."""
SKIPPABLE: Final = frozenset(
    [metric.key for metric in declared_metrics(GroupStatistics).values()] + list(KNOWN_BEFORE_UPDATE)
) - {"rollout/groups_trained"}
"""Metrics that are known before the update of their step, so that a guard on them can leave it out."""


OF_EVALUATIONS: Final = frozenset(metric.key for metric in declared_metrics(HeldOutStatistics).values())
"""Metrics of held-out questions."""


class GuardStop(RunFailed):
    """A guard of the recipe stops the run; the checkpoints from before are whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A guard whose metric has been beyond its threshold for as many steps as it waits, or longer."""

    rule: GuardConfig
    value: float
    """Of the metric in the latest step."""
    num_steps: int
    """Steps in a row."""

    @property
    def is_news(self) -> bool:
        """Whether a warning is due: when the rule has just been met, and again at doubling intervals."""
        times, rest = divmod(self.num_steps, self.rule.steps)
        return rest == 0 and times & (times - 1) == 0

    def __str__(self) -> str:
        kind = "evaluation" if _is_of_evaluations(self.rule.metric) else "step"
        times = f"one {kind}" if self.num_steps == 1 else f"{self.num_steps} {kind}s in a row"
        return f"{self.rule.metric} is {self.value:.4g}, {self.rule.bound}, in {times}"


class Guards:
    """The guards of a recipe, at the state that a run has reached.

    The metrics of a step mostly tell what the weights before its update are worth. So a checkpoint counts as good only
    when the step after it has been judged as well.
    """

    def __init__(self, rules: Sequence[GuardConfig], state: GuardState) -> None:
        """Take the rules, and the state, which is changed in place."""
        self._rules = tuple({str(rule): rule for rule in rules}.values())
        self._state = state

    @property
    def needs_preview(self) -> bool:
        """Whether a rule needs to know of the learner what it knows before the update."""
        return any(rule.action == "skip" and rule.metric in KNOWN_BEFORE_UPDATE for rule in self._rules)

    def before_update(self, metrics: Metrics) -> list[Finding]:
        """Judge what is known before the update; return the findings for which it must be left out."""
        return self._judge([rule for rule in self._rules if rule.action == "skip"], metrics)

    def after_step(self, metrics: Metrics) -> list[Finding]:
        """Judge the metrics of a whole step by all other rules; return the findings, those that act hardest first."""
        found = self._judge([rule for rule in self._rules if rule.action != "skip"], metrics)
        if self._is_quiet:
            self._state.good_checkpoint = self._state.unproven_checkpoint or self._state.good_checkpoint
        self._state.unproven_checkpoint = None
        return sorted(found, key=lambda finding: ("stop", "roll_back", "warn").index(finding.rule.action))

    def after_evaluation(self, metrics: Metrics) -> list[Finding]:
        """Judge the metrics of held-out questions, those alone; return the findings, those that act hardest first."""
        found = self._judge(self._rules, metrics)
        return sorted(found, key=lambda finding: ("stop", "warn").index(finding.rule.action))

    def saved(self, step: int) -> None:
        """Note that a checkpoint is about to be written after so many steps; only who may go back needs to know."""
        self._state.unproven_checkpoint = step if self._acting and self._is_quiet else None

    def rolled_back(self, step: int) -> None:
        """Note that the weights of the last good checkpoint are about to be saved again, after so many steps."""
        self._state.counts.clear()
        self._state.num_roll_backs += 1
        self._state.good_checkpoint, self._state.unproven_checkpoint = step, None

    def checkpoint_to_roll_back_to(self, finding: Finding) -> int:
        """Return the step of the last good checkpoint.

        Raises:
            GuardStop: there is none yet, or the run has gone back too often.
        """
        if self._state.num_roll_backs >= MAX_ROLL_BACKS:
            raise self.stop(finding, f", and the run has gone back {MAX_ROLL_BACKS} times")
        if self._state.good_checkpoint is None:
            raise self.stop(finding, ", and there is no good checkpoint to go back to")
        return self._state.good_checkpoint

    def stop(self, finding: Finding, but: str = "") -> GuardStop:
        """Return the error that ends the run because of a finding."""
        good = self._state.good_checkpoint
        way_out = (
            "start again with"
            if good is None
            else f"go on from the last good checkpoint (--resume RUN_FOLDER --step {good} --allow-change KEY) with"
        )
        keys = "learner.learning_rate, data.train or guards"
        return GuardStop(f"guard: {finding}{but}; {way_out} another value of {keys}")

    @property
    def _is_quiet(self) -> bool:
        """Whether no rule counts that may end in going back or in a stop."""
        return not any(str(rule) in self._state.counts for rule in self._acting)

    @property
    def _acting(self) -> list[GuardConfig]:
        return [rule for rule in self._rules if rule.action in ("roll_back", "stop")]

    def _judge(self, rules: Sequence[GuardConfig], metrics: Metrics) -> list[Finding]:
        """Count the step for each rule whose metric it has; a step without the metric changes nothing."""
        found: list[Finding] = []
        for rule in rules:
            value = metrics.get(rule.metric)
            if value is None:
                continue
            if not rule.is_beyond(value):
                self._state.counts.pop(str(rule), None)
                continue
            count = self._state.counts[str(rule)] = self._state.counts.get(str(rule), 0) + 1
            if count >= rule.steps:
                found.append(Finding(rule=rule, value=value, num_steps=count))
        return found


def check_guards(config: RunConfig) -> None:
    """Check that every guard watches a metric that the run measures, and in time for what it does.

    Raises:
        UserError: one line for each guard that cannot be used.
    """
    faults = [_fault(f"guards.{index}", rule, config) for index, rule in enumerate(config.guards)]
    if any(faults):
        raise UserError(*[fault for fault in faults if fault])


def _fault(key: str, rule: GuardConfig, config: RunConfig) -> str | None:
    if not is_declared(rule.metric, METRICS):
        single = [known for known in METRICS if not known.endswith("*")]
        near = difflib.get_close_matches(rule.metric, single, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/metrics.md lists them"
        return f"{key}.metric={rule.metric!r}: no such metric; {hint}"
    if rule.metric == KL and not config.learner.needs_reference and rule not in DEFAULT_GUARDS:
        return f"{key}.metric={KL!r}: not measured by this recipe; set learner.kl_every=10 or learner.kl_coefficient"
    if _is_of_evaluations(rule.metric):
        return _fault_of_evaluations(key, rule, config)
    if rule.action == "skip" and not is_declared(rule.metric, SKIPPABLE):
        names = sorted(known.removeprefix("learner/") for known in SKIPPABLE if known.startswith("learner/"))
        return (
            f"{key}.action='skip': {rule.metric} is known after the update only; use roll_back or stop, or "
            f"learner/{'|'.join(names)}, or a metric of the sampled groups like reward/accuracy"
        )
    return None


def _fault_of_evaluations(key: str, rule: GuardConfig, config: RunConfig) -> str | None:
    if rule.action not in ("warn", "stop"):
        return f"{key}.action={rule.action!r}: {rule.metric} is measured between two steps; use warn or stop"
    if config.data.evaluation is None:
        return f"{key}.metric={rule.metric!r}: not measured by this recipe; set data.evaluation"
    wanted = next((control for control in CONTROLS if f"accuracy_{control}" in rule.metric), None)
    if wanted is not None and wanted not in config.evaluation.control:
        return f"{key}.metric={rule.metric!r}: not measured by this recipe; set evaluation.control=[{wanted}]"
    return None


def _is_of_evaluations(metric: str) -> bool:
    """Return whether a metric is measured by evaluations, not by steps."""
    return is_declared(metric, OF_EVALUATIONS)
