"""Configuration of the rollout: how many engines, how they sample, how much memory they take."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from curriculum.config import Seconds, StrictModel


class YarnConfig(StrictModel):
    """YaRN (Peng et al. 2023): a rope that reaches further than the one a model was trained with."""

    factor: float = Field(gt=1, le=1024)
    """How many times further."""
    original_max_tokens: int = Field(ge=2, lt=2**31)
    """Longest sequence of the training before, in tokens: 32768 for Qwen2.5, whose documentation has `factor` 4."""

    @property
    def max_tokens(self) -> int:
        """Longest sequence with YaRN, in tokens."""
        return int(self.factor * self.original_max_tokens)

    def __str__(self) -> str:
        return f"{{factor: {self.factor:g}, original_max_tokens: {self.original_max_tokens}}}"


class EngineConfig(StrictModel):
    """Resources of one vLLM engine; shared by rollout actors and judge actors."""

    tensor_parallel_size: int = Field(default=1, gt=0, le=1024)
    """GPUs of one engine; 1 on a CPU."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Type of weights, activations and KV cache."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of the GPU's memory for weights and KV cache, with `cluster.share_gpus` for those of the judge as well;
    ignored on a CPU."""
    cpu_kv_cache_bytes: int = Field(default=256 << 20, gt=0)
    """KV cache of an engine that runs on a CPU."""
    max_num_seqs: int = Field(default=256, gt=0, le=65536)
    """Largest number of sequences in one engine step."""
    max_num_batched_tokens: int | None = Field(default=None, gt=0)
    """Tokens of one engine step (chunked prefill); None lets vLLM choose."""
    enforce_eager: bool = False
    """Skip graph capture and compilation: the engine starts faster, which suits tiny models."""


class SyncConfig(StrictModel):
    """Weight updates of the engines."""

    timeout_s: Seconds = 600.0
    """Longest wait, in seconds, for the receipt of one engine; then the run stops."""
    transport: Literal["auto", "host_memory", "collective"] = "auto"
    """`host_memory`: rank 0 of the learner writes the weights, engines map them or get a copy; `collective`: rank 0
    broadcasts them from its device to those of the engines (NCCL; gloo on a CPU). `auto`: `collective` on GPUs, but
    `host_memory` where learner and engines share them."""
    probe_every: int = Field(default=20, gt=0)
    """Updates between two checks in which engines and learner score the same tokens; the first update is checked."""
    delta: bool = False
    """Send only values that changed to engines on other hosts than the learner's first rank, where that is smaller, and
    compute the checksums over every byte. Engines on the host of that rank read the weights in place. Not for
    `collective`."""

    @model_validator(mode="after")
    def _delta_needs_host_memory(self) -> Self:
        if self.delta and self.transport == "collective":
            raise ValueError(
                "rollout.sync.delta=true but rollout.sync.transport=collective, which sends every value; remove one of "
                "them"
            )
        return self


class RolloutConfig(StrictModel):
    """Sampling of groups."""

    num_actors: int = Field(default=1, gt=0, le=4096)
    """Rollout actors, one engine each."""
    engine: EngineConfig = EngineConfig()
    """Resources of each engine."""
    group_size: int = Field(default=8, ge=2, le=16384)
    """G, answers sampled for each prompt."""
    temperature: float = Field(default=0.7, ge=0.01, le=2)
    """Sampling temperature; the engine knows no other than 0.01 to 2."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus of the sampling: the smallest set of tokens that together have this probability."""
    max_response_tokens: int = Field(default=10_000, gt=0)
    """Longest answer, in tokens."""
    deadline_s: Seconds | None = None
    """Longest time, in seconds, from the lease of a group to its last token; None waits for every answer. A group that
    misses it is sampled once more, by any engine with room; then its unfinished answers are cut. A cut answer has no
    reward and is not trained on."""
    max_policy_lag: int = Field(default=0, ge=0, le=1000)
    """Weight updates by which a group may be older than the learner that trains on it. 0: strictly on-policy, sampling
    and training take turns; above 0 they overlap, and `learner.importance` corrects for the difference."""
    sync: SyncConfig = SyncConfig()
    """Weight updates of the engines."""
