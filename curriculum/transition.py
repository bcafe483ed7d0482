"""Records between coordinator and driver: the result of a step, the state of the phases, and why a phase ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EndReason(StrEnum):
    """Why a phase ended."""

    STEPS = "steps"
    EPOCHS = "epochs"
    PLATEAU = "plateau"
    MAX_STEPS = "max_steps"
    FRUITLESS = "fruitless"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSummary:
    """What the driver reports when a step is over; accuracies are known from the outcomes."""

    step: int
    """Number of the step in the run."""
    num_trained_groups: int
    """Groups the learner trained on; 0 makes the step fruitless."""

    def __post_init__(self) -> None:
        if self.step < 0 or self.num_trained_groups < 0:
            raise ValueError(f"step={self.step}, num_trained_groups={self.num_trained_groups}: give counts >= 0")


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
    """Tasks of the earlier phases that qualified for the retrospective pool."""
    pool_size: int
    """Tasks drawn into the pool of the next phase."""
    pool_accuracy: float | None
    """Mean accuracy of the pool at the draw; None if it is empty."""
    pool_prompt_tokens: float | None
    """Mean prompt length of the pool in tokens; None if it is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShare:
    """The fresh or the replayed side of a step."""

    num_groups: int
    """Groups leased out for the step, replacements included."""
    num_scored: int
    """Reported groups with at least one known accuracy."""
    accuracy: float | None
    """Mean over the scored groups of their mean accuracy; None without any."""
    prompt_tokens: float | None
    """Mean prompt length in tokens; None without groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumReport:
    """The groups, accuracies and progress of a finished step."""

    step: int
    phase: int
    """Phase the step belonged to."""
    phase_step: int
    """Steps of that phase so far, this one included."""
    epoch: float
    """Passes over the tasks of that phase so far."""
    fresh: GroupShare
    replayed: GroupShare
    replayed_share: float
    """Replayed groups / all groups of the step; 0 for a step without groups."""
    pool_size: int
    """Pool members that are not solved yet."""
    transition: Transition | None
    """Set if the step ended its phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseState:
    """Where the curriculum stands now."""

    phase: int
    """Index of the running phase; of the last one when finished."""
    name: str
    num_phases: int
    num_steps: int
    """Steps of the running phase so far."""
    epoch: float
    """Passes over the phase's tasks so far."""
    num_tasks: int
    """Tasks of the running phase."""
    pool_size: int
    """Pool members that are not solved yet."""
    num_waiting: int
    """Open leases that nobody holds."""
    num_held: int
    """Open leases that a holder works on."""
    finished: bool
    """True after the last phase."""
