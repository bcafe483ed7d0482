"""The recipe of QwenLong-L1 on one page: one process, no Ray, no vLLM, no DeepSpeed.

    python -m examples.one_file_loop    # warm-up and phase 1; with `--steps 40 40` phase 2 as well, with replay

A tiny model learns to answer questions about generated documents. Read `main`, then `train_step` and `update`. "Eq." is
the paper (arXiv 2505.17667). Prompt, reward, advantages, loss and shared-prefix attention are the modules of a cluster
run, where vLLM engines sample, ZeRO-3 ranks train, and a judge model stands where `WordJudge` does.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

from actors.prompt import ChatPrompt, load_tokenizer
from curriculum.config import GeneratedData
from curriculum.dataset import load_demonstrations, load_tasks
from curriculum.difficulty import difficulty
from curriculum.synthetic import same_answer
from curriculum.task import Task
from learner.advantages import group_advantages, has_signal
from learner.batch.aggregation import RESPONSE_MEAN, TOKEN_MEAN, Aggregation
from learner.batch.microbatch import TrainingGroup
from learner.batch.packing import plan_slice
from learner.batch.rows import build_microbatch, demonstration_group
from learner.forward.logprobs import TokenLoss, TokenScores
from learner.forward.row_tensors import Placement, RowTensors
from learner.objective.loss import clipped_policy_loss
from learner.objective.objective import SftLoss
from learner.sft import DemonstrationBatches
from learner.zero3.policy import load_policy
from reward.config import OverlongConfig, RewardConfig
from reward.hybrid import HybridScorer, JudgeQuestion
from reward.score import Score, Verdict

BASE = "recipes/assets/local_base"  # copies words of a text; knows neither the chat format nor the task
PHASE_LIMITS = (300, 1100)  # L_1 and L_2 in prompt tokens; paper: 20K and 60K
TRAIN = GeneratedData(items_per_length=1500, lengths=((96, 192), (480, 960)))  # lengths in words
HELD_OUT = GeneratedData(items_per_length=192, lengths=((96, 192), (480, 960)))
DEMONSTRATIONS = GeneratedData(items_per_length=2000, lengths=((48, 96), (96, 192), (320, 800)))
GROUPS, ANSWERS, MINI_BATCHES = 16, 8, 2  # groups per step, answers per group (G), updates per step; paper: 128, 8, 4
SAMPLING_ROUNDS, REPLAYED = 2, 0.25  # of dynamic sampling; largest share of a batch from earlier phases
OVERLONG = OverlongConfig(max_tokens=32, cache_tokens=8)  # L_max and L_cache of Eq. 7; nothing longer is sampled
CLIP = {"clip_low": 0.2, "clip_high": 0.28}  # of DAPO
LossOf = Callable[[RowTensors], TokenLoss]


class WordJudge:
    """In the place of the judge model: it accepts "seven" for "7", which the exact rule rejects."""

    async def judge(self, questions: Sequence[JudgeQuestion]) -> list[Verdict]:
        """Return one verdict per question."""
        return [Verdict.YES if same_answer(q.answer, q.truth) else Verdict.NO for q in questions]


class Loop:
    """The policy that is trained, the copy of it that samples, and how hard every task was when last sampled."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.prompt = ChatPrompt(load_tokenizer(BASE))
        self.policy = load_policy(BASE, dtype=torch.float32, trust_remote_code=False)
        self.sampler = AutoModelForCausalLM.from_pretrained(BASE).eval()
        self.scorer = HybridScorer(RewardConfig(overlong=OVERLONG), WordJudge())
        self.accuracy: dict[str, float] = {}

    def sample(self, tasks: Sequence[Task], *, num_answers: int) -> list[TrainingGroup]:
        """Draw answers to every task with log pi_old of each token; what they are worth is not known yet."""
        pad, stop = self.sampler.config.pad_token_id, torch.tensor(self.prompt.stop_token_ids)
        width = max(len(task.prompt_ids) for task in tasks)
        prompts = torch.tensor([[pad] * (width - len(task.prompt_ids)) + task.prompt_ids.tolist() for task in tasks])
        output = self.sampler.generate(
            prompts, attention_mask=(prompts != pad).long(), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=num_answers, max_new_tokens=OVERLONG.max_tokens, eos_token_id=stop.tolist(),
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        logprobs = self.sampler.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)
        ids, ended = output.sequences[:, width:].int(), torch.isin(output.sequences[:, width:], stop)
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, ids.shape[1]).tolist()
        cut = [(i[:n].numpy(), p[:n].numpy()) for i, p, n in zip(ids, logprobs, lengths, strict=True)]
        groups = [zip(*cut[i : i + num_answers], strict=True) for i in range(0, len(cut), num_answers)]
        return [
            TrainingGroup(prompt_ids=task.prompt_ids, response_ids=answers_G, rollout_logprobs=pi_old_G,
                        advantages=(0.0,) * num_answers, temperature=1.0)
            for task, (answers_G, pi_old_G) in zip(tasks, groups, strict=True)
        ]  # fmt: skip

    def score(self, task: Task, group: TrainingGroup) -> list[Score]:
        """Return r = max(rule, judge) of every answer (Eq. 14), less what Eq. 7 takes from one that is too long."""
        texts = [self.prompt.decode(ids.tolist()) for ids in group.response_ids]
        scoring = self.scorer.score_group(
            data_source=task.data_source, question=task.question, answers=task.answers, responses=texts,
            num_tokens=group.response_tokens,
        )  # fmt: skip
        return asyncio.run(scoring)

    def update(self, optimizer: AdamW, groups: Sequence[TrainingGroup], loss_of: LossOf, mean: Aggregation) -> None:
        """Take one step on the mean loss of the groups; a row holds a prompt once, and all of its answers behind it."""
        for plan in plan_slice(groups, num_ranks=1, max_tokens=16_000)[0]:
            packed = build_microbatch(plan, dict(enumerate(groups)), num_groups=len(groups), aggregation=mean)
            row = RowTensors.of(packed, Placement(device=torch.device("cpu")))
            loss, *_ = self.policy(row, loss_of(row))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def send_weights(self) -> None:
        """Let the sampler go on with the new weights: what it answers next is on-policy."""
        self.sampler.load_state_dict(self.policy.causal_lm.state_dict())

    def draw(self, num_tasks: int, tasks: Sequence[Task], phase: int) -> list[Task]:
        """Draw tasks of the phase (Eq. 9), and a share of unsolved ones of earlier phases by difficulty (Eq. 10)."""
        own = [task for task in tasks if task.phase == phase]  # L_{k-1} < prompt tokens <= L_k
        hard = [task for task in tasks if task.phase < phase and self.accuracy.get(task.task_id, 1.0) < 1.0]
        p = np.array([difficulty(self.accuracy[task.task_id]) for task in hard])
        count = min(len(hard), int(REPLAYED * num_tasks))
        replayed = [hard[i] for i in self.rng.choice(len(hard), count, replace=False, p=p / p.sum())] if count else []
        return [own[i] for i in self.rng.choice(len(own), num_tasks - len(replayed), replace=False)] + replayed

    def train_step(self, optimizer: AdamW, tasks: Sequence[Task], phase: int) -> float:
        """Sample, score, compare, update, send weights; return the mean accuracy of what was sampled."""
        batch: list[TrainingGroup] = []
        accuracies: list[float] = []
        for _ in range(SAMPLING_ROUNDS):
            drawn = self.draw(GROUPS - len(batch), tasks, phase)
            for task, group in zip(drawn, self.sample(drawn, num_answers=ANSWERS), strict=True):
                scores_G = self.score(task, group)
                accuracies_G = [score.accuracy for score in scores_G]
                self.accuracy[task.task_id] = fmean(accuracies_G)
                accuracies += accuracies_G
                if has_signal(accuracies_G):  # dynamic sampling: a group that is all right or all wrong is replaced
                    advantages_G = group_advantages([score.reward for score in scores_G])  # (r_i - mean) / std, Eq. 5
                    batch.append(replace(group, advantages=advantages_G))
            if len(batch) == GROUPS:
                break
        for part in filter(None, (batch[i::MINI_BATCHES] for i in range(MINI_BATCHES))):
            self.update(optimizer, part, policy_loss, TOKEN_MEAN)
        self.send_weights()
        return fmean(accuracies)


def policy_loss(row: RowTensors) -> TokenLoss:
    """Return -min(ratio * A, clip(ratio) * A) per token, weighted for the mean over all tokens of a group (Eq. 6)."""

    def loss(tokens: slice, scores: TokenScores) -> Tensor:
        ratio_n = torch.exp(scores.logprobs_N - row.rollout_logprobs_N[tokens])
        return row.weights_N[tokens] * clipped_policy_loss(ratio_n, row.advantages_N[tokens], **CLIP)

    return loss


def main(argv: Sequence[str] | None = None) -> None:
    """Warm up, then train phase by phase; print the held-out accuracy after each stage."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, nargs="+", default=[40], help="training steps of each phase")
    arguments.add_argument("--warm-up", type=int, default=375, help="updates of the warm-up, at most 375")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args(argv)
    torch.set_num_threads(1)  # the matrices are too small for more
    started, loop = time.perf_counter(), Loop(options.seed)
    encoding = {"encoder": loop.prompt, "phase_limits": PHASE_LIMITS, "over_long": "drop"}
    train = load_tasks(TRAIN, **encoding).records
    held_out = load_tasks(HELD_OUT, key="data.evaluation", **encoding).records
    lessons = load_demonstrations(DEMONSTRATIONS, encoder=loop.prompt, max_tokens=1100).records
    batches = DemonstrationBatches(lessons, batch_size=16, epochs=1, seed=options.seed)

    def report(name: str, phase: int, accuracy: float) -> None:
        print(f"{time.perf_counter() - started:4.0f} s  phase {phase + 1}  {name:12}  {accuracy:.3f}", flush=True)

    def evaluate(stage: str) -> None:
        for phase, _ in enumerate(options.steps):
            tasks = [task for task in held_out if task.phase == phase]
            answered = zip(tasks, loop.sample(tasks, num_answers=1), strict=True)
            report(stage, phase, fmean(loop.score(task, group)[0].accuracy for task, group in answered))

    evaluate("base model")
    optimizer = AdamW(loop.policy.parameters(), lr=2e-3, betas=(0.9, 0.98))
    for step in range(options.warm_up):  # negative log-likelihood of demonstrations, each by its own length (Eq. 11)
        loop.update(optimizer, [demonstration_group(lesson) for lesson in batches[step]], SftLoss, RESPONSE_MEAN)
    loop.send_weights()
    evaluate("warm-up")
    optimizer = AdamW(loop.policy.parameters(), lr=5e-4, betas=(0.9, 0.98), weight_decay=0.0)
    for phase, num_steps in enumerate(options.steps):
        for step in range(num_steps):
            report(f"step {step + 1}", phase, loop.train_step(optimizer, train, phase))
        evaluate("held-out")


if __name__ == "__main__":
    main()
