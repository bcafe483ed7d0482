"""A weight update as the loop sees it: it is sent, and delivered to every engine while the learner may go on.

What an engine loaded must equal what the learner sent, and the engine must compute the same with it; otherwise the run
stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol, TypeVar

from actors.weights.update import TensorRecord, WeightLoadError, WeightReceipt, WeightUpdate, WeightVersionError
from cluster.roles import SyncReport
from cluster.run.recovery import RestartFromCheckpoint
from curriculum.errors import RunFailed, root_cause
from learner.rounding import TextScores, largest_gap

Receipts = Mapping[str, WeightReceipt]
"""The receipt of every engine, by the name of its actor."""
_T = TypeVar("_T")


class WeightSyncError(RunFailed):
    """An engine does not hold the weights that the learner sent; training on its answers would be silently wrong."""


class EngineSilent(WeightSyncError, RestartFromCheckpoint):
    """An engine died or did not answer during an update that the others have, or have half of."""


class Engines(Protocol):
    """What a weight update needs of the rollout actors."""

    async def on_every_engine(self, call: Callable[[str, Any], Awaitable[Any]]) -> dict[str, Any]:
        """Run `call(name, handle)` on all live engines at once, again on those that restart meanwhile."""
        ...


class SendingLearner(Protocol):
    """What a weight update needs of the learner."""

    async def node_id(self) -> str:
        """Return Ray's id of the node of rank 0."""
        ...

    async def publish_weights(self, version: int) -> WeightUpdate:
        """Gather the weights where engines on rank 0's host can read them, and broadcast them if a group is open.

        When it returns, the ranks are free.

        Raises:
            WeightGroupError: the group did not take them.
        """
        ...

    async def put_weights(self, version: int, *, delta: bool, receiver: str = ...) -> Any:
        """Return a reference to an update that carries its values, or what changed against the version before.

        A call that the ranks work on is finished first; it is said that `receiver` waits for that.
        """
        ...

    async def open_weight_group(
        self, version: int, *, num_receivers: int, epoch: int, timeout_s: float
    ) -> WeightUpdate:
        """Broadcast every version from this one on to a new group; return the announcement for the first engine."""
        ...

    async def score(self, token_ids: Sequence[int]) -> TextScores:
        """Score the T tokens after the first."""
        ...


class Transport(Protocol):
    """A way to bring weights from the learner to all engines."""

    async def transfer(self, version: int) -> tuple[WeightUpdate, asyncio.Task[Receipts]]:
        """Send the learner's weights; return when its ranks are free.

        Returns:
            what was sent, and a task that ends with the receipts of all engines, each compared with what was sent.

        Raises:
            WeightSyncError: an engine, which it names, loaded something else, refused, or was late. The task may raise
                it as well.
        """
        ...

    async def restore(self, update: WeightUpdate, name: str, handle: Any) -> None:
        """Load what was sent last into an engine that has restarted, and check its receipt."""
        ...


class WeightSync:
    """Sends every version to every engine; at most one update is under way.

    Consumes: versions.  Waits for: the update before, then the learner's ranks while they gather; without overlap for
    the engines as well.  Unblocked by: the receipts of the engines.
    """

    def __init__(self, transport: Transport, probe: Probe, *, overlaps: bool) -> None:
        """Take transport and probe; `overlaps` tells whether the learner goes on while the engines load."""
        self._transport = transport
        self._probe = probe
        self._overlaps = overlaps
        self._receipts: asyncio.Task[Receipts] | None = None
        self._under_way: asyncio.Task[None] | None = None
        self._sent: WeightUpdate | None = None
        self._expected: TextScores | None = None
        """The learner's scores of the probe under the weights sent last; None without."""
        self.last: SyncReport | None = None
        """The latest update that has reached all engines."""
        self.on_delivered: Callable[[SyncReport], Awaitable[None]] | None = None
        """Called for every update that has reached all engines."""

    async def send(self, version: int) -> None:
        """Send the learner's weights; return when its ranks are free again, without overlap when all engines have them.

        Raises:
            WeightSyncError: an engine, which it names, loaded or computes something else, refused, or was late; in this
                update or in the one before.
            ActorLost: no engine is left.
        """
        await self.settle()
        started = time.monotonic()
        self._sent, self._receipts = await self._transport.transfer(version)
        self._expected = None  # an engine that restarts from here on must not be compared with older weights
        self._expected = await self._probe.score_by_learner()
        gather_s = time.monotonic() - started
        self._under_way = asyncio.create_task(self._arrive(self._sent, self._receipts, gather_s))
        if not self._overlaps:
            await self.settle()

    async def settle(self) -> None:
        """Wait until all engines have the update under way; raise the error if it failed."""
        if self._under_way is not None:
            await self._under_way
            self._under_way = None

    async def failure(self) -> None:
        """Wait for the update under way to fail, and raise its error; never return."""
        under_way = self._under_way
        if under_way is not None:
            await asyncio.wait({under_way})
            under_way.result()
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Give up the update under way."""
        tasks: list[asyncio.Task[Any]] = [task for task in (self._receipts, self._under_way) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def bring_up_to_date(self, name: str, handle: Any) -> None:
        """Send the current weights to an engine that restarted with those of the base model; checked like any update.

        Raises:
            WeightSyncError: the engine loaded or computes something else, refused, or was late.
        """
        if self._sent is None:
            return
        version, expected = self._sent.version, self._expected
        await self._transport.restore(self._sent, name, handle)
        if expected is not None:
            await self._probe.gap(version, expected, name, handle)

    async def _arrive(self, sent: WeightUpdate, receipts: asyncio.Task[Receipts], gather_s: float) -> None:
        started = time.monotonic()
        received = await receipts
        gaps = {} if self._expected is None else await self._probe.gaps(sent.version, self._expected)
        deliver_s = time.monotonic() - started
        self.last = SyncReport(
            version=sent.version,
            num_tensors=len(sent.tensors),
            num_bytes=sent.num_bytes,
            num_engines=len(received),
            seconds=gather_s + deliver_s,
            gather_s=gather_s,
            deliver_s=deliver_s,
            pause_s=max(receipt.pause_s for receipt in received.values()),
            probe_gap_max=max(gaps.values(), default=None),
            num_travelling_bytes=max(receipt.num_travelling_bytes for receipt in received.values()),
        )
        if self.on_delivered is not None:
            await self.on_delivered(self.last)


class Probe:
    """Tokens that learner and engines both score: a receipt shows what an engine loaded, the probe what it computes.

    Scoring reads tokens as a prompt. Every probed engine also samples some, and scores them again in that way.
    """

    def __init__(
        self,
        learner: SendingLearner,
        engines: Engines,
        *,
        token_ids: Sequence[int],
        every: int,
        dtypes: Collection[str],
        timeout_s: float,
    ) -> None:
        """Take both sides.

        Args:
            learner: its ranks.
            engines: the engines that are compared with it.
            token_ids: [T] tokens that both score.
            every: one in `every` updates is probed, beginning with the first.
            dtypes: of both sides; their rounding and the scale of the logits say how large a gap is accepted.
            timeout_s: longest wait for an engine.
        """
        self._learner = learner
        self._engines = engines
        self._token_ids = tuple(token_ids)
        self._every = every
        self._dtypes = tuple(dtypes)
        self._timeout_s = timeout_s
        self._num_updates = 0

    async def score_by_learner(self) -> TextScores | None:
        """Return the learner's scores of the tokens; None if this update is not probed."""
        is_due = self._num_updates % self._every == 0
        self._num_updates += 1
        return await self._learner.score(self._token_ids) if is_due else None

    async def gaps(self, version: int, expected: TextScores) -> dict[str, float]:
        """Compare every engine with the learner; return the mean gap (nats) of each by its name.

        Raises:
            WeightSyncError: an engine, which it names, computes something else or was late.
        """
        return await self._engines.on_every_engine(lambda name, handle: self.gap(version, expected, name, handle))

    async def gap(self, version: int, expected: TextScores, name: str, handle: Any) -> float:
        """Compare one engine with the learner, and its decoding with its own scores; return the larger mean gap (nats).

        Raises:
            WeightSyncError: the engine computes something else or was late.
        """
        asked, timeout_s = receipt_of(version), self._timeout_s
        scored = await in_time(name, asked, handle.score.remote(self._token_ids), timeout_s=timeout_s)
        gap = check_probe(expected, scored, engine=name, version=version, dtypes=self._dtypes)
        limit = largest_gap(expected.scale, *self._dtypes)
        decoded = await in_time(name, asked, handle.decoding_gap.remote(self._token_ids), timeout_s=timeout_s)
        return max(gap, check_decoding(decoded, engine=name, version=version, max_gap=limit))


async def in_time(name: str, expected: str, reply: Awaitable[_T], *, timeout_s: float) -> _T:
    """Await the reply of an engine; `expected` names it in errors.

    Raises:
        EngineSilent: the engine, which it names, is late.
        WeightSyncError: it cannot load what it was sent.
    """
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            return await reply
    except TimeoutError as error:
        raise EngineSilent(
            f"{name}: no {expected} after {time.monotonic() - started:.0f} s "
            f"(rollout.sync.timeout_s={timeout_s:g}); raise it or read the actor's log under logs/"
        ) from error
    except (WeightVersionError, WeightLoadError) as error:
        raise WeightSyncError(f"{name}: {root_cause(error)}") from error


def receipt_of(version: int) -> str:
    """Return the name of a receipt in errors."""
    return f"receipt for weight update {version}"


def check_receipt(sent: WeightUpdate, receipt: WeightReceipt, engine: str) -> None:
    """Compare version and tensors of a receipt with what was sent.

    Raises:
        WeightSyncError: they differ; it names the engine and the first difference.
    """
    difference = _difference(sent, receipt)
    if difference:
        raise WeightSyncError(f"{engine}: {difference} after the weight update; resume from the last checkpoint")


def check_probe(
    learner: TextScores, engine_logprobs: Sequence[float], *, engine: str, version: int, dtypes: Collection[str]
) -> float:
    """Compare the scores of the same tokens under the same weights; return the mean gap (nats).

    Args:
        learner: scores of the learner.
        engine_logprobs: [T - 1] of the engine.
        engine: its name, for the error.
        version: of the weights.
        dtypes: of both sides.

    Raises:
        WeightSyncError: the gap is too large; it names the engine and both means.
    """
    pairs = list(zip(learner.logprobs, engine_logprobs, strict=True))
    max_gap = largest_gap(learner.scale, *dtypes)
    gap = fmean(abs(ours - theirs) for ours, theirs in pairs)
    if not gap <= max_gap:  # NaN included
        raise WeightSyncError(
            f"{engine}: after weight update {version} its mean log-probability of the probe is "
            f"{fmean(engine_logprobs):.4f} nats, the learner's {fmean(learner.logprobs):.4f}; the mean difference "
            f"{gap:.2e} is above {max_gap:.1e}, which rounding could explain. Every tensor arrived as it was sent, so "
            "the engine computes with other values than it loaded, for example a stale packed copy; resume from the "
            "last checkpoint"
        )
    return gap


def check_decoding(gap: float, *, engine: str, version: int, max_gap: float) -> float:
    """Check the mean gap (nats) between sampled tokens and the same tokens as a prompt; return it.

    Args:
        gap: of one engine, by itself.
        engine: its name, for the error.
        version: of the weights.
        max_gap: largest mean absolute difference (nats) that is accepted.

    Raises:
        WeightSyncError: the gap is too large.
    """
    if not gap <= max_gap:  # NaN included
        raise WeightSyncError(
            f"{engine}: after weight update {version} the tokens that it samples have other log-probabilities than the "
            f"same tokens as a prompt, {gap:.2e} nats on average, above {max_gap:.0e}: what it reports is not what its "
            "model computes; set rollout.engine.enforce_eager=true, and resume from the last checkpoint"
        )
    return gap


def _difference(sent: WeightUpdate, receipt: WeightReceipt) -> str | None:
    if sent.version != receipt.version:
        return f"version={receipt.version}, but the learner sent version={sent.version},"
    ours = {tensor.name: tensor for tensor in sent.tensors}
    theirs = {tensor.name: tensor for tensor in receipt.tensors}
    missing, extra = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    changed = sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
    if missing:
        return f"{_some(missing)} missing"
    if extra:
        return f"{_some(extra)} unexpected (the learner did not send it)"
    if changed:
        return f"{_some(changed)} different from what the learner sent{_why(ours[changed[0]], theirs[changed[0]])}"
    return None


def _why(ours: TensorRecord, theirs: TensorRecord) -> str:
    for field in ("dtype", "shape", "num_bytes"):
        sent, received = getattr(ours, field), getattr(theirs, field)
        if sent != received:
            return f" ({field}={received} instead of {sent})"
    return " (other values)"


def _some(names: list[str]) -> str:
    """Return `tensor a is` or `tensor a and 3 others are`."""
    return f"tensor {names[0]} is" if len(names) == 1 else f"tensor {names[0]} and {len(names) - 1} others are"
