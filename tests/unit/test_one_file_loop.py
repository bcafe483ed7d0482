"""The page that teaches the recipe: short, exact and able to learn."""

import ast
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

from curriculum.config import GeneratedData
from curriculum.dataset import load_tasks
from examples import one_file_loop
from examples.one_file_loop import BASE, Loop, policy_loss
from learner.batch.aggregation import TOKEN_MEAN
from reward.score import Score

PAGE = Path(one_file_loop.__file__)
HEAVY = {"ray", "vllm", "deepspeed", "cluster"}


class KeepGradients:
    """In the place of an optimizer: takes no step, and keeps the gradients as they come."""

    def __init__(self, policy):
        self._policy = policy

    def step(self):
        self.gradients = {
            name.removeprefix("causal_lm."): p.grad.clone() for name, p in self._policy.named_parameters()
        }

    def zero_grad(self):
        self._policy.zero_grad()


class PaysForVisits:
    """In the place of the reward: an answer is right if it says "visits", as about a quarter of the base model's do."""

    async def score_group(self, *, responses, **_):
        rewards = [float("visits" in response) for response in responses]
        return [Score(answer="", rule=r, judge=None, accuracy=r, reward=r, reason="") for r in rewards]


@pytest.fixture
def loop():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Loop(seed=0)
    torch.set_num_threads(threads)


@pytest.fixture
def tasks(loop):
    data = GeneratedData(items_per_length=16, lengths=((24, 48),))
    return load_tasks(data, encoder=loop.prompt, phase_limits=(300,), over_long="drop").records


def dense_logprobs(model, prompt_ids, response_ids):
    ids = torch.tensor([[*prompt_ids.tolist(), *response_ids.tolist()]])
    logprobs = model(ids).logits[0].log_softmax(-1)[len(prompt_ids) - 1 : -1]
    return logprobs.gather(1, ids[0, len(prompt_ids) :, None]).squeeze(1)


def test_the_page_has_at_most_200_lines_and_imports_nothing_of_a_cluster():
    source = PAGE.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert len(source.splitlines()) <= 200
    assert not HEAVY & {module.split(".")[0] for module in modules}


def test_an_update_has_the_gradient_of_equation_6_over_separate_sequences(loop, tasks):
    advantages = ((1.5, -0.5, -1.0), (-0.25, 0.75, -0.5))
    groups = [
        replace(group, advantages=values)
        for group, values in zip(loop.sample(tasks[:2], num_answers=3), advantages, strict=True)
    ]
    kept = KeepGradients(loop.policy)
    loop.update(kept, groups, policy_loss, TOKEN_MEAN)

    model, loss, gaps = AutoModelForCausalLM.from_pretrained(BASE), 0.0, []
    for group in groups:
        num_tokens = sum(len(ids) for ids in group.response_ids)
        for ids, pi_old, advantage in zip(group.response_ids, group.rollout_logprobs, group.advantages, strict=True):
            logprobs = dense_logprobs(model, group.prompt_ids, ids)
            gaps.append((logprobs - torch.from_numpy(pi_old)).abs().max().item())
            ratio = (logprobs - logprobs.detach()).exp()  # 1: before the first update no clip is active
            loss = loss - (ratio * advantage).sum() / num_tokens / len(groups)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert max(gaps) < 1e-4  # the sampler reports log-probabilities of the very policy that is trained
    for name, parameter in model.named_parameters():
        assert torch.allclose(kept.gradients[name], parameter.grad, atol=2e-6, rtol=1e-4), name


def test_a_few_steps_teach_what_the_reward_pays_for(loop, tasks):
    loop.scorer = PaysForVisits()
    optimizer = AdamW(loop.policy.parameters(), lr=5e-3)
    accuracies = [loop.train_step(optimizer, tasks, phase=0) for _ in range(6)]
    assert fmean(accuracies[-3:]) > accuracies[0] + 0.2
    assert torch.equal(loop.sampler.lm_head.weight, loop.policy.causal_lm.lm_head.weight)


def test_hard_tasks_of_earlier_phases_come_back_and_solved_ones_do_not(loop, tasks):
    tasks = [replace(task, phase=0 if i < 4 else 1) for i, task in enumerate(tasks)]
    solved, hopeless, half, unseen = (task.task_id for task in tasks[:4])
    loop.accuracy = {solved: 1.0, hopeless: 0.0, half: 0.5}
    drawn = [task.task_id for task in loop.draw(12, tasks, phase=1)]
    assert len(set(drawn)) == 12
    assert {solved, hopeless, half, unseen} & set(drawn) == {hopeless, half}
