"""Configuration of the learner: optimizer, algorithm, micro-batches and the warm-up SFT."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from curriculum.config import StrictModel

Schedule = Literal["constant", "linear", "cosine"]
"""Shape of the learning rate after its warm-up."""
AdvantageScale = Literal["group", "task", "none"]
"""See `learner.advantages.Scale`."""
AttentionKernel = Literal["auto", "fa2", "fa3"]
"""See `learner.attention.kernels`."""


class LearningRateConfig(StrictModel):
    """The learning rate over one stage."""

    learning_rate: float = Field(gt=0, le=10)
    """Peak, reached at the end of the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear growth from zero to the peak."""
    schedule: Schedule = "constant"
    """Shape of the learning rate after its warm-up."""


class GrpoConfig(StrictModel):
    """Mean over groups of the mean over responses of the token mean (paper Eq. 4)."""

    dynamic_sampling: ClassVar[bool] = False
    type: Literal["grpo"] = "grpo"
    clip: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped to [1 - clip, 1 + clip]."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Where the advantage A is negative, the loss of a token is at most dual_clip * |A| (Ye et al., 2020); None for no
    bound."""


class DapoConfig(StrictModel):
    """Mean over groups of the mean over all tokens of the group (paper Eq. 6), with an asymmetric clip.

    With dynamic sampling: groups whose accuracies are all equal are replaced.
    """

    dynamic_sampling: ClassVar[bool] = True
    type: Literal["dapo"] = "dapo"
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = Field(default=0.28, gt=0)
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Where the advantage A is negative, the loss of a token is at most dual_clip * |A| (Ye et al., 2020); None for no
    bound."""
    token_mean: Literal["group", "batch"] = "group"
    """`group`: mean over all tokens of each group, then over groups. `batch`: mean over all tokens of the mini-batch,
    in which a group with long answers weighs more."""


class DrGrpoConfig(StrictModel):
    """Mean over groups of the token sum divided by a constant; advantages are not divided by a deviation.

    Liu et al., 2025, "Understanding R1-Zero-like training".
    """

    dynamic_sampling: ClassVar[bool] = False
    type: Literal["dr_grpo"] = "dr_grpo"
    clip: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped to [1 - clip, 1 + clip]."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Where the advantage A is negative, the loss of a token is at most dual_clip * |A| (Ye et al., 2020); None for no
    bound."""
    constant_tokens: int = Field(gt=0)
    """Tokens by which the token sum of every answer is divided; use the response limit of the rollout."""


class GspoConfig(StrictModel):
    """Mean over groups of the mean over answers, with one ratio per answer, the geometric mean over its tokens.

    Zheng et al., 2025, "Group Sequence Policy Optimization". With `mini_batches=1` every ratio is 1, and it equals
    GRPO. The later mini-batches cost one more product with the LM head, over the response tokens.
    """

    dynamic_sampling: ClassVar[bool] = False
    type: Literal["gspo"] = "gspo"
    clip_low: float = Field(default=3e-4, gt=0, lt=1)
    """The ratio of an answer is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = Field(default=4e-4, gt=0)
    """The ratio of an answer is clipped to [1 - clip_low, 1 + clip_high]."""


class CispoConfig(StrictModel):
    """Log-probabilities weighted by advantage and ratio; the ratio is held from above and has no gradient.

    MiniMax, 2025, "MiniMax-M1". With dynamic sampling: groups whose accuracies are all equal are replaced.
    """

    dynamic_sampling: ClassVar[bool] = True
    type: Literal["cispo"] = "cispo"
    clip_high: float = Field(default=4.0, gt=0)
    """The ratio weighs at most 1 + clip_high. The paper states no bound; 5 is what TRL recommends after Khatri et al.,
    2025."""
    token_mean: Literal["group", "batch"] = "group"
    """`group`: mean over all tokens of each group, then over groups. `batch`: mean over all tokens of the mini-batch,
    in which a group with long answers weighs more."""


Algorithm = Annotated[GrpoConfig | DapoConfig | DrGrpoConfig | GspoConfig | CispoConfig, Field(discriminator="type")]


class ImportanceConfig(StrictModel):
    """Truncated importance sampling between the policy that sampled and the learner's."""

    cap: float = Field(default=2.0, gt=0)
    """Largest weight of a token."""
    beyond: Literal["truncate", "mask"] = "truncate"
    """Reduce larger weights to the cap, or leave their tokens out."""
    max_answer_ratio: float | None = Field(default=None, ge=1)
    """Leave whole answers out whose tokens are, in the geometric mean, more than this factor more or less likely under
    the learner's policy before the update than under the sampler's; None keeps all. Costs a forward pass."""


class EntropyControlConfig(StrictModel):
    """Leave answers with negative advantage out while the policy is too uncertain (AEPO of QwenLong-L1.5)."""

    high: float = Field(gt=0)
    """Entropy (nats per token) of the last step above which they are left out."""
    low: float = Field(ge=0)
    """Entropy below which they are trained on again."""

    @model_validator(mode="after")
    def _ordered(self) -> EntropyControlConfig:
        if self.low > self.high:
            raise ValueError(f"learner.entropy_control: low={self.low} is above high={self.high}; swap them")
        return self


class LearnerConfig(LearningRateConfig):
    """The ZeRO-3 learner; its optimizer settings are those of the reinforcement learning."""

    num_ranks: int = Field(default=1, gt=0, le=16384)
    """Data-parallel ranks, one process each."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; the optimizer always keeps fp32 master weights."""
    attention: AttentionKernel = "auto"
    """Flash attention of the learner on GPUs: `fa2`, that of torch; `fa3`, FlashAttention-3, on Hopper and where it was
    installed; `auto`, the latter where every rank has it. The log of a rank says which one runs."""
    learning_rate: float = Field(default=2e-6, gt=0, le=10)
    schedule_over: Literal["phase", "run"] = "phase"
    """What warm-up and schedule span: `phase`, they begin again with every phase; `run`, all phases together. A phase
    that ends on a plateau counts with its `max_steps` until it is over, then with the steps that it took."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of AdamW, in the warm-up as well."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW in the reinforcement learning; the warm-up has 0.01."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest L2 norm of the gradient."""
    algorithm: Algorithm = DapoConfig()
    """Loss and its aggregation over tokens, answers and groups."""
    mask_truncated: bool = False
    """Leave answers that reached the response limit out of the loss and its normaliser (overlong filtering of DAPO).
    Their rewards still count in the mean and the deviation of their group; a group without other answers is not trained
    on."""
    advantage_scale: AdvantageScale | None = None
    """Standard deviation that advantages are divided by: of the group, of all answers in the batch to questions of the
    same data source (QwenLong-L1.5), or none. None is the algorithm's own: `none` with `dr_grpo`, which has no other,
    else `group`."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL between policy and frozen reference policy in the loss."""
    kl_estimator: Literal["k2", "k3"] = "k2"
    """Term of the loss for that KL, by the gradient that it has on average over answers of the policy: `k2`, that of
    KL(policy || reference), which the paper's Eq. 2 subtracts; `k3`, that of KL(reference || policy), as in GRPO. The
    reported KL does not depend on it."""
    kl_every: int = Field(default=0, ge=0)
    """Training steps between two reports of the KL where it is not in the loss, from a reference in host memory; 0 for
    no reports. Without this and `kl_coefficient` no reference is loaded."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus."""
    importance: ImportanceConfig | None = None
    """Correction for the difference between sampler and learner; none by default."""
    entropy_control: EntropyControlConfig | None = None
    """Leave answers with negative advantage out while the entropy is too high; None trains on all answers."""
    mini_batches: int = Field(default=1, gt=0)
    """Optimizer updates per batch; the paper's run has 4. More than 1 costs a pass for the old log-probabilities; with
    1 every ratio is 1, so that nothing is clipped."""
    slices: int = Field(default=1, gt=0)
    """Slices of consecutive groups in which a batch is forwarded and back-propagated, each as soon as its groups are
    there; with 1 the learner waits for the whole batch, which balances its ranks best."""
    max_tokens_per_microbatch: int = Field(default=80_000, gt=1)
    """Largest row that is forwarded at once, shared prompts counted once. A prompt with its longest response must fit;
    the responses of a larger group are forwarded in batches, after one pass of the prompt."""
    sequence_parallel: int = Field(default=1, gt=0)
    """Ranks that share one row, each with a part of its tokens; divides `num_ranks` and the model's heads."""
    ranks_per_copy: int | None = Field(default=None, gt=1)
    """Consecutive ranks, those of one node, that keep a whole copy of the weights among them until the next update,
    beside the part that every rank holds anyway: weights cross the nodes once per update, not for every row. Costs each
    rank the bytes of the model divided by this number. Divides `num_ranks` and is smaller. None keeps no copy."""
    gradient_checkpointing: bool = False
    """Recompute the activations of a layer in the backward pass instead of keeping them."""
    offload: tuple[Literal["optimizer", "parameters", "activations"], ...] = ()
    """What is kept in host memory: `optimizer`, its state and the master weights; `parameters`, the partitioned
    weights; `activations`, the checkpointed layer inputs, which needs `gradient_checkpointing`."""

    @property
    def num_data_ranks(self) -> int:
        """Rows that are forwarded at the same time."""
        return self.num_ranks // self.sequence_parallel

    @property
    def deviation(self) -> AdvantageScale:
        """What advantages are divided by: `advantage_scale`, or the algorithm's own."""
        return self.advantage_scale or ("none" if self.algorithm.type == "dr_grpo" else "group")

    @property
    def needs_reference(self) -> bool:
        """True if the KL against a frozen reference policy is in the loss or in the report."""
        return self.kl_coefficient > 0 or self.kl_every > 0

    @model_validator(mode="after")
    def _consistent(self) -> LearnerConfig:
        if self.num_ranks % self.sequence_parallel:
            raise ValueError(
                f"learner.num_ranks={self.num_ranks} is not divisible by sequence_parallel={self.sequence_parallel}; "
                "every row needs a whole set of ranks"
            )
        copy, ranks = self.ranks_per_copy, self.num_ranks
        if copy is not None and (ranks % copy or copy == ranks):
            raise ValueError(
                f"learner.ranks_per_copy={copy} does not divide num_ranks={ranks} into several copies; use one of "
                f"{[n for n in range(2, ranks) if not ranks % n]}, or leave it out"
            )
        if self.algorithm.type == "dr_grpo" and self.deviation != "none":
            raise ValueError(
                f"learner.advantage_scale={self.advantage_scale} with algorithm.type=dr_grpo, which divides by no "
                "deviation; leave advantage_scale out, or use algorithm.type=grpo"
            )
        if self.advantage_scale == "task" and self.slices > 1:
            raise ValueError(
                f"learner.slices={self.slices} with advantage_scale=task: its deviations need the whole batch; "
                "set slices=1"
            )
        if "activations" in self.offload and not self.gradient_checkpointing:
            raise ValueError(
                "learner.offload=[activations] moves checkpointed layer inputs; set learner.gradient_checkpointing=true"
            )
        return self


class SftConfig(LearningRateConfig):
    """The warm-up SFT (paper section 3.2: 3 epochs, batches of 128, learning rate 5e-6)."""

    epochs: int = Field(default=3, ge=0)
    """Passes over the demonstrations; 0 skips the warm-up."""
    batch_size: int = Field(default=128, gt=0)
    """Demonstrations per update."""
    learning_rate: float = Field(default=5e-6, gt=0, le=10)
    learning_rate_floor: float = Field(default=0.0, ge=0, le=1)
    """Lowest learning rate of `linear` and `cosine`, as a share of the peak."""
