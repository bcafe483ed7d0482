"""Settings that cannot do what they say: refused where the run would differ from its recipe, told where it would not.

A falling learning rate that cannot fall, a penalty that no answer can earn: such a run is not what its recipe says, so
it is refused. A setting that is left over, or that acts in some phases only, is told in one line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import ceil, floor

from cluster.recipe.config import DEFAULT_GUARDS, RunConfig
from cluster.recipe.phase_settings import expected_steps, sampling
from cluster.recipe.shared_gpus import shares_gpus, takes_turns
from curriculum.config import CurriculumConfig, FixedEpochs, Markers, Plateau
from curriculum.dataset import ALWAYS_READ
from curriculum.errors import UserError, shortened
from curriculum.layout import DEMONSTRATION_LAYOUTS, question_layouts
from curriculum.phases import PLATEAU_WINDOW
from learner.config import CispoConfig, GspoConfig, LearnerConfig
from reward.config import RuleSet, VllmJudge


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One line about a setting."""

    text: str
    is_fault: bool = False


def check_effects(config: RunConfig) -> list[str]:
    """Return one line about each setting that does nothing, or nothing in some phase.

    Raises:
        UserError: a setting cannot do what the recipe wants of it; one line for each: key, value, way out.
    """
    looks = (
        _data, _schedule, _warm_up, _overlong, _rules, _plateaus, _replay, _held_out, _sampling_rounds, _ratios, _kl,
        _slices, _attention, _shared_gpus, _guards,
    )  # fmt: skip
    found = [finding for look in looks for finding in look(config)]
    faults = [finding.text for finding in found if finding.is_fault]
    if faults:
        raise UserError(*faults)
    return [finding.text for finding in found]


def notes_on_data(config: RunConfig, sources: Collection[str], num_batches: int) -> list[str]:
    """Return one line about each setting that does nothing with the data that was found.

    Args:
        config: the recipe.
        sources: data sources of all questions.
        num_batches: updates of the warm-up SFT.
    """
    notes: list[str] = []
    unknown = [name for name in config.reward.kinds if name not in sources]
    if unknown and sources:
        names = shortened(", ".join(sorted(sources)), 200)
        notes.append(f"reward.kinds.{shortened(unknown[0], 80)}: no question is of this data source; there are {names}")
    if 0 < num_batches < config.sft.warmup_steps:
        notes.append(
            f"sft.warmup_steps={config.sft.warmup_steps}: the learning rate does not reach its peak in {num_batches} "
            "steps; lower it"
        )
    return notes


def _schedule(config: RunConfig) -> Iterator[_Finding]:
    learner, sft, phases = config.learner, config.sft, config.curriculum.phases
    by_epochs = [phase.name for phase in phases if isinstance(phase.end, FixedEpochs)]
    if learner.schedule != "constant" and by_epochs:
        yield _Finding(
            text=f"learner.schedule={learner.schedule}: falls over a number of steps, but {_names(by_epochs)} ends by "
            "epochs, whose steps are not known before; use end={type: steps, steps: N}, or learner.schedule=constant",
            is_fault=True,
        )
    if learner.schedule == "constant" and not learner.warmup_steps and learner.schedule_over == "run":
        yield _Finding(text="learner.schedule_over=run: does nothing with schedule=constant and without warmup_steps")
    if sft.schedule == "constant" and sft.learning_rate_floor:
        yield _Finding(text=f"sft.learning_rate_floor={sft.learning_rate_floor:g}: does nothing with schedule=constant")


def _warm_up(config: RunConfig) -> Iterator[_Finding]:
    learner, phases = config.learner, config.curriculum.phases
    steps = {phase.name: expected_steps(phase) for phase in phases}
    if learner.schedule_over == "run":
        known = [number for number in steps.values() if number is not None]
        steps = {"the run": sum(known) if phases and len(known) == len(phases) else None}
    short = [f"{name} ({number} steps)" for name, number in steps.items() if number and number < learner.warmup_steps]
    if short:
        way_out = "" if learner.schedule_over == "run" else ", or set learner.schedule_over=run"
        yield _Finding(
            text=f"learner.warmup_steps={learner.warmup_steps}: the learning rate does not reach its peak in "
            f"{_names(short)}; lower it{way_out}"
        )


def _overlong(config: RunConfig) -> Iterator[_Finding]:
    """Compare where the penalty starts with the answers that each phase allows."""
    overlong, phases = config.reward.overlong, config.curriculum.phases
    if overlong is None or not phases:
        return
    limits = {phase.name: sampling(config, phase).max_response_tokens for phase in phases}
    starts = {name: (overlong.max_tokens or limit) - overlong.cache_tokens for name, limit in limits.items()}
    never = [name for name, limit in limits.items() if starts[name] >= limit]
    always = [name for name, start in starts.items() if start <= 0]
    if never:
        where = _names(never)
        yield _Finding(
            text=f"reward.overlong: no answer of {where} can be too long: the penalty starts behind "
            f"{starts[never[0]]} tokens, the limit is {max(limits[name] for name in never)}; leave max_tokens out, "
            "which then follows the limit, or raise cache_tokens",
            is_fault=len(never) == len(phases),
        )
    if always:
        yield _Finding(
            text=f"reward.overlong.cache_tokens={overlong.cache_tokens}: every answer of {_names(always)} is punished, "
            f"since max_tokens, or else the response limit, is {min(limits[name] for name in always)}; lower it",
            is_fault=len(always) == len(phases) or any(starts[name] < 0 for name in always),
        )


def _rules(config: RunConfig) -> Iterator[_Finding]:
    if config.reward.rules is RuleSet.RELEASED and config.curriculum.phases:
        yield _Finding(
            text="reward.rules=released: they pay for junk, so no run trains on them; use reward.rules=strict, and "
            "qwenlong score to compare with published numbers",
            is_fault=True,
        )


def _plateaus(config: RunConfig) -> Iterator[_Finding]:
    for index, phase in enumerate(config.curriculum.phases):
        end = phase.end
        if isinstance(end, Plateau) and PLATEAU_WINDOW + end.patience >= end.max_steps:
            yield _Finding(
                text=f"curriculum.phases.{index}.end.patience={end.patience}: a plateau can be seen after "
                f"{PLATEAU_WINDOW + end.patience} steps at the earliest, but max_steps={end.max_steps} ends the phase; "
                "raise max_steps, lower patience, or use type=steps",
                is_fault=True,
            )


def _replay(config: RunConfig) -> Iterator[_Finding]:
    retrospective, groups = config.curriculum.retrospective, config.groups_per_batch
    if retrospective is None or len(config.curriculum.phases) < 2 or not retrospective.max_share:
        return
    share = retrospective.max_share
    if floor(share * groups + 1e-9) == 0:  # as the coordinator counts its places
        yield _Finding(
            text=f"curriculum.retrospective.max_share={share:g}: of groups_per_batch={groups} this is less than one "
            f"group, so nothing is replayed; raise groups_per_batch to {ceil(1 / share - 1e-9)} or max_share to "
            f"{ceil(1000 / groups) / 1000:g}, or set curriculum.retrospective=null"
        )


def _sampling_rounds(config: RunConfig) -> Iterator[_Finding]:
    rounds, algorithm = config.curriculum.max_sampling_rounds, config.learner.algorithm
    if not algorithm.dynamic_sampling and rounds != CurriculumConfig.model_fields["max_sampling_rounds"].default:
        yield _Finding(
            text=f"curriculum.max_sampling_rounds={rounds}: does nothing with learner.algorithm.type={algorithm.type}, "
            "which replaces no groups"
        )


def _ratios(config: RunConfig) -> Iterator[_Finding]:
    """With one update per batch every ratio is 1, so that what bounds ratios does nothing."""
    algorithm = config.learner.algorithm
    if config.learner.mini_batches > 1:
        return
    if isinstance(algorithm, GspoConfig | CispoConfig):
        same = "grpo" if isinstance(algorithm, GspoConfig) else "dapo"
        yield _Finding(
            text=f"learner.algorithm.type={algorithm.type}: with mini_batches=1 every ratio is 1, as with {same}; "
            "raise learner.mini_batches"
        )
    elif algorithm.dual_clip is not None:
        yield _Finding(
            text=f"learner.algorithm.dual_clip={algorithm.dual_clip:g}: does nothing with mini_batches=1, where every "
            "ratio is 1"
        )


def _kl(config: RunConfig) -> Iterator[_Finding]:
    learner = config.learner
    if learner.kl_coefficient and learner.kl_every:
        yield _Finding(
            text=f"learner.kl_every={learner.kl_every}: does nothing with kl_coefficient={learner.kl_coefficient:g}, "
            "which measures the KL in every step"
        )
    if not learner.kl_coefficient and learner.kl_estimator != LearnerConfig.model_fields["kl_estimator"].default:
        yield _Finding(text=f"learner.kl_estimator={learner.kl_estimator}: does nothing with kl_coefficient=0")


def _slices(config: RunConfig) -> Iterator[_Finding]:
    groups, slices = config.groups_per_batch, config.learner.slices
    size = ceil(groups / slices)
    if ceil(groups / size) != slices:
        yield _Finding(
            text=f"learner.slices={slices}: groups_per_batch={groups} comes in {ceil(groups / size)} slices of "
            f"{size} groups"
        )


def _shared_gpus(config: RunConfig) -> Iterator[_Finding]:
    shared, judge = config.cluster.share_gpus, config.reward.judge
    if shared == "none":
        return
    if not shares_gpus(config):
        yield _Finding(text=f"cluster.share_gpus={shared}: does nothing in a warm-up alone, which has no engines")
    elif config.device == "cpu" and not takes_turns(config):
        yield _Finding(text=f"cluster.share_gpus={shared}: does nothing with device=cpu")
    elif isinstance(judge, VllmJudge) and judge.num_gpus != VllmJudge().num_gpus:
        yield _Finding(text=f"reward.judge.num_gpus={judge.num_gpus:g}: does nothing with cluster.share_gpus={shared}")


def _attention(config: RunConfig) -> Iterator[_Finding]:
    learner, device = config.learner, config.device
    if learner.attention == "auto" or (device == "cuda" and learner.dtype == "bf16"):
        return
    reason = f"device={device}" if device != "cuda" else f"learner.dtype={learner.dtype}"
    yield _Finding(
        text=f"learner.attention={learner.attention}: not with {reason}, only for bf16 on a GPU; set "
        "learner.attention=auto",
        is_fault=True,
    )


def _data(config: RunConfig) -> Iterator[_Finding]:
    data, phases = config.data, config.curriculum.phases
    if data.prompt != "keep" and data.markers != Markers():
        yield _Finding(text="data.markers: read with data.prompt=keep only; set that, or leave them out", is_fault=True)
    if data.sft is not None and not config.sft.epochs:
        yield _Finding(text="data.sft: not read, since sft.epochs=0")
    for key in ("train", "evaluation"):
        if getattr(data, key) is not None and not phases:
            yield _Finding(text=f"data.{key}: not read, since curriculum.phases is empty")
    idle = [f"data.columns.{name}" for name in data.columns if name not in _columns_read(config)]
    if idle:
        yield _Finding(text=f"{_names(idle)}: read by no source of this recipe")


def _held_out(config: RunConfig) -> Iterator[_Finding]:
    fields = type(config.evaluation).model_fields
    asked = [key for key, field in fields.items() if getattr(config.evaluation, key) != field.default]
    if asked and config.data.evaluation is None:
        keys = _names([f"evaluation.{key}" for key in asked])
        yield _Finding(text=f"{keys}: does nothing, since data.evaluation is null")


def _guards(config: RunConfig) -> Iterator[_Finding]:
    missing = {"sft/": not config.sft.epochs, "": not config.curriculum.phases}
    why = {"sft/": "sft.epochs is 0", "": "curriculum.phases is empty"}
    for index, rule in enumerate(config.guards):
        stage = "sft/" if rule.metric.startswith("sft/") else ""
        if missing[stage] and rule not in DEFAULT_GUARDS and not rule.metric.startswith("time/"):
            yield _Finding(
                text=f"guards.{index}.metric={rule.metric!r}: not measured by this recipe, since {why[stage]}; remove "
                "the guard",
                is_fault=True,
            )


def _columns_read(config: RunConfig) -> frozenset[str]:
    """Return our names of all columns that the sources of the recipe may have; those that are generated have none."""
    data, phases = config.data, config.curriculum.phases
    questions = question_layouts(data) if phases else ()
    by_source = (
        (data.train, questions),
        (data.evaluation, questions),
        (data.sft, DEMONSTRATION_LAYOUTS if config.sft.epochs else ()),
    )
    layouts = [layout for source, found in by_source if isinstance(source, str | tuple) for layout in found]
    named = {name for layout in layouts for names in layout.columns for name in names}
    return frozenset(named | ALWAYS_READ if layouts else ())


def _names(names: list[str]) -> str:
    return ", ".join(names)
