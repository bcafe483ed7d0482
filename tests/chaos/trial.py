"""One run and what it has to suffer: struck, named, recovered, resumed where the command ended, and checked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.chaos.checks import differences
from tests.chaos.disk import SmallDisk
from tests.chaos.faults import Fault, Scene
from tests.chaos.nodes import TwoNodes
from tests.chaos.parts import Parts
from tests.harness.command import Command
from tests.harness.recipe import NUM_SFT_STEPS
from tests.harness.workshop import Run, Workshop

NAMED_S, RECOVERED_S, ENDED_S, SURVIVED_S = 60.0, 180.0, 90.0, 45.0
"""Longest waits (seconds): until a fault is named, until training goes on, until a command that must end has ended, and
until its last process is gone."""
STEPS_LEFT = 8
"""A fault needs so many steps to be noticed in; a run that has fewer left is let go to its end."""
POLL_S = 0.02
STEP_LINE = re.compile(r"^\S+ +\d+/\d+ ")


@dataclass(kw_only=True)
class Outcome:
    """What one fault led to."""

    fault: str
    lag: int
    step: int = 0
    """Steps that the run had written down."""
    named_s: float | None = None
    """Seconds until a line named it."""
    recovered_s: float | None = None
    """Seconds until a step after it was written down, with the resume where there was one."""
    repeated: int = 0
    """Steps that were trained again."""
    lost: int = 0
    """Groups that were given up."""
    said: str = ""
    """The line that named it."""
    problems: list[str] = field(default_factory=list)


class Unrecoverable(AssertionError):
    """The run cannot be continued."""


class Trial:
    """A run that suffers faults one after another."""

    def __init__(
        self,
        shop: Workshop,
        run: Run,
        recipe: dict[str, object],
        *,
        disk: SmallDisk,
        nodes: TwoNodes | None,
        rng: Random,
        num_steps: int,
    ) -> None:
        self.run = run
        self.problems: list[str] = []
        self._shop = shop
        self._disk = disk
        self._nodes = nodes
        self._rng = rng
        self._lag = int(recipe.get("rollout__max_policy_lag", 0))
        self._num_steps = num_steps
        self._checking_s = 0.0
        self._is_over = False
        """Whether the run has come to its end although a fault should have ended it."""
        self._sit(shop.join(nodes.address, run, **recipe) if nodes else shop.train(run, **recipe))
        self._wait(lambda: len(self._steps) > NUM_SFT_STEPS, 180, "first step of reinforcement learning")

    @property
    def has_room(self) -> bool:
        """Whether the run goes on for long enough to notice one more fault."""
        return not self._is_over and self._num_steps - (self._steps[-1] + 1) >= STEPS_LEFT

    def face(self, fault: Fault) -> Outcome:
        """Let the run train for a moment, strike, and measure until it trains again.

        Raises:
            Unrecoverable: not even a resume made it train again; the outcome is the argument.
        """
        outcome, self._checking_s = Outcome(fault=fault.name, lag=self._lag), 0.0
        try:
            self._let_train()
            before = self._steps
            outcome.step = len(before)
            mark, num_failed = len(self._command.output), self._failed
            scene = Scene(
                run=self.run,
                command=self._command,
                parts=self._parts,
                disk=self._disk,
                nodes=self._nodes,
                rng=self._rng,
            )
            struck = fault.strike(scene)
            if fault.ends and fault.undo is None:
                self._await_end(fault, outcome, struck, mark)
                self._is_over = self.run.exit_statuses[-1] == 0
                if not self._is_over:
                    pattern = fault.damage(self.run, self._rng) if fault.damage else None
                    self._resume(outcome, pattern)
            else:
                self._await_recovery(fault, outcome, scene, struck, mark)
        except AssertionError as error:
            outcome.problems.append(str(error))
            self._command.end()
            raise Unrecoverable(outcome) from error
        outcome.recovered_s = round(time.monotonic() - struck - self._checking_s, 1)
        outcome.repeated = self._num_repeated(len(before))
        outcome.lost = max(0, self._failed - num_failed)
        return outcome

    def finish(self, reference: Run | None) -> None:
        """Wait for the end of the run and check everything that it left."""
        if not self._is_over:
            self._wait(lambda: self._command.process.poll() is not None, RECOVERED_S, "end of the run")
            self._check_end(self.problems, (0,))
        self.problems += differences(self.run, reference)

    # ---- a strike

    def _let_train(self) -> None:
        wanted = len(self._steps) + self._rng.randint(1, 3)
        self._wait(lambda: len(self._steps) >= wanted, RECOVERED_S, "next step")
        time.sleep(self._rng.uniform(0, 0.3))

    def _await_recovery(self, fault: Fault, outcome: Outcome, scene: Scene, struck: float, mark: int) -> None:
        """Wait until the run has named the fault and trains again; resume it if it ended."""
        num_steps = len(self._steps)
        if fault.named_by:
            self._await_name(fault.named_by, outcome, struck, mark)
            num_steps = len(self._steps)
        if fault.undo:
            time.sleep(self._rng.uniform(0.5, 3))
            fault.undo(scene)
        self._wait(lambda: self._has_ended or len(self._steps) > num_steps, RECOVERED_S, "step after it", alive=False)
        if self._has_ended:
            if self._command.process.returncode not in fault.ends:
                outcome.problems.append(f"ended with {self._command.process.returncode}: {self._last_line}")
            self._check_end(outcome.problems, fault.ends or None)
            self._resume(outcome, None)

    def _await_end(self, fault: Fault, outcome: Outcome, struck: float, mark: int) -> None:
        if fault.named_by:
            self._await_name(fault.named_by, outcome, struck, mark)
        self._wait(lambda: self._has_ended, ENDED_S, "end of the command", alive=False)
        self._check_end(outcome.problems, fault.ends)

    def _await_name(self, pattern: str, outcome: Outcome, struck: float, mark: int) -> None:
        """Wait for a line, from character `mark` of what the command has said, that names the fault."""
        deadline = struck + NAMED_S
        while True:
            ended = self._has_ended
            if said := self._said(pattern, mark):
                outcome.named_s, outcome.said = round(time.monotonic() - struck, 1), said
                return
            if ended or time.monotonic() > deadline:
                when = "before it ended" if ended else f"within {NAMED_S:.0f} s"
                outcome.problems.append(f"not named {when} ({pattern}); the last line is: {self._last_line}")
                return
            self._parts.look()
            time.sleep(POLL_S)

    def _said(self, pattern: str, mark: int) -> str:
        lines = self._command.output[mark:].splitlines()
        return next((line for line in lines if re.search(pattern, line) and not STEP_LINE.match(line)), "")

    # ---- sittings

    def _sit(self, command: Command) -> None:
        self._command = command
        self._parts = Parts(command, self._rng, self._nodes)

    def _resume(self, outcome: Outcome, damage: str | None) -> None:
        """Go on from the last checkpoint; a damaged one must be named."""
        started, num_steps = time.monotonic(), len(self._steps)
        self._sit(self._shop.resume(self.run))
        if damage:
            self._await_name(damage, outcome, started, 0)
        self._wait(lambda: len(self._steps) > num_steps, RECOVERED_S, "step after the resume")

    def _check_end(self, problems: list[str], expected: tuple[int, ...] | None) -> None:
        started = time.monotonic()
        self._parts.look()
        self.run.finish(self._command)
        status = self.run.exit_statuses[-1]
        if expected is not None and status not in expected:
            problems.append(f"exit status {status} instead of {expected}: {self._last_line}")
        left = [*self.run.survivors[-1], *self._parts.survivors(SURVIVED_S)]
        problems += [f"left behind: {command}" for command in sorted({command[:80].strip() for command in left})]
        if "Traceback" in self._command.output:
            problems.append(f"a traceback in {self._command.log}")
        self._command.end()
        self._checking_s += time.monotonic() - started

    def _wait(self, found: Callable[[], object], timeout_s: float, what: str, *, alive: bool = True) -> None:
        deadline = time.monotonic() + timeout_s
        while not found():
            if time.monotonic() > deadline or (alive and self._has_ended):
                state = f"ended with {self._command.process.returncode}" if self._has_ended else "still there"
                raise AssertionError(f"no {what} in {timeout_s:.0f} s, {state}: {self._last_line}")
            self._parts.look()
            time.sleep(POLL_S)

    # ---- what the run says

    @property
    def _has_ended(self) -> bool:
        return self._command.process.poll() is not None

    @property
    def _steps(self) -> list[int]:
        return [line["step"] for line in self.run.metrics]

    def _num_repeated(self, since: int) -> int:
        """Steps that are trained again, as the first line from line `since` on shows that goes back."""
        steps = self._steps
        back = (steps[i - 1] + 1 - steps[i] for i in range(since, len(steps)))
        return next((number for number in back if number > 0), 0)

    @property
    def _failed(self) -> int:
        return max((line.get("ledger/failed", 0) for line in self.run.metrics), default=0)

    @property
    def _last_line(self) -> str:
        return next((line for line in reversed(self._command.output.splitlines()) if line.strip()), "(silence)")
