"""Make `learner_oracles.json`: what TRL 1.16.0 and verl 0.9.1 compute on random ragged batches.

Run it in an environment of its own, with torch, transformers and

    pip install --no-deps trl==1.16.0 verl==0.9.1 accelerate tensordict pyvers orjson hydra-core omegaconf codetiming \
        "antlr4-python3-runtime==4.9.3"

    python tests/data/make_learner_oracles.py

The peers are used as they are: TRL through `GRPOTrainer._compute_loss` on an object that carries the attributes the
method reads, verl through the functions of `verl.trainer.ppo.core_algos`. Nothing of theirs is stored but numbers.
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

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
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
    }


def padded(values: list, fill: float = 0.0) -> torch.Tensor:
    """[groups][answers][tokens] -> [answers, longest] float64."""
    rows = [answer for group in values for answer in group]
    longest = max(map(len, rows))
    return torch.tensor([answer + [fill] * (longest - len(answer)) for answer in rows], dtype=torch.float64)


def verl_results(batch: dict) -> dict:
    """Advantages, losses by aggregation, their gradients, and KL estimates."""
    mask = padded([[[1.0] * n for n in group] for group in batch["lengths"]])
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
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
        for corrected in (False, True):
            policy = padded(batch["policy"]).requires_grad_()
            config = Config(mode)
            loss, metrics = core_algos.compute_policy_loss_vanilla(
                padded(batch["old"]), policy, advantages, mask, mode, config, weights if corrected else None
            )
            loss.backward()
            found[f"{mode}{'-corrected' if corrected else ''}"] = {
                "loss": loss.item(),
                "gradient": policy.grad[mask.bool()].tolist(),
                "clip_fraction": metrics["actor/pg_clipfrac"],
            }
    found["kl"] = {
        kind: (core_algos.kl_penalty(padded(batch["policy"]), padded(batch["reference"]), kind)[mask.bool()]).tolist()
        for kind in ("k2", "k3")
    }
    return found


class Config(SimpleNamespace):
    """What verl's loss reads of its actor configuration; the dual clip is set out of reach."""

    def __init__(self, mode: str) -> None:
        norm = {"loss_scale_factor": MAX_COMPLETION_TOKENS} if mode.endswith("norm") else {}
        super().__init__(
            clip_ratio=CLIP_LOW, clip_ratio_low=CLIP_LOW, clip_ratio_high=CLIP_HIGH, global_batch_info=norm
        )

    def get(self, key: str, default: float) -> float:
        return 1e9 if key == "clip_ratio_c" else default


def trl_results(batch: dict, advantages: list) -> dict:
    """Losses and gradients by loss type, with KL and entropy bonus."""
    mask = padded([[[1.0] * n for n in group] for group in batch["lengths"]])
    found = {}
    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo"):
        for beta in (0.0, 0.05):
            policy = padded(batch["policy"]).requires_grad_()
            trainer = trainer_stand_in(loss_type, beta, policy)
            inputs = {
                "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.int64),
                "prompt_mask": torch.ones(len(mask), 1, dtype=torch.int64),
                "completion_ids": torch.zeros(mask.shape, dtype=torch.int64),
                "completion_mask": mask,
                "advantages": torch.tensor(advantages, dtype=torch.float64),
                "old_per_token_logps": padded(batch["old"]),
                "ref_per_token_logps": padded(batch["reference"]),
                "num_items_in_batch": mask.sum(),
            }
            loss = GRPOTrainer._compute_loss(trainer, None, inputs)
            loss.backward()
            found[f"{loss_type}-beta{beta}"] = {"loss": loss.item(), "gradient": policy.grad[mask.bool()].tolist()}
    return found


def trainer_stand_in(loss_type: str, beta: float, policy: torch.Tensor) -> SimpleNamespace:
    """The attributes that `_compute_loss` reads."""
    accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x
    )
    args = SimpleNamespace(
        use_bias_correction_kl=False, delta=None, steps_per_generation=1, entropy_target=None, loss_type=loss_type
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
        epsilon_low=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        importance_sampling_level="token",
        loss_type=loss_type,
        max_completion_length=MAX_COMPLETION_TOKENS,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
    )


def main() -> None:
    """Write the file next to this script."""
    cases = []
    for seed in range(4):
        batch = make_batch(seed)
        from_verl = verl_results(batch)
        cases.append({"batch": batch, "verl": from_verl, "trl": trl_results(batch, from_verl["advantages_group"])})
    settings = {
        "trl": trl.__version__,
        "verl": verl.__version__,
        "clip_low": CLIP_LOW,
        "clip_high": CLIP_HIGH,
        "max_completion_tokens": MAX_COMPLETION_TOKENS,
        "cap": CAP,
        "kl_coefficient": 0.05,
    }
    path = Path(__file__).with_name("learner_oracles.json")
    path.write_text(json.dumps({"settings": settings, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
