"""One rank of the ZeRO-3 learner: warm-up, reinforcement learning, weights out, checkpoints.

Every method is collective: all ranks call it in the same order with the same arguments, or their share of them.
Consumes: demonstrations or planned groups.  Waits for: the other ranks, in every call.
Unblocked by: all ranks making the same call.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curriculum.task import Demonstration
from learner import checkpoint
from learner.config import LearnerConfig, OptimizerConfig, SftConfig
from learner.logprobs import TokenScores
from learner.loss import Aggregation, clipped_policy_loss, kl_estimate
from learner.microbatch import ScoredGroup, SftReport, StepReport
from learner.packing import MiniBatchPlan, UpdatePlan, plan_update
from learner.policy import Policy, RowTensors, copy_tokenizer, load_policy
from learner.rows import build_microbatch, demonstration_group
from learner.tally import Tally
from learner.zero3_config import zero3_config, zero3_frozen_config

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

EXPORT_BUCKET_BYTES = 256 << 20
"""Full weights gathered at once when they leave the learner."""


class Stage(StrEnum):
    """What the optimizer is set up for."""

    SFT = "sft"
    RL = "rl"


class NonFiniteUpdateError(RuntimeError):
    """Too many updates in a row had a non-finite gradient."""


class LearnerEngine:
    """A DeepSpeed ZeRO-3 rank around one policy."""

    def __init__(
        self,
        config: LearnerConfig,
        model_path: str,
        *,
        sft: SftConfig | None,
        rank: int,
        world_size: int,
        seed: int,
        on_gpu: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """Join the process group and load the model; call `start_stage` before the first step.

        Args:
            config: the learner's configuration.
            model_path: Hugging Face folder or hub id of the model to start from.
            sft: the warm-up's configuration; None if there is none.
            rank: this rank, 0 to world_size - 1.
            world_size: must equal `config.num_ranks`.
            seed: of the run; each rank derives its own.
            on_gpu: take the GPU of LOCAL_RANK and nccl, else the CPU and gloo.
            trust_remote_code: run model code from the folder or hub.

        MASTER_ADDR and MASTER_PORT (and LOCAL_RANK on a machine with several GPUs) are read from the environment.
        """
        if world_size != config.num_ranks:
            raise ValueError(f"learner.num_ranks={config.num_ranks} but world_size={world_size}; start as many ranks")
        self._config = config
        self._sft = sft
        self._model_path = model_path
        self._on_gpu = on_gpu
        self._trust_remote_code = trust_remote_code
        self._rank = rank
        self._world_size = world_size
        self._stage: Stage | None = None
        self._skipped_in_a_row = 0
        self._device = _join_process_group(rank, world_size, on_gpu)
        torch.manual_seed(seed + rank)
        self._policy = self._load(model_path)
        self._engine = self._trained_engine(self._policy)
        self._reference: DeepSpeedEngine | None = None

    # stages ------------------------------------------------------------------------------------------------------

    def start_stage(self, stage: Stage, *, reference_path: str | None = None) -> None:
        """Begin the warm-up or the reinforcement learning with a fresh optimizer.

        Moments and step count restart, betas and weight decay become those of the stage. Phases of the curriculum
        belong to one stage: between them the optimizer keeps its state.

        Args:
            stage: what comes next.
            reference_path: model that the KL is measured against, if `kl_coefficient` > 0; None for the model that
                the engine was started with.
        """
        optimizer: OptimizerConfig = self._config
        if stage is Stage.SFT:
            if self._sft is None:
                raise ValueError("the run has no sft section; add one or skip the warm-up")
            optimizer = self._sft
        base: torch.optim.Optimizer = self._zero_optimizer.optimizer
        base.state.clear()
        for group in base.param_groups:
            group.update(betas=optimizer.betas, weight_decay=optimizer.weight_decay)
        self._stage = stage
        if stage is Stage.RL and self._config.kl_coefficient > 0:
            self._reference = self._frozen_engine(self._load(reference_path or self._model_path))

    def sft_step(self, demonstrations: Sequence[Demonstration], *, learning_rate: float) -> SftReport:
        """One update on the length-normalised NLL of the responses (paper Eq. 11).

        Args:
            demonstrations: the whole batch, the same on every rank; each rank forwards its share.
            learning_rate: of this update.

        Raises:
            NonFiniteUpdateError: more than `learner.max_nonfinite_updates` updates in a row were skipped.
            ValueError: no demonstrations, or one beyond `learner.max_tokens_per_microbatch`.
        """
        started = time.perf_counter()
        self._expect(Stage.SFT)
        groups = {index: demonstration_group(item) for index, item in enumerate(demonstrations)}
        plan = self._plan([group.shape for group in groups.values()])
        tally = Tally(self._device)
        self._update(self._rows(plan.mini_batches[0], groups), None, tally, learning_rate)
        sums = tally.reduce()
        return SftReport(
            num_demonstrations=len(demonstrations),
            num_response_tokens=sums.num_tokens,
            learning_rate=learning_rate,
            loss=sums.loss,
            token_accuracy=sums.token_accuracy,
            grad_norm=sums.grad_norm,
            seconds=time.perf_counter() - started,
        )

    def train_step(self, plan: UpdatePlan, groups: Mapping[int, ScoredGroup], *, learning_rate: float) -> StepReport:
        """Train on one batch of groups: one optimizer update per mini-batch of the plan.

        With one mini-batch the old log-probabilities are the current ones and every ratio is 1; with more they are
        computed once, before the first update.

        Args:
            plan: `plan_update` over the shapes of the whole batch, the same on every rank.
            groups: at least the groups `plan.groups_of(rank)`, by index in the batch.
            learning_rate: of all updates of the step.

        Raises:
            NonFiniteUpdateError: more than `learner.max_nonfinite_updates` updates in a row were skipped.
        """
        started = time.perf_counter()
        self._expect(Stage.RL)
        batches = [self._rows(mini_batch, groups) for mini_batch in plan.mini_batches]
        tally = Tally(self._device)
        old = [self._old_logprobs(rows, tally) if len(batches) > 1 else None for rows in batches]
        for rows, old_logprobs in zip(batches, old, strict=True):
            self._update(rows, old_logprobs, tally, learning_rate)
        sums = tally.reduce()
        return StepReport(
            num_groups=sum(len(mini_batch.groups) for mini_batch in plan.mini_batches),
            num_response_tokens=sums.num_tokens,
            num_updates=sums.num_updates,
            num_skipped_updates=sums.num_skipped_updates,
            learning_rate=learning_rate,
            loss=sums.loss,
            grad_norm=sums.grad_norm,
            entropy=sums.entropy,
            clip_fraction=sums.clip_fraction,
            mean_ratio=sums.mean_ratio,
            rollout_logprob_gap_mean=sums.rollout_logprob_gap_mean,
            rollout_logprob_gap_max=sums.rollout_logprob_gap_max,
            kl_to_reference=sums.kl_to_reference if self._reference is not None else None,
            seconds=time.perf_counter() - started,
        )

    # weights out -------------------------------------------------------------------------------------------------

    def gather_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights as (Hugging Face name, CPU tensor), always in the same order, tied weights once.

        Every rank must run the iterator to its end; only rank 0 receives the tensors, the others get nothing.
        """
        import deepspeed

        for bucket in self._buckets():
            with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
                items = [(name, weight.detach().to("cpu", copy=True)) for name, weight in bucket if self._rank == 0]
            yield from items

    def export(self, directory: Path) -> None:
        """Write a Hugging Face folder (safetensors, configuration, tokenizer) that transformers and vLLM load.

        Rank 0 writes under a temporary name and renames; an earlier folder of that name is replaced.
        """
        import torch.distributed as dist

        weights = dict(self.gather_weights())
        if self._rank == 0:
            partial = directory.with_name(f".{directory.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            self._policy.causal_lm.save_pretrained(partial, state_dict=weights)
            copy_tokenizer(self._model_path, partial)
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
        dist.barrier()

    # checkpoints -------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write a checkpoint that is either whole or not there; see `learner.checkpoint`."""
        checkpoint.save(self._engine, directory, manifest=self._manifest())

    def load(self, directory: Path) -> None:
        """Restore weights, optimizer and random state; call `start_stage` with the checkpoint's stage first.

        Raises:
            FileNotFoundError: the checkpoint is missing or incomplete.
            ValueError: it belongs to another stage, dtype or number of ranks.
        """
        checkpoint.load(self._engine, directory, manifest=self._manifest())

    def close(self) -> None:
        """Leave the process group; the engine is of no use afterwards."""
        import torch.distributed as dist

        dist.destroy_process_group()

    # one update --------------------------------------------------------------------------------------------------

    def _update(
        self, rows: list[RowTensors], old_logprobs: list[Tensor] | None, tally: Tally, learning_rate: float
    ) -> None:
        """Forward and backward of every row, then one optimizer step, skipped on all ranks if it is not finite."""
        for group in self._zero_optimizer.param_groups:
            group["lr"] = learning_rate
        for index, row in enumerate(rows):
            self._engine.set_gradient_accumulation_boundary(index == len(rows) - 1)
            loss = self._row_loss(row, None if old_logprobs is None else old_logprobs[index], tally)
            self._engine.backward(loss * self._world_size)
        self._engine.step()
        applied = self._engine.was_step_applied()
        tally.close_update(float(self._zero_optimizer._global_grad_norm) if applied else None)
        self._count_skipped(applied)

    def _row_loss(self, row: RowTensors, old_logprobs_N: Tensor | None, tally: Tally) -> Tensor:
        """The row's share of the loss of the mini-batch."""
        scores: TokenScores = self._engine(row)
        if self._stage is Stage.SFT:
            loss = -(row.weights_N * scores.logprobs_N).sum()
            tally.add_sft_row(row, scores, loss)
            return loss
        if old_logprobs_N is None:
            tally.add_gap(row, scores.logprobs_N.detach())
        clip_low, clip_high = _clip_range(self._config)
        terms = clipped_policy_loss(
            scores.logprobs_N,
            scores.logprobs_N if old_logprobs_N is None else old_logprobs_N,
            row.advantages_N,
            clip_low=clip_low,
            clip_high=clip_high,
        )
        loss = (row.weights_N * terms.loss_N).sum()
        kl_N = self._kl(row, scores.logprobs_N)
        if kl_N is not None:
            loss = loss + self._config.kl_coefficient * (row.weights_N * kl_N).sum()
        tally.add_row(row, scores, terms, kl_N, loss)
        return loss

    def _kl(self, row: RowTensors, logprobs_N: Tensor) -> Tensor | None:
        if self._reference is None:
            return None
        with torch.no_grad():
            reference_N = self._reference(row).logprobs_N
        return kl_estimate(logprobs_N, reference_N, "k3")

    def _old_logprobs(self, rows: list[RowTensors], tally: Tally) -> list[Tensor]:
        with torch.no_grad():
            old = [self._engine(row).logprobs_N for row in rows]
        for row, logprobs_N in zip(rows, old, strict=True):
            tally.add_gap(row, logprobs_N)
        return old

    def _count_skipped(self, applied: bool) -> None:
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row > self._config.max_nonfinite_updates:
            raise NonFiniteUpdateError(
                f"{self._skipped_in_a_row} updates in a row had a non-finite gradient, more than "
                f"learner.max_nonfinite_updates={self._config.max_nonfinite_updates}; lower the learning rate and "
                "resume from the last checkpoint"
            )

    def _plan(self, shapes: Sequence[Any]) -> UpdatePlan:
        return plan_update(
            shapes, num_ranks=self._world_size, mini_batches=1, max_tokens=self._config.max_tokens_per_microbatch
        )

    def _rows(self, mini_batch: MiniBatchPlan, groups: Mapping[int, ScoredGroup]) -> list[RowTensors]:
        aggregation = _aggregation(self._config)
        num_groups = len(mini_batch.groups)
        return [
            RowTensors.of(build_microbatch(plan, groups, num_groups=num_groups, aggregation=aggregation), self._device)
            for plan in mini_batch.ranks[self._rank]
        ]

    @property
    def _zero_optimizer(self) -> Any:
        """DeepSpeed's optimizer around ours; its type depends on the configuration."""
        return self._engine.optimizer

    def _expect(self, stage: Stage) -> None:
        if self._stage is not stage:
            raise RuntimeError(f"the learner is in stage {self._stage}; call start_stage({stage!r}) first")

    # building ----------------------------------------------------------------------------------------------------

    def _load(self, model_path: str) -> Policy:
        return load_policy(
            model_path,
            dtype=torch.bfloat16 if self._config.dtype == "bf16" else torch.float32,
            gradient_checkpointing=self._config.gradient_checkpointing,
            trust_remote_code=self._trust_remote_code,
        )

    def _trained_engine(self, policy: Policy) -> DeepSpeedEngine:
        import deepspeed

        optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, fused=True)
        engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=optimizer,
            config=zero3_config(self._config, on_gpu=self._on_gpu),
            dist_init_required=False,
        )
        return engine

    def _frozen_engine(self, policy: Policy) -> DeepSpeedEngine:
        import deepspeed

        policy.requires_grad_(False).eval()
        engine, *_ = deepspeed.initialize(
            model=policy, config=zero3_frozen_config(self._config, on_gpu=self._on_gpu), dist_init_required=False
        )
        return engine

    def _buckets(self) -> Iterator[list[tuple[str, Any]]]:
        bucket: list[tuple[str, Any]] = []
        size = 0
        for name, parameter in self._policy.causal_lm.named_parameters():
            num_bytes = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
            if bucket and size + num_bytes > EXPORT_BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append((name, parameter))
            size += num_bytes
        yield bucket

    def _manifest(self) -> dict[str, Any]:
        return {"stage": str(self._stage), "dtype": self._config.dtype}


def _join_process_group(rank: int, world_size: int, on_gpu: bool) -> torch.device:
    """Set the environment that DeepSpeed reads on import, join the ranks, return the device of this one."""
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), DS_ACCELERATOR="cuda" if on_gpu else "cpu")
    if not on_gpu:
        os.environ.setdefault("LOCAL_SIZE", str(world_size))  # else DeepSpeed runs `numactl` in every backward pass
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", message=r".*torch\.distributed\.\w+_tensor` is deprecated", category=FutureWarning
    )
    import deepspeed

    # A compiled shared-memory all-reduce for inference that we never call; building it costs half a minute once.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if on_gpu:
        torch.cuda.set_device(local_rank)
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
    return torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")


def _aggregation(config: LearnerConfig) -> Aggregation:
    return "response_mean" if config.algorithm.type == "grpo" else "group_token_mean"


def _clip_range(config: LearnerConfig) -> tuple[float, float]:
    algorithm = config.algorithm
    if algorithm.type == "grpo":
        return algorithm.clip, algorithm.clip
    return algorithm.clip_low, algorithm.clip_high
