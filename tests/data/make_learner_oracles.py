"""Make `learner_oracles.json`: what TRL 1.16.0 and verl 0.9.1 compute on random ragged batches.

Run it in an environment of its own, with torch, transformers and

    pip install --no-deps trl==1.16.0 verl==0.9.1 accelerate tensordict pyvers orjson hydra-core omegaconf codetiming \
        "antlr4-python3-runtime==4.9.3"

    python tests/data/make_learner_oracles.py

The peers are used as they are: TRL through `GRPOTrainer._compute_loss` on an object that carries the attributes the
method reads, verl through the functions of `verl.trainer.ppo.core_algos`. Nothing of theirs is stored but numbers,
rounded to 1e-10.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import trl
import verl
from trl.trainer.grpo_trainer import GRPOTrainer
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
DUAL_CLIP = 1.4
ANSWER_CLIP_LOW, ANSWER_CLIP_HIGH = 0.03, 0.04  # the ratios of whole answers differ less
WEIGHT_CLIP_HIGH = 0.3
MAX_COMPLETION_TOKENS = 16
CAP = 2.0


def make_batch(seed: int) -> dict:
    """Groups of ragged answers with log-probabilities (nats) under four policies, advantages and rewards."""
    rng = np.random.default_rng(seed)
    num_groups, group_size = 3, 4
    lengths = rng.integers(1, MAX_COMPLETION_TOKENS + 1, size=(num_groups, group_size)).tolist()

    def logprobs(base: list | None = None, spread: float = 0.0) -> list:
        if base is None:
            return [[(-rng.exponential(1.2, size=n)).tolist() for n in group] for group in lengths]
        return [[[x + spread * rng.standard_normal() for x in answer] for answer in group] for group in base]

    old = logprobs()
    return {
        "lengths": lengths,
        "rewards": rng.choice([0.0, 1.0, -0.3], size=(num_groups, group_size)).tolist(),
        "policy": logprobs(old, 0.3),
        "old": old,
        "reference": logprobs(old, 0.2),
        "rollout": logprobs(old, 0.5),
        "truncated": (rng.random((num_groups, group_size)) < 0.3).tolist(),
    }


def padded(values: list, fill: float = 0.0) -> torch.Tensor:
    """[groups][answers][tokens] -> [answers, longest] float64."""
    rows = [answer for group in values for answer in group]
    longest = max(map(len, rows))
    return torch.tensor([answer + [fill] * (longest - len(answer)) for answer in rows], dtype=torch.float64)


def masks(batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """[answers, longest] 1.0 for every token, and for those of answers that are not truncated."""
    mask = padded([[[1.0] * n for n in group] for group in batch["lengths"]])
    return mask, mask * ~torch.tensor(batch["truncated"]).flatten()[:, None]


def verl_results(batch: dict) -> dict:
    """Advantages, losses by aggregation, their gradients, and KL estimates."""
    mask, whole = masks(batch)
    rewards = torch.tensor(batch["rewards"], dtype=torch.float64).flatten()
    scores = torch.zeros_like(mask)
    scores[:, 0] = rewards
    index = np.repeat(np.arange(len(batch["lengths"])), len(batch["lengths"][0]))
    found = {}
    for name, by_std in (("advantages_group", True), ("advantages_none", False)):
        advantages, _ = core_algos.compute_grpo_outcome_advantage(
            scores.clone(), torch.ones_like(mask), index, norm_adv_by_std_in_grpo=by_std
        )
        found[name] = advantages[:, 0].tolist()
    advantages = torch.tensor(found["advantages_group"], dtype=torch.float64)[:, None].expand_as(mask)
    weights = torch.exp(padded(batch["old"]) - padded(batch["rollout"])).clamp(max=CAP)

    def run(name: str, loss_of, mode: str, config, seen: torch.Tensor, correction: torch.Tensor | None = None) -> None:
        policy = padded(batch["policy"]).requires_grad_()
        loss, metrics = loss_of(padded(batch["old"]), policy, advantages, seen, mode, config, correction)
        loss.backward()
        found[name] = {
            "loss": loss.item(),
            "gradient": policy.grad[mask.bool()].tolist(),
            "clip_fraction": metrics["actor/pg_clipfrac"] + metrics["actor/pg_clipfrac_lower"],
        }

    vanilla = core_algos.compute_policy_loss_vanilla
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
        run(mode, vanilla, mode, Config(mode), mask)
        run(f"{mode}-corrected", vanilla, mode, Config(mode), mask, weights)
        run(f"{mode}-dual", vanilla, mode, Config(mode, dual_clip=DUAL_CLIP), mask)
        run(f"{mode}-truncated", vanilla, mode, Config(mode), whole)
    answers = actor_config(ANSWER_CLIP_LOW, ANSWER_CLIP_HIGH)
    run("gspo", core_algos.compute_policy_loss_gspo, "seq-mean-token-mean", answers, mask)
    run("cispo", core_algos.compute_policy_loss_cispo, "token-mean", actor_config(1.0, WEIGHT_CLIP_HIGH), mask)
    found["kl"] = {
        kind: (core_algos.kl_penalty(padded(batch["policy"]), padded(batch["reference"]), kind)[mask.bool()]).tolist()
        for kind in ("k2", "k3")
    }
    return found


class Config(SimpleNamespace):
    """What verl's loss reads of its actor configuration; the dual clip is out of reach unless it is given."""

    def __init__(self, mode: str, *, dual_clip: float = 1e9) -> None:
        norm = {"loss_scale_factor": MAX_COMPLETION_TOKENS} if mode.endswith("norm") else {}
        self.dual_clip = dual_clip
        super().__init__(
            clip_ratio=CLIP_LOW, clip_ratio_low=CLIP_LOW, clip_ratio_high=CLIP_HIGH, global_batch_info=norm
        )

    def get(self, key: str, default: float) -> float:
        return self.dual_clip if key == "clip_ratio_c" else default


def actor_config(clip_low: float, clip_high: float) -> ActorConfig:
    """verl's own configuration, which its later losses insist on."""
    return ActorConfig(
        strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, clip_ratio_low=clip_low, clip_ratio_high=clip_high
    )


def trl_results(batch: dict, advantages: list) -> dict:
    """Losses and gradients by loss type, with KL and entropy bonus."""
    mask, whole = masks(batch)
    found = {}

    def run(name: str, loss_type: str, *, seen: torch.Tensor = mask, **settings) -> None:
        policy = padded(batch["policy"]).requires_grad_()
        inputs = {
            "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.int64),
            "prompt_mask": torch.ones(len(mask), 1, dtype=torch.int64),
            "completion_ids": torch.zeros(mask.shape, dtype=torch.int64),
            "completion_mask": seen,
            "advantages": torch.tensor(advantages, dtype=torch.float64),
            "old_per_token_logps": padded(batch["old"]),
            "ref_per_token_logps": padded(batch["reference"]),
            "num_items_in_batch": seen.sum(),
        }
        loss = GRPOTrainer._compute_loss(trainer_stand_in(loss_type, policy, **settings), None, inputs)
        loss.backward()
        found[name] = {"loss": loss.item(), "gradient": policy.grad[mask.bool()].tolist()}

    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo"):
        for beta in (0.0, 0.05):
            run(f"{loss_type}-beta{beta}", loss_type, beta=beta)
    for loss_type in ("grpo", "dapo", "dr_grpo"):
        run(f"{loss_type}-dual", loss_type, delta=DUAL_CLIP)
    run("dapo-truncated", "dapo", seen=whole)
    run("gspo", "grpo", level="sequence", clip=(ANSWER_CLIP_LOW, ANSWER_CLIP_HIGH))
    run("cispo", "cispo", clip=(CLIP_LOW, 1 + WEIGHT_CLIP_HIGH))
    return found


def trainer_stand_in(
    loss_type: str,
    policy: torch.Tensor,
    *,
    beta: float = 0.0,
    delta: float | None = None,
    level: str = "token",
    clip: tuple[float, float] = (CLIP_LOW, CLIP_HIGH),
) -> SimpleNamespace:
    """The attributes that `_compute_loss` reads."""
    accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x
    )
    args = SimpleNamespace(
        use_bias_correction_kl=False, delta=delta, steps_per_generation=1, entropy_target=None, loss_type=loss_type
    )
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
        _metrics={"train": defaultdict(list)},
        _entropy_bonus_enabled=False,
        accelerator=accelerator,
        args=args,
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=MAX_COMPLETION_TOKENS,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
    )


def rounded(results):
    """The same results with numbers to ten decimals."""
    if isinstance(results, dict):
        return {name: rounded(value) for name, value in results.items()}
    return [rounded(value) for value in results] if isinstance(results, list) else round(float(results), 10)


def main() -> None:
    """Write the file next to this script."""
    cases = []
    for seed in range(4):
        batch = make_batch(seed)
        from_verl = verl_results(batch)
        from_trl = trl_results(batch, from_verl["advantages_group"])
        cases.append({"batch": batch, "verl": rounded(from_verl), "trl": rounded(from_trl)})
    settings = {
        "trl": trl.__version__,
        "verl": verl.__version__,
        "clip_low": CLIP_LOW,
        "clip_high": CLIP_HIGH,
        "max_completion_tokens": MAX_COMPLETION_TOKENS,
        "dual_clip": DUAL_CLIP,
        "answer_clip_low": ANSWER_CLIP_LOW,
        "answer_clip_high": ANSWER_CLIP_HIGH,
        "weight_clip_high": WEIGHT_CLIP_HIGH,
        "cap": CAP,
        "kl_coefficient": 0.05,
    }
    path = Path(__file__).with_name("learner_oracles.json")
    path.write_text(json.dumps({"settings": settings, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
