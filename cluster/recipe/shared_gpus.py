"""Who lives together on one GPU (`cluster.share_gpus`), and whose share of its memory is how large.

With E = `rollout.engine.gpu_memory_utilization`, J = `reward.judge.gpu_memory_utilization` where a judge is there, else
0, and R = `RESERVED`:

    the judge                           J, at any time
    the engine                          E - J, and next to nothing while it sleeps
    the learner, while it works         1 - R - J
    the learner, while engines sample   1 - R - E

So the shares add up to 1 - R at any time, whatever E and J are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from reward.config import VllmJudge

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig

RESERVED = 0.05
"""R, share of a GPU that is given to nobody: the CUDA contexts of up to three processes, and the captured graphs of an
engine that sleeps. 4 GiB of 80; not measured."""


def takes_turns(config: RunConfig) -> bool:
    """Return whether engines and learner work in turns, since they share GPUs; a warm-up alone has no engines."""
    return config.cluster.share_gpus == "all" and bool(config.curriculum.phases)


def shares_gpus(config: RunConfig) -> bool:
    """Return whether anybody lives on the GPU of an engine."""
    return config.cluster.share_gpus != "none" and bool(config.curriculum.phases)


def engine_share(config: RunConfig, index: int) -> float:
    """Return the share of its GPUs' memory that engine `index` may take while it is awake."""
    return round(config.rollout.engine.gpu_memory_utilization - _judge_share(config, index), 6)


def working_share(config: RunConfig, rank: int) -> float:
    """Return the share of a shared GPU's memory that learner rank `rank` may take while it works."""
    return round(1 - RESERVED - _judge_share(config, rank), 6)


def resting_share(config: RunConfig) -> float:
    """Return the share of a shared GPU's memory that a learner rank may keep while its engine samples."""
    return round(1 - RESERVED - config.rollout.engine.gpu_memory_utilization, 6)


def check_sharing(config: RunConfig) -> None:
    """Check that the parts that are to share GPUs can.

    Raises:
        ValueError: they cannot; the first reason: key, value, way out.
    """
    for fault in _faults(config):
        raise ValueError(fault)


def _judge_share(config: RunConfig, index: int) -> float:
    judge = config.reward.judge
    if not shares_gpus(config) or not isinstance(judge, VllmJudge) or index >= judge.num_replicas:
        return 0.0
    return judge.gpu_memory_utilization


def _faults(config: RunConfig) -> Iterator[str]:
    shared, rollout, judge = config.cluster.share_gpus, config.rollout, config.reward.judge
    if shared == "none":
        return
    key = f"cluster.share_gpus={shared}"
    if rollout.engine.tensor_parallel_size > 1:
        yield (
            f"rollout.engine.tensor_parallel_size={rollout.engine.tensor_parallel_size}: with {key} an engine has one "
            "GPU; set it to 1, or cluster.share_gpus=none"
        )
    if rollout.engine.gpu_memory_utilization > 1 - RESERVED:
        yield (
            f"rollout.engine.gpu_memory_utilization={rollout.engine.gpu_memory_utilization:g}: with {key} {RESERVED:g} "
            f"of a GPU goes to the contexts of its processes; lower it to {1 - RESERVED:g} or less"
        )
    if isinstance(judge, VllmJudge):
        yield from _judge_faults(config, judge, key)
    elif shared == "judge":
        yield f"{key}: there is no judge with a model of its own; set reward.judge.type=vllm, or share_gpus=none"
    if shared == "all":
        yield from _turn_faults(config, key)


def _judge_faults(config: RunConfig, judge: VllmJudge, key: str) -> Iterator[str]:
    total, num_engines = config.rollout.engine.gpu_memory_utilization, config.rollout.num_actors
    if judge.num_gpus > 1:
        yield (
            f"reward.judge.num_gpus={judge.num_gpus:g}: with {key} a judge has a part of one GPU; "
            "set it to 1, or cluster.share_gpus=none"
        )
    if judge.num_replicas > num_engines:
        yield (
            f"reward.judge.num_replicas={judge.num_replicas}: with {key} each is beside an engine, and "
            f"rollout.num_actors={num_engines}; lower it to {num_engines}"
        )
    if judge.gpu_memory_utilization >= total:
        yield (
            f"reward.judge.gpu_memory_utilization={judge.gpu_memory_utilization:g}: with {key} it is taken out of "
            f"rollout.engine.gpu_memory_utilization={total:g}, which leaves the engine nothing; lower it, for a judge "
            "of 1.5B on 80 GB to 0.1"
        )


def _turn_faults(config: RunConfig, key: str) -> Iterator[str]:
    rollout, learner = config.rollout, config.learner
    if takes_turns(config) and learner.num_ranks != rollout.num_actors:
        yield (
            f"learner.num_ranks={learner.num_ranks}: with {key} there is one rank on the GPU of each engine, and "
            f"rollout.num_actors={rollout.num_actors}; make them equal"
        )
    if learner.slices > 1:
        yield (
            f"learner.slices={learner.slices}: would train on the first slices while engines sample the rest, but with "
            f"{key} they work in turns; set learner.slices=1"
        )
    if rollout.max_policy_lag:
        yield (
            f"rollout.max_policy_lag={rollout.max_policy_lag}: would sample while the learner works, but with {key} "
            "they work in turns; set rollout.max_policy_lag=0"
        )
    if rollout.sync.transport == "collective":
        yield (
            f"rollout.sync.transport=collective: NCCL takes no two processes on one GPU, which {key} wants; "
            "set it to auto or host_memory"
        )
