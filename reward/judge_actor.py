"""Ray shell around the scorer: it decodes a group, applies the rules, asks the judge, and returns the scores."""

from __future__ import annotations

import os
from collections.abc import Mapping

import ray

from actors.config import YarnConfig
from actors.prompt import ChatPrompt, load_tokenizer
from actors.trajectory import FinishReason, Group
from curriculum.heartbeat import Heartbeat, Lifeline, Pulse
from reward.circuit import JudgeEvent
from reward.config import RewardConfig
from reward.hybrid import HybridScorer
from reward.judge_back_end import open_judge
from reward.judge_engine import VllmJudgeEngine
from reward.junk_check import check_for_junk
from reward.score import Score


class JudgeActor:
    """The scorer of groups in a process of its own, with the judge's engine if it has one.

    Consumes: groups, by reference.  Waits for: the judge, at most its timeout.  Unblocked by: its verdicts.

    Args:
        name: for logs.
        config: rules and judge.
        policy_path: folder or hub id of the policy, whose tokenizer turns its answers into text.
        on_gpu: where the judge's engine runs.
        trust_remote_code: whether that tokenizer may bring code of its own.
        yarn: put on the rope of the judge's model; None where that is another model than the policy.
        lifeline: how long this process lives without its driver.
        secrets: environment that this process needs and others must not have; see `curriculum.secrets`.
    """

    def __init__(
        self,
        *,
        name: str,
        config: RewardConfig,
        policy_path: str,
        on_gpu: bool,
        trust_remote_code: bool,
        yarn: YarnConfig | None = None,
        secrets: Mapping[str, str],
        lifeline: Lifeline | None = None,
    ) -> None:
        self._name = name
        os.environ.update(secrets)
        self._pulse = Pulse(lifeline)
        self._prompt = ChatPrompt(load_tokenizer(policy_path, trust_remote_code=trust_remote_code))
        self._judge = open_judge(config.judge, on_gpu=on_gpu, yarn=yarn)
        self._scorer = HybridScorer(config, self._judge)

    def __repr__(self) -> str:
        return getattr(self, "_name", "judge")

    async def ready(self) -> int:
        """Return the process id, once the judge can answer."""
        return os.getpid()

    async def heartbeat(self) -> Heartbeat:
        """Say what the judge does; if its engine died, this process ends."""
        node_id = ray.get_runtime_context().get_node_id()
        if isinstance(self._judge, VllmJudgeEngine):
            return self._judge.beat(self._pulse, node_id)
        return self._pulse.beat(node_id)

    async def check_for_junk(self) -> None:
        """Raise a `UserError` where the rewards pay for junk."""
        await check_for_junk(self._scorer)

    async def score_group(self, group: Group) -> tuple[Score, ...]:
        """Return the [G] scores of the answers, in their order.

        An answer that was cut by the engine is unknown and no judge is asked: how busy a machine was must not change
        a reward.
        """
        whole = [trajectory for trajectory in group.trajectories if not trajectory.finish_reason.is_cut]
        scores = await self._scorer.score_group(
            data_source=group.task.data_source,
            question=group.task.question,
            answers=group.task.answers,
            responses=[self._prompt.decode(trajectory.response_ids.tolist()) for trajectory in whole],
            num_tokens=[len(trajectory.response_ids) for trajectory in whole],
            max_response_tokens=group.max_response_tokens,
        )
        remaining = iter(scores)
        return tuple(
            _unknown(trajectory.finish_reason) if trajectory.finish_reason.is_cut else next(remaining)
            for trajectory in group.trajectories
        )

    async def drain_events(self) -> list[JudgeEvent]:
        """Return the changes of the judge's circuit breaker since the last call."""
        return [] if self._judge is None else self._judge.drain_events()


def _unknown(reason: FinishReason) -> Score:
    text = f"cut before its end: {reason}"
    return Score(answer=None, rule=0.0, judge=None, accuracy=None, reward=None, reason=text)
