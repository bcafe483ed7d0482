"""Configuration of the learner: optimizer, algorithm, micro-batches and the warm-up SFT."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from curriculum.config import StrictModel

Schedule = Literal["constant", "linear", "cosine"]
"""Shape of the learning rate after its warm-up."""


class OptimizerConfig(StrictModel):
    """AdamW and its learning rate over one stage."""

    learning_rate: float = Field(gt=0)
    """Peak, reached at the end of the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear growth from zero to the peak."""
    schedule: Schedule = "constant"
    learning_rate_floor: float = Field(default=0.0, ge=0, le=1)
    """Lowest learning rate of `linear` and `cosine`, as a share of the peak."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)


class GrpoConfig(StrictModel):
    """Mean over groups of the mean over responses of the token mean (paper Eq. 4)."""

    type: Literal["grpo"] = "grpo"
    clip: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped to [1 - clip, 1 + clip]."""


class DapoConfig(StrictModel):
    """Mean over groups of the mean over all tokens of the group (paper Eq. 6), with an asymmetric clip."""

    type: Literal["dapo"] = "dapo"
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    dynamic_sampling: bool = True
    """Replace groups whose accuracies are all equal; off, they are trained on with zero advantage."""


Algorithm = Annotated[GrpoConfig | DapoConfig, Field(discriminator="type")]


class LearnerConfig(OptimizerConfig):
    """The ZeRO-3 learner; the optimizer settings on top are those of the reinforcement learning."""

    num_ranks: int = Field(default=1, gt=0)
    """Data-parallel ranks, one process each."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; the optimizer always keeps fp32 master weights."""
    learning_rate: float = Field(default=2e-6, gt=0)
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the gradient."""
    algorithm: Algorithm = DapoConfig()
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the k3 estimate against the frozen reference policy; 0 keeps no reference in memory."""
    mini_batches: int = Field(default=1, gt=0)
    """Optimizer updates per batch; the paper's run has 4. More than 1 costs a pass for the old log-probabilities."""
    max_tokens_per_microbatch: int = Field(default=80_000, gt=1)
    """Largest row that a rank forwards at once, shared prompts counted once."""
    gradient_checkpointing: bool = False
    offload_optimizer: bool = False
    """Keep the optimizer state and the master weights in host memory."""
    offload_parameters: bool = False
    """Keep the partitioned weights in host memory."""
    max_nonfinite_updates: int = Field(default=3, ge=0)
    """Updates with a non-finite loss or gradient that are skipped before the run stops."""


class SftConfig(OptimizerConfig):
    """The warm-up SFT (paper section 3.2: 3 epochs, batches of 128, learning rate 5e-6)."""

    epochs: int = Field(default=3, ge=0)
    """Passes over the demonstrations; 0 skips the warm-up."""
    batch_size: int = Field(default=128, gt=0)
    """Demonstrations per update."""
    learning_rate: float = Field(default=5e-6, gt=0)
