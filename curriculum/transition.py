"""Records between coordinator and driver: the result of a step, the state of the phases, and why a phase ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from curriculum.metric import Metric


class EndReason(StrEnum):
    """Why a phase ended."""

    STEPS = "steps"
    EPOCHS = "epochs"
    PLATEAU = "plateau"
    MAX_STEPS = "max_steps"
    FRUITLESS = "fruitless"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One line of the audit log: a phase ended, the next one (or the end of the run) begins."""

    step: int
    """Step after which the phase ended."""
    from_phase: int
    to_phase: int | None
    """None: the curriculum is finished."""
    reason: EndReason
    num_steps: int
    """Steps the ended phase took, fruitless ones included."""
    epochs: float
    """Passes over the tasks of the ended phase."""
    accuracy: float | None
    """Mean accuracy of the fresh groups in the last step; None if nothing was scored."""
    num_candidates: int
    """Tasks of the earlier phases that qualified for replay."""
    pool_size: int
    """Tasks that the next phase begins to replay: all of these, or those drawn into its pool."""
    pool_accuracy: float | None
    """Mean of the latest accuracy of each of them; None without any."""
    pool_prompt_tokens: float | None
    """Their mean prompt length in tokens; None without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumReport:
    """The groups, accuracies and progress of a finished step."""

    phase: Annotated[int, Metric("curriculum/phase", "index")]
    """Phase of the step, from 0."""
    epoch: Annotated[float, Metric("curriculum/epoch", "epochs")]
    """Passes over the phase's own tasks so far: fresh groups that were sampled / tasks.

    Far above 1: more data or fewer steps."""
    pool_size: Annotated[int, Metric("curriculum/pool_size", "tasks")]
    """Tasks to replay that are not solved now.

    Shrinks as replay solves them."""
    replayed_share: Annotated[float, Metric("curriculum/replayed_share", "share")]
    """Replayed groups among those leased out for the step, replacements included; 0 for a step without groups.

    At most `curriculum.retrospective.max_share`."""
    fresh_accuracy: Annotated[float | None, Metric("curriculum/fresh_accuracy", "share")]
    """Mean over the fresh groups with enough known rewards, half of the group, of their mean accuracy.

    Compare with the accuracy of the replayed groups: replayed tasks were hard when they were last measured."""
    fresh_prompt_tokens: Annotated[float | None, Metric("curriculum/fresh_prompt_tokens", "tokens")]
    """Mean prompt length of the fresh groups.

    Within the limits of the phase."""
    replayed_accuracy: Annotated[float | None, Metric("curriculum/replayed_accuracy", "share")]
    """Mean over the replayed groups with enough known rewards, half of the group, of their mean accuracy.

    Rising: what was too hard earlier is being learned now. Close to 1: replay takes tasks that are not hard any more;
    see `curriculum.retrospective.difficulty`."""
    replayed_prompt_tokens: Annotated[float | None, Metric("curriculum/replayed_prompt_tokens", "tokens")]
    """Mean prompt length of the replayed groups.

    Below the fresh one, they come from earlier phases."""
    num_quarantined: Annotated[int, Metric("rollout/quarantined_tasks", "tasks")]
    """Tasks that are not handed out any more because engines or judges failed at them again and again.

    0; `quarantine.jsonl` says which and why. Many: the fault is not theirs, and the run stops."""
    num_tasks: int
    """Tasks of the run, in quarantine or not."""
    transition: Transition | None
    """Set if the step ended its phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseState:
    """Where the curriculum stands now."""

    phase: int
    """Index of the running phase; of the last one when finished."""
    name: str
    num_steps: int
    """Steps of the running phase so far."""
    finished: bool
    """True after the last phase."""
    to_measure: tuple[str, ...]
    """Tasks of which one group is to be sampled and recorded by `record_measured` before the phase goes on."""
