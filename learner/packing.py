"""Which rank forwards which responses of which group, in which micro-batch.

Groups -> mini-batches (one optimizer update each) -> ranks -> micro-batches (one forward and backward each). Only the
lengths are needed, so every rank, or the driver, makes the same plan before any token is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from learner.microbatch import GroupShape

PAIR_COST = 1 / 30_000
"""Cost of one query-key pair in units of one token through the linear layers. A layer of width h spends about 24 h^2
FLOPs on the token and 4 h on the pair, so 1 / 6h: this is h = 5120, the 14B and 32B models of the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPart:
    """Responses of one group that go through one micro-batch behind one copy of the prompt."""

    group: int
    """Index of the group in the batch that was planned."""
    responses: tuple[int, ...]
    """Indices of the responses within the group, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchPlan:
    """One row; without parts it is a placeholder that keeps the ranks in step."""

    parts: tuple[GroupPart, ...]
    num_tokens: int
    cost: float
    """In tokens through the linear layers, see `PAIR_COST`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatchPlan:
    """The groups of one optimizer update; their number is the normaliser of the loss."""

    groups: tuple[int, ...]
    ranks: tuple[tuple[MicroBatchPlan, ...], ...]
    """[num_ranks] micro-batches of each rank, heaviest first; equally many on every rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePlan:
    """A whole training step."""

    mini_batches: tuple[MiniBatchPlan, ...]

    def groups_of(self, rank: int) -> tuple[int, ...]:
        """Indices of the groups that the rank must hold, ascending; the others need not be fetched."""
        parts = (part for batch in self.mini_batches for micro in batch.ranks[rank] for part in micro.parts)
        return tuple(sorted({part.group for part in parts}))


def plan_update(
    shapes: Sequence[GroupShape],
    *,
    num_ranks: int,
    mini_batches: int,
    max_tokens: int,
    pair_cost: float = PAIR_COST,
) -> UpdatePlan:
    """Plan one training step; equal input gives an equal plan.

    The groups are cut into `mini_batches` consecutive runs whose sizes differ by at most one (fewer runs where there
    are fewer groups). Within a run, whole groups go to the rank with the least cost so far, heaviest first.

    Args:
        shapes: [N] lengths of the groups, in the order of the batch.
        num_ranks: data-parallel ranks.
        mini_batches: optimizer updates wanted.
        max_tokens: tokens of a micro-batch, prompts counted once; a larger group is split between its responses.
        pair_cost: cost of a query-key pair relative to a token.

    Raises:
        ValueError: no groups; an empty prompt or response; a prompt with one response beyond `max_tokens`.
    """
    if not shapes:
        raise ValueError("no groups to train on; skip the step")
    parts = [_split_group(index, shape, max_tokens) for index, shape in enumerate(shapes)]
    runs = _consecutive_runs(len(shapes), min(mini_batches, len(shapes)))
    plans = [_plan_run(run, shapes, parts, num_ranks, max_tokens, pair_cost) for run in runs]
    return UpdatePlan(mini_batches=tuple(plans))


def part_tokens(shape: GroupShape, responses: Iterable[int]) -> int:
    """Tokens of a row that holds the prompt once and these responses."""
    return shape.prompt_tokens + sum(shape.response_tokens[i] for i in responses)


def part_cost(shape: GroupShape, responses: Sequence[int], pair_cost: float) -> float:
    """Cost of the prompt once and these responses: linear layers plus the query-key pairs of causal attention."""
    prompt = shape.prompt_tokens
    pairs = prompt * (prompt + 1) / 2
    for i in responses:
        length = shape.response_tokens[i]
        pairs += length * prompt + length * (length + 1) / 2
    return part_tokens(shape, responses) + pair_cost * pairs


def _consecutive_runs(count: int, num_runs: int) -> list[range]:
    bounds = [count * i // num_runs for i in range(num_runs + 1)]
    return [range(start, end) for start, end in pairwise(bounds)]


def _split_group(index: int, shape: GroupShape, max_tokens: int) -> list[GroupPart]:
    """One part if the group fits, else as few as first-fit-decreasing finds, each with the prompt."""
    _check_shape(index, shape, max_tokens)
    if shape.total_tokens <= max_tokens:
        return [GroupPart(group=index, responses=tuple(range(len(shape.response_tokens))))]
    order = sorted(range(len(shape.response_tokens)), key=lambda i: (-shape.response_tokens[i], i))
    bins = _first_fit([(i, shape.response_tokens[i]) for i in order], max_tokens - shape.prompt_tokens)
    return [GroupPart(group=index, responses=tuple(sorted(responses))) for responses in bins]


def _check_shape(index: int, shape: GroupShape, max_tokens: int) -> None:
    if shape.prompt_tokens < 1 or not shape.response_tokens or min(shape.response_tokens) < 1:
        raise ValueError(
            f"group {index}: {shape.prompt_tokens} prompt tokens and responses of {shape.response_tokens} tokens; "
            "every prompt and response needs at least one token, leave the group out"
        )
    needed = shape.prompt_tokens + max(shape.response_tokens)
    if needed > max_tokens:
        raise ValueError(
            f"group {index}: a prompt of {shape.prompt_tokens} tokens with its longest response makes {needed} tokens, "
            f"more than learner.max_tokens_per_microbatch={max_tokens}; raise it or shorten prompt and response limits"
        )


def _first_fit(items: Iterable[tuple[int, int]], capacity: int) -> list[list[int]]:
    """Bins of item ids; items are (id, size) in the order in which they are placed."""
    bins: list[list[int]] = []
    room: list[int] = []
    for item, size in items:
        target = next((b for b, free in enumerate(room) if free >= size), None)
        if target is None:
            target = len(bins)
            bins.append([])
            room.append(capacity)
        bins[target].append(item)
        room[target] -= size
    return bins


def _plan_run(
    run: range,
    shapes: Sequence[GroupShape],
    parts: Sequence[list[GroupPart]],
    num_ranks: int,
    max_tokens: int,
    pair_cost: float,
) -> MiniBatchPlan:
    cost = {i: sum(part_cost(shapes[i], part.responses, pair_cost) for part in parts[i]) for i in run}
    ranks = [_pack_rank(groups, shapes, parts, max_tokens, pair_cost) for groups in _balance(cost, num_ranks)]
    steps = max(len(rank) for rank in ranks)
    return MiniBatchPlan(groups=tuple(run), ranks=tuple(_pad(rank, steps) for rank in ranks))


def _balance(cost: dict[int, float], num_ranks: int) -> list[list[int]]:
    """Groups of each rank: the heaviest group first, always to the rank with the least cost so far."""
    assigned: list[list[int]] = [[] for _ in range(num_ranks)]
    load = [0.0] * num_ranks
    for group in sorted(cost, key=lambda i: (-cost[i], i)):
        rank = min(range(num_ranks), key=load.__getitem__)
        assigned[rank].append(group)
        load[rank] += cost[group]
    return assigned


def _pack_rank(
    groups: Sequence[int],
    shapes: Sequence[GroupShape],
    parts: Sequence[list[GroupPart]],
    max_tokens: int,
    pair_cost: float,
) -> list[MicroBatchPlan]:
    """Micro-batches of one rank, heaviest first so that the ranks wait little for each other."""
    flat = [part for group in groups for part in parts[group]]
    sizes = [part_tokens(shapes[part.group], part.responses) for part in flat]
    order = sorted(range(len(flat)), key=lambda i: (-sizes[i], i))
    bins = _first_fit([(i, sizes[i]) for i in order], max_tokens)
    rows = [
        MicroBatchPlan(
            parts=tuple(flat[i] for i in row),
            num_tokens=sum(sizes[i] for i in row),
            cost=sum(part_cost(shapes[flat[i].group], flat[i].responses, pair_cost) for i in row),
        )
        for row in bins
    ]
    return sorted(rows, key=lambda row: -row.cost)


def _pad(rows: list[MicroBatchPlan], steps: int) -> tuple[MicroBatchPlan, ...]:
    empty = MicroBatchPlan(parts=(), num_tokens=0, cost=0.0)
    return (*rows, *[empty] * (steps - len(rows)))
