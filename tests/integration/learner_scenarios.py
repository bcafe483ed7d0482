"""What the ranks do in the tests of the learner, and the process that runs them.

It reads `[SCENARIO, MODEL, OUT, RANKS, PORT]` from its standard input. Every rank is a fork of it, fresh except for the
imports, which are made once. A scenario writes its findings to OUT as `SCENARIO.RANKS.pt`, for many checks.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curriculum.errors import UserError
from curriculum.shared_folder import SharedFolder
from curriculum.task import Demonstration
from learner.advantages import group_advantages
from learner.batch.microbatch import TrainingGroup
from learner.batch.packing import groups_of, plan_slice
from learner.config import CispoConfig, DapoConfig, GrpoConfig, GspoConfig, ImportanceConfig, LearnerConfig
from learner.engine import MAX_NONFINITE_UPDATES, LearnerEngine, Stage
from learner.forward.running_batch import mini_batch_parts
from learner.weights.sender import WeightSender
from learner.zero3 import config as zero3_config
from learner.zero3.policy import load_policy

VOCAB = 1700
LEARNING_RATE = 1e-3
ROOMY, TIGHT, WHOLE_ROWS = 4096, 70, 110


def config(num_ranks: int = 1, **settings) -> LearnerConfig:
    """The learner of the scenarios; the gradient clip is low enough to act, the weight decay is not the warm-up's."""
    base = {"max_tokens_per_microbatch": ROOMY, "grad_clip": 0.5, "betas": (0.9, 0.98), "weight_decay": 0.05}
    return LearnerConfig(num_ranks=num_ranks, **{**base, **settings})


def demonstrations() -> list[Demonstration]:
    """Five demonstrations of different lengths."""
    rng = np.random.default_rng(1)
    return [
        Demonstration(
            demonstration_id=str(i),
            prompt_ids=rng.integers(VOCAB, size=3 + 7 * i, dtype=np.int32),
            response_ids=rng.integers(VOCAB, size=1 + 2 * i, dtype=np.int32),
        )
        for i in range(5)
    ]


def groups(seed: int = 0) -> list[TrainingGroup]:
    """Seven ragged groups, one of them with a single-token prompt."""
    rng = np.random.default_rng(seed)
    batch = []
    for i in range(7):
        lengths = rng.integers(1, 14, size=rng.integers(2, 6))
        advantages = group_advantages([float(r) for r in rng.permutation(len(lengths))])
        batch.append(
            TrainingGroup(
                prompt_ids=rng.integers(VOCAB, size=1 + 6 * i, dtype=np.int32),
                response_ids=tuple(rng.integers(VOCAB, size=n, dtype=np.int32) for n in lengths),
                rollout_logprobs=tuple(np.full(n, -2.0, np.float32) for n in lengths),
                advantages=tuple(a for a in advantages if a is not None),
                temperature=0.8,
            )
        )
    return batch


def make_engine(learner: LearnerConfig, model: str, rank: int) -> LearnerEngine:
    """An engine at the start of the warm-up."""
    return LearnerEngine(learner, model, rank=rank, world_size=learner.num_ranks, seed=0)


def rl_step(engine: LearnerEngine, learner: LearnerConfig, batch: list[TrainingGroup], rank: int, *, size: int = 7):
    """One training step in `learner.slices` slices."""
    accumulate(engine, learner, batch, rank, size=size)
    return engine.update(learning_rate=LEARNING_RATE)


def accumulate(engine: LearnerEngine, learner: LearnerConfig, batch: list[TrainingGroup], rank: int, *, size: int):
    """Hand over a batch in `learner.slices` slices; the rank is handed its own groups only."""
    for first, last in pairwise(len(batch) * i // learner.slices for i in range(learner.slices + 1)):
        for part in mini_batch_parts(first, last - first, batch_groups=size, num_mini_batches=learner.mini_batches):
            own = [batch[i] for i in part.groups]
            plan = plan_slice(
                own,
                num_ranks=learner.num_data_ranks,
                max_tokens=learner.max_tokens_per_microbatch,
            )
            mine = groups_of(plan, rank // learner.sequence_parallel)
            engine.accumulate(plan, {index: own[index] for index in mine}, part)


def two_stages(learner: LearnerConfig, model: str, rank: int) -> tuple[LearnerEngine, dict]:
    """Two updates of the warm-up, then one training step; reports and weights after each stage."""
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.SFT)
    sft = [engine.sft_step(demonstrations(), learning_rate=LEARNING_RATE) for _ in range(2)]
    after_sft = dict(engine.gather_weights())
    engine.start_stage(Stage.RL)
    rl = rl_step(engine, learner, groups(), rank)
    return engine, {"sft": sft, "rl": rl, "after_sft": after_sft, "after_rl": dict(engine.gather_weights())}


def save(engine: LearnerEngine, directory: Path) -> None:
    """Save into a new folder that one rank makes, as the driver does."""
    directory.mkdir(exist_ok=True)
    engine.save(at(directory))


def at(directory: Path) -> SharedFolder:
    """A folder of this machine."""
    return SharedFolder(str(directory))


def parity(model: str, out: Path, rank: int, num_ranks: int) -> dict:
    """The same two stages under every setting that must not change the numbers, then save, go on, and export."""
    grpo = {"algorithm": GrpoConfig(), "mini_batches": 1}
    dapo = {"algorithm": DapoConfig(), "mini_batches": 3}
    settings_of = {
        "grpo": grpo,
        "dapo": dapo,
        "tight": {**dapo, "max_tokens_per_microbatch": TIGHT},
        "checkpointing": {**dapo, "gradient_checkpointing": True},
        "tight_checkpointing": {**dapo, "max_tokens_per_microbatch": TIGHT, "gradient_checkpointing": True},
        "grpo_sliced": {**grpo, "slices": 3},
        "sliced": {**dapo, "slices": 7},
        "sliced_offloaded": {**dapo, "slices": 2, "offload": ("optimizer",)},
    }
    if num_ranks == 2:
        settings_of["sequence"] = {**dapo, "sequence_parallel": 2}
        settings_of["tight_sequence"] = {**dapo, "sequence_parallel": 2, "max_tokens_per_microbatch": TIGHT}
    found = {}
    for name, settings in settings_of.items():
        learner = config(num_ranks, **settings)
        engine, found[name] = two_stages(learner, model, rank)
        if name != "dapo":
            continue
        with _no_room(rank == num_ranks - 1):
            found["refused"] = _error(lambda: save(engine, out / f"checkpoint_{num_ranks}"))  # noqa: B023
        save(engine, out / f"checkpoint_{num_ranks}")
        found["random"] = torch.rand(3)
        with _no_room(rank == 0):
            found["not_exported"] = _error(lambda: engine.export(out / f"saved_{num_ranks}"))  # noqa: B023
        engine.export(out / f"saved_{num_ranks}")
        rl_step(engine, learner, groups(seed=1), rank)
        found["continued"] = dict(engine.gather_weights())
        engine.export(out / f"export_{num_ranks}")
    return found


ALGORITHMS: dict[str, Any] = {
    "gspo": GspoConfig(clip_low=0.05, clip_high=0.05),
    "cispo": CispoConfig(clip_high=0.1),
    "dual_clip": GrpoConfig(dual_clip=1.1),
    "batch_mean": DapoConfig(token_mean="batch"),
}
"""With clips that the second of two updates runs into."""
SHORT = {"size": 9, "num_groups": 5}


def algorithms(model: str, out: Path, rank: int, num_ranks: int) -> dict:
    """One training step of two updates with every algorithm; on rows in parts, in slices, shared, cut short."""
    tight = {"max_tokens_per_microbatch": TIGHT}
    settings_of = {
        **{name: {"algorithm": algorithm} for name, algorithm in ALGORITHMS.items()},
        "gspo tight": {"algorithm": ALGORITHMS["gspo"], "slices": 3, **tight},
        "gspo shared": {"algorithm": ALGORITHMS["gspo"], "sequence_parallel": 2, **tight},
        "gspo checkpointing": {"algorithm": ALGORITHMS["gspo"], "gradient_checkpointing": True},
        "batch_mean tight": {"algorithm": ALGORITHMS["batch_mean"], "slices": 4, **tight},
        "batch_mean shared": {"algorithm": ALGORITHMS["batch_mean"], "sequence_parallel": 2, **tight},
        "batch_mean short": {"algorithm": ALGORITHMS["batch_mean"]},
        "batch_mean short offloaded": {"algorithm": ALGORITHMS["batch_mean"], "offload": ("optimizer",)},
    }
    found = {}
    for name, settings in settings_of.items():
        learner = config(num_ranks, mini_batches=2, **settings)
        engine = make_engine(learner, model, rank)
        engine.start_stage(Stage.RL)
        size, num_groups = SHORT.values() if "short" in name else (7, 7)
        report = rl_step(engine, learner, groups()[:num_groups], rank, size=size)
        found[name] = (report, dict(engine.gather_weights()))
    return found


def resume(model: str, out: Path, rank: int, num_ranks: int) -> dict:
    """Go on from the checkpoint of `parity` in a process of its own."""
    learner = config(num_ranks, algorithm=DapoConfig(), mini_batches=3)
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.SFT)
    found = {"wrong_stage": _error(lambda: engine.load(at(out / f"checkpoint_{num_ranks}")))}
    engine.start_stage(Stage.RL)
    found["incomplete"] = _error(lambda: engine.load(at(out / "nothing_here")))
    engine.load(at(out / f"checkpoint_{num_ranks}"))
    found["random"] = torch.rand(3)
    rl_step(engine, learner, groups(seed=1), rank)
    found["continued"] = dict(engine.gather_weights())
    return found


def reshard(model: str, out: Path, rank: int, num_ranks: int) -> dict:
    """Go on from the checkpoint of two ranks on another number of ranks."""
    learner = config(num_ranks, algorithm=DapoConfig(), mini_batches=3)
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.RL)
    engine.load(at(out / "checkpoint_2"))
    found = {"loaded": dict(engine.gather_weights())}
    rl_step(engine, learner, groups(seed=1), rank)
    found["continued"] = dict(engine.gather_weights())
    return found


def guards(model: str, out: Path, rank: int, num_ranks: int) -> dict:
    """Non-finite updates, the KL against a reference, bf16 and the wrong stage."""
    learner = config(num_ranks)
    engine = make_engine(learner, model, rank)
    found = {"no_stage": _error(lambda: rl_step(engine, learner, groups(), rank))}
    engine.start_stage(Stage.RL)
    before = dict(engine.gather_weights())
    bad = [_with_infinite_advantage(group) for group in groups()]
    found["skipped"] = rl_step(engine, learner, bad, rank)
    after = dict(engine.gather_weights())
    found["unchanged"] = all(torch.equal(before[name], after[name]) for name in before)
    found["bad_updates"] = [_error(lambda: rl_step(engine, learner, bad, rank)) for _ in range(MAX_NONFINITE_UPDATES)]
    found["recovered"] = rl_step(engine, learner, groups(), rank)

    learner = config(num_ranks, algorithm=DapoConfig(), mini_batches=3)
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.RL)
    engine._share_no_prompts()  # what a failed self-check does
    found["dense"] = (rl_step(engine, learner, groups(), rank), dict(engine.gather_weights()))
    save(engine, out / "unshared")
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.RL)
    found["shared"] = (rl_step(engine, learner, groups(), rank), dict(engine.gather_weights()))
    engine.load(at(out / "unshared"))
    found["resumed_unshared"] = rl_step(engine, learner, groups(), rank)
    (out / "unshared" / "state.json").write_text('{"num_steps": 1, "optimizer_step": 3}')
    found["earlier_version"] = _error(lambda: engine.load(at(out / "unshared")))

    for name, settings in {"short": {}, "short_offloaded": {"offload": ("optimizer",)}}.items():
        learner = config(num_ranks, **settings)
        engine = make_engine(learner, model, rank)
        engine.start_stage(Stage.RL)
        found[name] = (rl_step(engine, learner, groups()[:5], rank, size=9), dict(engine.gather_weights()))
    learner = config(num_ranks)
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.RL)
    found["five"] = (rl_step(engine, learner, groups()[:5], rank, size=5), dict(engine.gather_weights()))
    found["nothing"] = _error(lambda: engine.update(learning_rate=LEARNING_RATE))

    learner = config(num_ranks, importance=ImportanceConfig(cap=2.0, max_answer_ratio=1.0001))
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.RL)
    found["answers_left_out"] = rl_step(engine, learner, groups(), rank)

    learner = config(num_ranks, kl_every=2)
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.RL)
    found["kl_every"] = [rl_step(engine, learner, groups(), rank).kl_to_reference for _ in range(3)]

    learner = config(num_ranks, kl_coefficient=0.1)
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.RL, reference_path=model)
    found["kl"] = [rl_step(engine, learner, groups(), rank).kl_to_reference for _ in range(2)]

    learner = config(num_ranks, dtype="bf16", offload=("optimizer",))
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.RL)
    found["bf16"] = rl_step(engine, learner, groups(), rank)
    found["bf16_dtype"] = {weight.dtype for _, weight in engine.gather_weights()}
    save(engine, out / "checkpoint_bf16")
    engine.export(out / "saved_bf16")
    return found


def watched(model: str, out: Path, rank: int, num_ranks: int) -> dict:
    """A batch that is dropped, what is known before an update, a learner that goes back, and weights that are NaN."""
    found: dict[str, Any] = {"dropped": {}, "previews": {}, "back": {}}
    for name, settings in {
        "one": {},
        "three": {"mini_batches": 3},
        "short": {"mini_batches": 3, "slices": 2},
        "offloaded": {"offload": ("optimizer",)},
    }.items():
        learner = config(num_ranks, **settings)
        num_dropped = 4 if name == "short" else 7
        weights = []
        for drops in (False, True):
            engine = make_engine(learner, model, rank)
            engine.start_stage(Stage.RL)
            rl_step(engine, learner, groups(), rank)
            if drops:
                accumulate(engine, learner, groups(seed=5)[:num_dropped], rank, size=7)
                found["previews"][name] = engine.preview()
                engine.drop()
            report = rl_step(engine, learner, groups(seed=1), rank)
            weights.append(dict(engine.gather_weights()))
        found["dropped"][name] = (report, *weights)
    learner = config(num_ranks)
    engine = make_engine(learner, model, rank)
    engine.start_stage(Stage.RL)
    accumulate(engine, learner, groups(), rank, size=7)
    found["preview"] = (engine.preview(), engine.update(learning_rate=LEARNING_RATE))
    save(engine, out / f"good_{num_ranks}")
    for name, between in {"once": 0, "again": 2}.items():
        for _ in range(between):
            rl_step(engine, learner, groups(seed=7), rank)
        engine.start_stage(Stage.RL)
        engine.load(at(out / f"good_{num_ranks}"))
        rl_step(engine, learner, groups(seed=1), rank)
        found["back"][name] = dict(engine.gather_weights())
    accumulate(engine, learner, groups(), rank, size=7)
    engine.update(learning_rate=float("inf"))
    sender = WeightSender(engine.weights, is_root=rank == 0, every_byte=False)
    found["published"] = _error(lambda: sender.publish(9))
    found["nan_export"] = _error(lambda: engine.export(out / "nan"))
    found["nan_updates"] = [_error(lambda: rl_step(engine, learner, groups(), rank)) for _ in range(4)]
    return found


def collectives(model: str, out: Path, rank: int, num_ranks: int) -> dict:
    """How often the ranks talk in a step with one group each, whole and in parts; no weight stays gathered."""
    from torch.profiler import ProfilerActivity, profile

    zero3_config.PERSISTENT_PARAMETER_ELEMENTS = 0
    batch, found = groups()[-2:], {}
    for name, max_tokens in {"whole": ROOMY, "parts": 50}.items():
        learner = config(num_ranks, algorithm=GrpoConfig(), max_tokens_per_microbatch=max_tokens)
        engine = make_engine(learner, model, rank)
        engine.start_stage(Stage.RL)
        for _ in range(3):  # the first two check the shared prompt
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                rl_step(engine, learner, batch, rank, size=2)
        calls = {event.key: event.count for event in profiler.key_averages() if event.key.startswith("c10d::")}
        plan = plan_slice(batch, num_ranks=num_ranks, max_tokens=max_tokens)
        found[name] = {"calls": calls, "rows": [[len(row.batches) for row in own] for own in plan]}
    return found


def copies(model: str, out: Path, rank: int, num_ranks: int) -> dict:
    """Two updates with a copy of the weights in every pair of ranks; a restored checkpoint after a dropped batch."""
    found = {}
    for name, settings in {"plain": {}, "shared": {"sequence_parallel": 2, "max_tokens_per_microbatch": TIGHT}}.items():
        learner = config(num_ranks, algorithm=DapoConfig(), mini_batches=3, ranks_per_copy=2, **settings)
        engine, found[name] = two_stages(learner, model, rank)
    save(engine, out / "copied")
    rl_step(engine, learner, groups(seed=7), rank)
    accumulate(engine, learner, groups(seed=5), rank, size=7)
    found["copied"] = [
        p.ds_secondary_tensor.numel() / (2 * p.ds_tensor.numel())
        for p in engine._policy.parameters()
        if p.ds_secondary_tensor is not None
    ]
    engine.drop()
    engine.load(at(out / "copied"))
    found["restored"] = dict(engine.gather_weights())
    return found


def half(model: str, out: Path, rank: int, num_ranks: int) -> dict:
    """The gradient of a batch of many rows in bf16: of the engine, and summed up over the rows in fp64.

    Every row is back-propagated by itself, by a policy of this process that DeepSpeed does not know.
    """
    from deepspeed.utils import safe_get_full_grad

    found = {}
    batch = [group for seed in range(10) for group in groups(seed)]
    for name, offload in {"device": (), "offloaded": ("optimizer",)}.items():
        learner = config(num_ranks, dtype="bf16", max_tokens_per_microbatch=WHOLE_ROWS, offload=offload)
        engine = make_engine(learner, model, rank)
        engine.start_stage(Stage.RL)
        accumulate(engine, learner, batch, rank, size=len(batch))
        parameters = dict(engine._policy.named_parameters())
        found[name] = {key: safe_get_full_grad(parameter).clone() for key, parameter in parameters.items()}
        engine.drop()
    plan = plan_slice(batch, num_ranks=num_ranks, max_tokens=WHOLE_ROWS)
    rows = engine._rows(plan, dict(enumerate(batch)), num_groups=len(batch))
    found["num_rows"] = len(rows) * num_ranks
    policy = load_policy(model, dtype=torch.bfloat16, trust_remote_code=False)
    exact = {key: torch.zeros_like(weight, dtype=torch.float64) for key, weight in policy.named_parameters()}
    for row in rows:
        policy.zero_grad()
        policy(row, engine._loss(row, None))[0].backward()
        for key, weight in policy.named_parameters():
            exact[key] += weight.grad.double()
    for total in exact.values():
        torch.distributed.all_reduce(total)
    return {**found, "exact": exact}


def _with_infinite_advantage(group: TrainingGroup) -> TrainingGroup:
    return TrainingGroup(
        prompt_ids=group.prompt_ids,
        response_ids=group.response_ids,
        rollout_logprobs=group.rollout_logprobs,
        advantages=(float("inf"), *group.advantages[1:]),
        temperature=group.temperature,
    )


@contextmanager
def _no_room(is_full: bool):
    """A rank that can write no file beyond 1000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if is_full else soft, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def _error(call) -> str:
    try:
        call()
    except (RuntimeError, ValueError, UserError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def run_rank(scenario: str, model: str, out: Path, rank: int, num_ranks: int, port: str) -> None:
    """Run one scenario on one rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    scenarios = (parity, algorithms, resume, reshard, guards, watched, copies, half, collectives)
    run = {run.__name__: run for run in scenarios}[scenario]
    found = run(model, out, rank, num_ranks)
    if rank == 0:
        torch.save(found, out / f"{scenario}.{num_ranks}.pt")
    torch.distributed.destroy_process_group()


def main() -> None:
    """Run the scenarios named on standard input, each rank in a fork of its own, and say how they end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the libraries print
    import deepspeed  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    for line in sys.stdin:
        scenario, model, out, num_ranks, port = json.loads(line)
        ranks = {_fork(scenario, model, Path(out), rank, num_ranks, port) for rank in range(num_ranks)}
        print("failed" if _failed(ranks) else "done", file=answers, flush=True)


def _failed(ranks: set[int]) -> bool:
    """Whether any of them failed, once all have ended; as soon as one has failed, the others are killed."""
    failed = False
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        if status and not failed:
            failed = True
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return failed


def _fork(*arguments) -> int:
    if pid := os.fork():
        return pid
    status = 1
    try:
        run_rank(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
