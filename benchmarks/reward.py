"""The reward: speed of the rules, judge calls that are never made, and asking the judge all at once.

Three measurements, each of ours against the plain way:
* rule scores per second on one core, on responses of `--answer-tokens` tokens (thinking and answer);
* judge calls for groups of answers as a policy gives them: (a) every answer, (b) only what the rule rejects, (c) that
  behind the cache;
* wall time of those calls through the client of the product, against one call after another of the same endpoint: a
  local HTTP server that takes `--latency-ms` for each reply and serves any number at once, which stands for a judge
  with free capacity. The released code asks one call after another.

`--shapes FILE` measures instead which right and wrong answers the rules accept (`benchmarks.reward_shapes`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.line import Claim, environment, print_line, say
from benchmarks.reward_shapes import print_shapes
from reward.config import OpenAIJudge, RewardConfig, RuleSet
from reward.hybrid import HybridScorer
from reward.judge import CachingJudge
from reward.judge_endpoint import OpenAIJudgeClient
from reward.judge_prompt import JudgeQuestion
from reward.kind import AnswerKind
from reward.rules import apply_rules
from reward.score import Verdict

WORDS = "the revenue of city contract total company was paid in by and report shows amount section table year".split()
CHARS_PER_TOKEN = 4
"""English text through the Qwen tokenizer; only the length of the responses depends on it."""
ANSWERS_OF_KIND = {
    AnswerKind.TEXT: ("Vienna", ("Vienna", "the City of Vienna", "Wien", "Graz", "Linz")),
    AnswerKind.NUMERIC: ("37.5", ("37.5", "$37.5", "37.5 (in 2019)", "41.2", "about 40 or 41")),
    AnswerKind.CHOICE: ("C", ("C", "(C) the tenant", "the tenant", "B", "A or B")),
}
"""Truth, and answers as a policy gives them: right in the rule's form twice, right in another form, wrong twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOfAnswers:
    """The responses to one question."""

    kind: AnswerKind
    data_source: str
    question: str
    truth: str
    responses: tuple[str, ...]


class CountingJudge:
    """Says no; counts the questions it is asked."""

    def __init__(self) -> None:
        self.num_questions = 0

    async def judge(self, questions: Sequence[JudgeQuestion]) -> list[Verdict]:
        """No, to everything."""
        self.num_questions += len(questions)
        return [Verdict.NO] * len(questions)


def main() -> None:
    """Measures and prints the line."""
    options = _options()
    if options.shapes:
        print_shapes(options.shapes)
        return
    random_words = random.Random(options.seed)
    groups = [_group(random_words, index, options) for index in range(options.groups)]
    rates, seconds = _rule_rates(groups, options)
    say(f"rules: {min(rates.values()):.0f} scores/s")
    calls = asyncio.run(_judge_calls(groups))
    say(f"judge calls: {calls}")
    serial_s, batched_s, num_questions = asyncio.run(_serial_and_batched(options))
    say(f"judge: one after another {serial_s:.2f} s, together {batched_s:.2f} s")
    num_answers = sum(len(group.responses) for group in groups)
    claims = [
        Claim.at_least("rule scores per second on one core", round(min(rates.values())), "1/s", 5_000),
        Claim.above("judge calls saved by rule-first", 1 - calls["rule_first"] / num_answers, "share", 0),
        Claim.above("judge calls saved by the cache", 1 - calls["cached"] / calls["rule_first"], "share", 0),
        Claim.above("speed-up over serial calls of the same judge", serial_s / batched_s, "x", 1),
    ]
    detail = {
        **environment("openai", "pydantic"),
        "options": {name: value for name, value in vars(options).items() if name != "shapes"},
        "response_chars": len(groups[0].responses[0]),
        "rule_scores_per_s": {str(kind): round(rate) for kind, rate in rates.items()},
        "rule_seconds_of_repeats": {str(kind): [round(s, 4) for s in times] for kind, times in seconds.items()},
        "judge_calls": {"answers": num_answers, **calls},
        "answer_mix": "drawn evenly: two exact, one in another form, two wrong; the savings depend on this mix",
        "judge": "local HTTP server with a fixed latency and no other limit; the model behind it is not measured",
        "judge_questions": num_questions,
        "serial_s": round(serial_s, 4),
        "batched_s": round(batched_s, 4),
    }
    print_line("reward", claims, detail)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answer-tokens", type=int, default=10_000)
    parser.add_argument("--groups", type=int, default=96, help="questions, a third of each kind")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--questions", type=int, default=64, help="for the judge, serially and together")
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--max-concurrency", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shapes", type=Path, nargs="+", metavar="FILE", help="rows whose truths are written as answers"
    )
    return parser.parse_args()


def _group(rng: random.Random, index: int, options: argparse.Namespace) -> GroupOfAnswers:
    kind = list(AnswerKind)[index % len(AnswerKind)]
    truth, answers = ANSWERS_OF_KIND[kind]
    given = rng.choices(answers, k=options.group_size)
    return GroupOfAnswers(
        kind=kind,
        data_source={"text": "musique", "numeric": "docmath", "choice": "long_toc_choices"}[kind],
        question=f"question {index}?",
        truth=truth,
        responses=tuple(_response(rng, answer, options.answer_tokens * CHARS_PER_TOKEN) for answer in given),
    )


def _response(rng: random.Random, answer: str, num_chars: int) -> str:
    """Nine tenths thinking, one tenth answer."""
    text = " ".join(rng.choices(WORDS, k=num_chars // 4))[:num_chars]
    cut = num_chars * 9 // 10
    return f"<think>\n{text[:cut]}\n</think>\n\n{text[cut:]}\n\nTherefore, the answer is {answer}."


def _rule_rates(
    groups: Sequence[GroupOfAnswers], options: argparse.Namespace
) -> tuple[dict[AnswerKind, float], dict[AnswerKind, list[float]]]:
    """Scores per second of process time, best of the repeats, and the seconds of every repeat; by kind."""
    rates, seconds = {}, {}
    for kind in AnswerKind:
        mine = [group for group in groups if group.kind is kind]
        seconds[kind] = [_time_rules(mine) for _ in range(options.repeats)]
        rates[kind] = sum(len(group.responses) for group in mine) / min(seconds[kind])
    return rates, seconds


def _time_rules(groups: Sequence[GroupOfAnswers]) -> float:
    start = time.process_time()
    for group in groups:
        for response in group.responses:
            apply_rules(RuleSet.STRICT, group.kind, response, (group.truth,))
    return time.process_time() - start


async def _judge_calls(groups: Sequence[GroupOfAnswers]) -> dict[str, int]:
    """Questions that reach the judge: of the rejected answers, and of those behind the cache."""
    judge = CountingJudge()
    scorer = HybridScorer(RewardConfig(), judge)
    num_rejected = 0
    for group in groups:
        scores = await scorer.score_group(
            data_source=group.data_source,
            question=group.question,
            answers=(group.truth,),
            responses=group.responses,
            num_tokens=[0] * len(group.responses),
        )
        num_rejected += sum(score.judge is not None for score in scores)
    return {"rule_first": num_rejected, "cached": judge.num_questions}


async def _serial_and_batched(options: argparse.Namespace) -> tuple[float, float, int]:
    """(seconds one after another, seconds together, questions), through the same client and endpoint."""
    questions = [JudgeQuestion(question="?", answer=str(i), truth="x") for i in range(options.questions)]
    with _endpoint(options.latency_ms / 1000) as url:
        config = OpenAIJudge(base_url=url, model="stand-in", max_concurrency=options.max_concurrency)
        client = OpenAIJudgeClient(config)
        await client.judge(questions)  # opens the connections of both measurements
        start = time.monotonic()
        serial = [(await client.judge([question]))[0] for question in questions]
        serial_s = time.monotonic() - start
        start = time.monotonic()
        together = await CachingJudge(client, name=config.name).ask(questions)
        batched_s = time.monotonic() - start
        await client.close()
    if serial != [together[question] for question in questions] or set(serial) != {Verdict.NO}:
        raise RuntimeError("the endpoint failed; the times mean nothing")
    return serial_s, batched_s, len(questions)


@contextmanager
def _endpoint(latency_s: float) -> Iterator[str]:
    reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": "[[NO]]"}}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(latency_s)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(reply)}\r\n\r\n"
            self.wfile.write(head.encode() + reply)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


if __name__ == "__main__":
    main()
