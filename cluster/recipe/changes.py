"""What a resumed run may change: every key of the recipe has a class, and a change is refused, allowed or recorded."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from cluster.recipe.config import RunConfig
from curriculum.config import dotted
from curriculum.errors import UserError


class KeyClass(StrEnum):
    """What happens when a run is resumed with another value of a key."""

    FREE = "free"
    """It goes on, with the same numbers; sums over devices may be rounded in another order."""
    ON_REQUEST = "on request"
    """It goes on if `--allow-change` names the key: from here on it is another experiment."""
    NEVER = "no"
    """Its checkpoints hold nothing that would fit the new value."""


_FREE = """
name model.path data.train data.sft data.evaluation curriculum.after_fruitless rollout.num_actors
rollout.engine.tensor_parallel_size rollout.engine.gpu_memory_utilization rollout.engine.cpu_kv_cache_bytes
rollout.engine.max_num_seqs rollout.engine.max_num_batched_tokens rollout.engine.enforce_eager
rollout.sync.timeout_s rollout.sync.transport rollout.sync.probe_every rollout.sync.delta
reward.judge.gpu_memory_utilization reward.judge.cpu_kv_cache_bytes reward.judge.max_concurrency reward.judge.num_gpus
reward.judge.num_replicas reward.judge.timeout_s reward.judge.base_url reward.judge.api_key_env reward.max_outage_s
learner.num_ranks learner.slices learner.max_tokens_per_microbatch learner.sequence_parallel
learner.ranks_per_copy learner.gradient_checkpointing learner.offload learner.attention checkpoint.every_steps
checkpoint.keep.last checkpoint.keep.stages checkpoint.keep.best checkpoint.storage evaluation.every_steps
evaluation.num_samples evaluation.control cluster.address cluster.share_gpus
cluster.dashboard_port cluster.object_store_bytes cluster.max_actor_restarts cluster.startup_timeout_s
cluster.max_run_restarts cluster.notice_s cluster.standstill_s cluster.orphan_s tracking.wandb
"""
_ON_REQUEST = """
device model.trust_remote_code data.sft.type data.sft.items_per_length data.sft.lengths data.sft.num_items
data.evaluation.type data.evaluation.items_per_length data.evaluation.lengths
sft.learning_rate sft.warmup_steps sft.schedule sft.epochs sft.batch_size sft.learning_rate_floor
curriculum.phases[].name curriculum.phases[].end.type curriculum.phases[].end.steps curriculum.phases[].end.epochs
curriculum.phases[].end.of curriculum.phases[].end.max_steps curriculum.phases[].end.patience
curriculum.phases[].max_response_tokens curriculum.retrospective.selection curriculum.retrospective.difficulty
curriculum.retrospective.max_share curriculum.max_sampling_rounds curriculum.max_fruitless_steps
groups_per_batch rollout.engine.dtype rollout.group_size rollout.temperature rollout.top_p rollout.max_response_tokens
rollout.deadline_s rollout.max_policy_lag
reward.rules reward.kinds reward.thinking reward.thinking_tags reward.judge.type reward.judge.model
reward.judge.max_tokens reward.judge.max_model_len reward.overlong.max_tokens reward.overlong.cache_tokens
learner.learning_rate learner.warmup_steps learner.schedule learner.schedule_over learner.betas learner.weight_decay
learner.grad_clip
learner.algorithm.type learner.algorithm.clip learner.algorithm.clip_low learner.algorithm.clip_high
learner.algorithm.constant_tokens learner.algorithm.dual_clip learner.algorithm.token_mean learner.mask_truncated
learner.advantage_scale learner.kl_coefficient learner.kl_estimator learner.kl_every
learner.entropy_coefficient learner.importance.cap learner.importance.beyond learner.importance.max_answer_ratio
learner.entropy_control.high learner.entropy_control.low learner.mini_batches
reward.judge.template_arguments reward.judge.request_fields
guards[].metric guards[].above guards[].below guards[].steps guards[].action
"""
_NEVER = """
seed data.train.type data.train.items_per_length data.train.lengths data.over_long data.unpayable
data.columns data.prompt data.markers.context data.markers.question
curriculum.phases[].max_prompt_tokens curriculum.balance learner.dtype model.yarn.factor model.yarn.original_max_tokens
"""
KEY_CLASSES: Final[Mapping[str, KeyClass]] = {
    key: key_class
    for key_class, keys in ((KeyClass.FREE, _FREE), (KeyClass.ON_REQUEST, _ON_REQUEST), (KeyClass.NEVER, _NEVER))
    for key in keys.split()
}
"""Every key, `[]` for a position in a list. Whoever adds a key to the recipe decides here: free is what leaves the
groups, the loss and the updates of a run as they are. A path is free; what lies there is compared by its content."""
MAX_LISTED = 5
"""Keys that one line of an error lists."""
_CONTENT: Final = frozenset({"data.train", "data.sft", "data.evaluation", "model.path"})
"""Keys whose files may also differ where they are named: `--allow-change` is for their content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A key whose value is not that of the run."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def changes(old: RunConfig, new: RunConfig) -> list[Change]:
    """Return what differs between two recipes, sorted by key; a key that one of them lacks is None there."""
    left, right = dotted(old.model_dump(mode="json")), dotted(new.model_dump(mode="json"))
    keys = sorted(left.keys() | right.keys())
    return [Change(key=key, old=left.get(key), new=right.get(key)) for key in keys if left.get(key) != right.get(key)]


def class_of(key: str) -> KeyClass:
    """Return the class of a dotted key; a section has the strictest class of its keys."""
    name = re.sub(r"\.\d+(?=\.|$)", "[]", key)
    while name:
        if name in KEY_CLASSES:
            return KEY_CLASSES[name]
        inside = {entry for known, entry in KEY_CLASSES.items() if known.startswith((f"{name}.", f"{name}["))}
        if inside:
            return max(inside, key=list(KeyClass).index)
        name = name.rpartition(".")[0]
    raise KeyError(f"{key} has no class in cluster/recipe/changes.py")


def check_changes(old: RunConfig, new: RunConfig, *, allowed: Collection[str], run: str) -> None:
    """Check that a run may go on with another recipe.

    Args:
        old: the recipe of the run.
        new: the recipe that it is to go on with.
        allowed: keys and sections that the user allows to change.
        run: how the run was named, for messages.

    Raises:
        UserError: a key that must not change within a run differs, or one that may on request only; an allowed key is
            none of a recipe.
    """
    found = changes(old, new)
    known = [*dotted(old.model_dump(mode="json")), *dotted(new.model_dump(mode="json")), *_CONTENT]
    unknown = [key for key in allowed if not any(_covers(key, entry) for entry in known)]
    refused = [change for change in found if class_of(change.key) is KeyClass.NEVER]
    asked = [
        change
        for change in found
        if class_of(change.key) is KeyClass.ON_REQUEST and not any(_covers(key, change.key) for key in allowed)
    ]
    faults = [f"--allow-change {key}: no key of the recipe" for key in unknown]
    if refused:
        faults.append(
            f"--resume {run}: cannot change within a run: {_listed(refused)}; leave it as it was, or start a new run "
            "with --run-dir"
        )
    if asked:
        options = " ".join(f"--allow-change {change.key}" for change in asked[:MAX_LISTED])
        faults.append(
            f"--resume {run}: the recipe differs from that of the run in {_listed(asked)}; this changes its numbers: "
            f"add {options} to go on with the new values, or leave them out to go on with the old ones"
        )
    if new.learner.needs_reference and not old.learner.needs_reference:
        faults.append(
            f"--resume {run}: learner.kl_coefficient and learner.kl_every were 0, so the run has kept no reference "
            "policy to compare with; leave them 0, or start a new run with --run-dir"
        )
    if faults:
        raise UserError(*faults)


def allowed_keys(named: Collection[str]) -> frozenset[str]:
    """Return the keys and sections that `--allow-change` names, with every key in them that names files."""
    return frozenset(named) | {key for key in _CONTENT if any(_covers(section, key) for section in named)}


def _covers(key: str, changed: str) -> bool:
    """Return whether an allowed key is the changed one or a section that holds it."""
    return changed == key or changed.startswith(f"{key}.")


def _listed(found: Sequence[Change]) -> str:
    more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
    return ", ".join(str(change) for change in found[:MAX_LISTED]) + more


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
