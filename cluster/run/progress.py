"""How far a run has come: everything that the driver needs to go on after it died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from typing import Annotated, Any

from cluster.batches.ledger import Ledger
from cluster.group import ScoredGroup
from cluster.run.group_statistics import GroupStatistics
from cluster.run.guard_state import GuardState
from cluster.run.heldout_statistics import Evaluation
from cluster.run.quarantine import QuarantinedTask
from curriculum.metric import Metric
from curriculum.seal import OtherVersion


@dataclass(slots=True, kw_only=True)
class StageProgress:
    """One stage of a run: the warm-up or a phase."""

    name: str
    kind: str
    """`sft` or `rl`."""
    steps: int = 0
    """Steps finished."""
    fruitless_steps: int = 0
    """Steps that found no group to train on."""
    wall_seconds: float = 0.0
    """Time spent in the stage, including the held-out evaluation after it and all resumes."""
    heldout: Evaluation | None = None
    """The held-out questions at its end; None until then, and where nothing is held out."""
    groups_sampled: int = 0
    groups_trained: int = 0
    groups_replayed: int = 0
    judge_calls: int = 0
    """Answers that the judge was asked about, in training."""
    judge_saves: int = 0
    """Answers that the rule rejected and the judge accepted, in training."""
    unknown_rewards: int = 0
    """Answers without a known reward, in training."""
    end_reason: str | None = None

    @property
    def replayed_share(self) -> float:
        """Replayed groups / sampled groups."""
        return self.groups_replayed / self.groups_sampled if self.groups_sampled else 0.0

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> StageProgress:
        """Restore what `asdict` gave."""
        others = {name: value for name, value in state.items() if name != "heldout"}
        return cls(**others, heldout=_evaluation(state["heldout"]))

    def count(self, sampled: Sequence[ScoredGroup], num_trained: int, num_skipped: int = 0) -> None:
        """Add the groups of one step; `num_skipped` of them would have been trained on without a guard."""
        self.fruitless_steps += num_trained + num_skipped == 0
        self.groups_sampled += len(sampled)
        self.groups_trained += num_trained
        self.groups_replayed += sum(group.meta.lease.replayed for group in sampled)
        found = GroupStatistics(sampled)
        self.judge_calls += found.num_judge_calls
        self.judge_saves += found.num_judge_saves
        self.unknown_rewards += found.num_unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The step after which a held-out metric was highest."""

    metric: str
    """Key of the metric."""
    step: int
    value: float


@dataclass(slots=True, kw_only=True)
class Progress:
    """Position of the run."""

    step: int = 0
    """Steps finished over all stages."""
    policy_version: Annotated[int, Metric("sync/version", "count")] = 0
    """Weight updates sent to the engines since the base model.

    Grows by 1 in every step that trained; the answers of a step carry the version before it."""
    finished_stages: list[StageProgress] = field(default_factory=list[StageProgress])
    stage: StageProgress | None = None
    """The running stage; None between stages."""
    base_heldout: Evaluation | None = None
    """The held-out questions before the training; None until then, and where nothing is held out."""
    heldout: Evaluation | None = None
    """The latest evaluation, of whatever step."""
    ledger: Ledger = field(default_factory=Ledger)
    """Outcomes of the leases of the finished steps."""
    negatives_masked: Annotated[bool, Metric("learner/negatives_masked")] = False
    """1 while `learner.entropy_control` leaves answers with negative advantage out.

    0 mostly."""

    quarantine: dict[str, QuarantinedTask] = field(default_factory=dict[str, QuarantinedTask])
    """Tasks that are not handed out any more, by id."""
    guards: GuardState = field(default_factory=GuardState)
    """What the guards of the recipe have counted."""
    best: Best | None = None
    """By `checkpoint.keep.best`; None without it, and before the first evaluation behind a step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Progress:
        """Restore what `state_dict` gave.

        Raises:
            OtherVersion: another version of the program wrote it.
        """
        missing = [entry.name for entry in fields(cls) if entry.name not in state]
        if missing:
            raise OtherVersion(f"the checkpoint has no {', '.join(missing)}")
        stage = state["stage"]
        return cls(
            step=state["step"],
            policy_version=state["policy_version"],
            finished_stages=[StageProgress.from_state_dict(entry) for entry in state["finished_stages"]],
            stage=None if stage is None else StageProgress.from_state_dict(stage),
            base_heldout=_evaluation(state["base_heldout"]),
            heldout=_evaluation(state["heldout"]),
            ledger=Ledger(**state["ledger"]),
            negatives_masked=state["negatives_masked"],
            quarantine={task_id: QuarantinedTask(**entry) for task_id, entry in state["quarantine"].items()},
            guards=GuardState(**state["guards"]),
            best=None if state["best"] is None else Best(**state["best"]),
        )

    @property
    def learner_stage(self) -> str:
        """The stage for which the learner's optimizer was created: `sft` or `rl`."""
        stages = [*self.finished_stages, *([self.stage] if self.stage else [])]
        return "rl" if any(stage.kind == "rl" for stage in stages) else "sft"

    @property
    def finished_rl_steps(self) -> int:
        """Training steps of the phases that are over."""
        return sum(stage.steps for stage in self.finished_stages if stage.kind == "rl")

    @property
    def measured(self) -> list[tuple[str, Evaluation | None, Evaluation | None]]:
        """The finished stages by name, each with the held-out questions before and after it."""
        after = [stage.heldout for stage in self.finished_stages]
        names = [stage.name for stage in self.finished_stages]
        return list(zip(names, [self.base_heldout, *after], after, strict=False))

    @property
    def stage_ends(self) -> dict[str, int]:
        """Finished steps of the run at the end of every stage that is over, by its name."""
        steps = accumulate(stage.steps for stage in self.finished_stages)
        return dict(zip((stage.name for stage in self.finished_stages), steps, strict=True))

    @property
    def last_stage(self) -> str:
        """Name of the stage of the last finished step; empty before the first."""
        if self.stage is not None and self.stage.steps:
            return self.stage.name
        return self.finished_stages[-1].name if self.finished_stages else ""


def _evaluation(state: Mapping[str, Any] | None) -> Evaluation | None:
    return None if state is None else Evaluation.from_state_dict(state)
