"""Which rank forwards which responses of which group, in which micro-batch.

Groups of a slice -> ranks -> micro-batches (one forward and backward pass each). Only the lengths are needed, so every
rank makes the same plan before any token is fetched.

A group beyond the token budget keeps its prompt whole: its responses go through every layer in batches (see
`learner.forward.layer_parts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PAIR_COST = 1 / 30_000
"""Cost of one query-key pair in units of one token through the linear layers. A layer of width h spends about 24 h^2
FLOPs on the token and 4 h on the pair, so 1 / 6h: this is h = 5120, the 14B and 32B models of the paper."""
MAX_TRADES = 100
"""Most moves or swaps of groups that balance the ranks."""


class Lengths(Protocol):
    """The lengths of a group, which planning needs; its tokens need not be there."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the shared prompt."""
        ...

    @property
    def response_tokens(self) -> tuple[int, ...]:
        """[G] tokens of each response."""
        ...


Responses = Mapping[int, tuple[int, ...]]
"""Index of a group in the planned slice -> indices of its responses that share one copy of the prompt, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """One row; without responses it is a placeholder that keeps the ranks in step."""

    responses: Responses
    batches: tuple[Responses, ...] = ()
    """The same responses in batches, where they do not fit at once; empty where the row is forwarded whole."""


PLACEHOLDER = RowPlan(responses={})
"""A row with weight zero; it is forwarded like any other."""

SlicePlan = tuple[tuple[RowPlan, ...], ...]
"""[num_ranks] rows of each rank, those with the highest cost first, equally many on every rank."""


def groups_of(plan: SlicePlan, rank: int) -> tuple[int, ...]:
    """Return the indices of the groups that the rank must hold, ascending; the others need not be fetched."""
    return tuple(sorted({group for row in plan[rank] for group in row.responses}))


def plan_slice(
    groups: Sequence[Lengths], *, num_ranks: int, max_tokens: int, pair_cost: float = PAIR_COST
) -> SlicePlan:
    """Plan the micro-batches of some groups; equal input gives an equal plan.

    Whole groups are assigned to the rank with the lowest cost so far, the most expensive group first; then the rank
    with the highest cost moves or swaps groups with the others as long as that lowers it.

    Args:
        groups: [N] the groups.
        num_ranks: data-parallel ranks.
        max_tokens: tokens of a micro-batch, prompts counted once; a larger group has its responses in batches.
        pair_cost: cost of a query-key pair relative to a token.

    Raises:
        ValueError: no groups; an empty prompt or response; a prompt with one response beyond `max_tokens`.
    """
    if not groups:
        raise ValueError("no groups to train on; skip the step")
    for index, group in enumerate(groups):
        _check_lengths(index, group, max_tokens)
    costs = {i: part_cost(group, range(len(group.response_tokens)), pair_cost) for i, group in enumerate(groups)}
    return _in_step([_pack_rank(own, groups, costs, max_tokens) for own in balance(costs, num_ranks)])


def unshare(plan: SlicePlan) -> SlicePlan:
    """Plan the same responses on the same ranks for the dense path: one row, with its own prompt, per response."""
    return _in_step(
        [
            [RowPlan(responses={group: (i,)}) for row in rank for group, own in row.responses.items() for i in own]
            for rank in plan
        ]
    )


def part_tokens(group: Lengths, responses: Iterable[int]) -> int:
    """Return the tokens of a row that holds the prompt once and these responses."""
    return group.prompt_tokens + sum(group.response_tokens[i] for i in responses)


def part_cost(group: Lengths, responses: Sequence[int], pair_cost: float) -> float:
    """Return the cost of the prompt once and these responses: linear layers plus the query-key pairs of attention."""
    prompt = group.prompt_tokens
    pairs = prompt * (prompt + 1) / 2
    for i in responses:
        length = group.response_tokens[i]
        pairs += length * prompt + length * (length + 1) / 2
    return part_tokens(group, responses) + pair_cost * pairs


def _check_lengths(index: int, group: Lengths, max_tokens: int) -> None:
    if group.prompt_tokens < 1 or not group.response_tokens or min(group.response_tokens) < 1:
        raise ValueError(
            f"group {index}: {group.prompt_tokens} prompt tokens and responses of {group.response_tokens} tokens; "
            "every prompt and response needs at least one token, leave the group out"
        )
    needed = group.prompt_tokens + max(group.response_tokens)
    if needed > max_tokens:
        raise ValueError(
            f"group {index}: a prompt of {group.prompt_tokens} tokens with its longest response makes {needed} tokens, "
            f"more than learner.max_tokens_per_microbatch={max_tokens}; raise it or shorten prompt and response limits"
        )


def _first_fit(items: Iterable[tuple[int, int]], capacity: int) -> list[list[int]]:
    """Place each item in the first bin with room for it; return the ids in each bin.

    Args:
        items: (id, size), in the order in which they are placed.
        capacity: of a bin.
    """
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


def balance(costs: Mapping[int, float], num_ranks: int) -> list[list[int]]:
    """Return the groups of each rank, so that the highest cost of a rank is low.

    The most expensive group first, each is assigned to the rank with the lowest cost so far; `_trade` follows.

    Args:
        costs: cost of each group, by its index.
        num_ranks: data-parallel ranks.
    """
    groups = sorted(costs, key=lambda i: (-costs[i], i))
    cost_N = np.array([costs[i] for i in groups])
    owner_N = np.empty(len(groups), np.int64)
    load_R = [0.0] * num_ranks
    for index, cost in enumerate(cost_N.tolist()):
        rank = min(range(num_ranks), key=load_R.__getitem__)
        owner_N[index] = rank
        load_R[rank] += cost
    _trade(cost_N, owner_N, np.array(load_R))
    assigned: list[list[int]] = [[] for _ in range(num_ranks)]
    for group, rank in zip(groups, owner_N.tolist(), strict=True):
        assigned[rank].append(group)
    return assigned


def _trade(cost_N: NDArray[np.float64], owner_N: NDArray[np.int64], load_R: NDArray[np.float64]) -> None:
    """Move or swap groups between the rank with the highest cost and others, as long as that lowers its cost.

    Each time, the trade is chosen after which the higher cost of its two ranks is lowest. Changes `owner_N` and
    `load_R` in place.

    Args:
        cost_N: cost of each group.
        owner_N: rank of each group.
        load_R: cost of each rank.
    """
    num_ranks = len(load_R)
    for _ in range(MAX_TRADES if num_ranks > 1 else 0):
        heaviest = int(load_R.argmax())
        mine = np.flatnonzero(owner_N == heaviest)
        theirs = np.flatnonzero(owner_N != heaviest)
        given = cost_N[mine, None]
        # columns: every group of another rank to swap with, then every rank to move to without a swap
        taken = np.concatenate((cost_N[theirs], np.zeros(num_ranks)))
        partner = np.concatenate((owner_N[theirs], np.arange(num_ranks)))
        worse = np.maximum(load_R[heaviest] - given + taken, load_R[partner] + given - taken)
        worse[:, partner == heaviest] = np.inf
        row, column = np.unravel_index(worse.argmin(), worse.shape)
        if worse[row, column] >= load_R[heaviest] * (1 - 1e-12):
            return
        gain = given[row, 0] - taken[column]
        other = int(partner[column])
        owner_N[mine[row]] = other
        if column < len(theirs):
            owner_N[theirs[column]] = heaviest
        load_R[heaviest] -= gain
        load_R[other] += gain


def _pack_rank(
    own: Sequence[int], groups: Sequence[Lengths], costs: Mapping[int, float], max_tokens: int
) -> list[RowPlan]:
    """Return the rows of one rank: those in batches first, then by falling cost, so that ranks wait little."""
    tokens = {i: groups[i].prompt_tokens + sum(groups[i].response_tokens) for i in own}
    order = sorted(own, key=lambda i: (-tokens[i], i))
    large = {i: _in_batches(i, groups[i], max_tokens) for i in order if tokens[i] > max_tokens}
    bins = _first_fit([(i, tokens[i]) for i in order if tokens[i] <= max_tokens], max_tokens)
    return [
        *[large[i] for i in sorted(large, key=lambda i: (-len(large[i].batches), -costs[i]))],
        *[
            RowPlan(responses={i: _all_responses(groups[i]) for i in members})
            for members in sorted(bins, key=lambda members: -sum(costs[i] for i in members))
        ],
    ]


def _in_batches(index: int, group: Lengths, max_tokens: int) -> RowPlan:
    """Plan the row of a group beyond the budget, with as few batches of responses as first-fit-decreasing finds."""
    order = sorted(range(len(group.response_tokens)), key=lambda i: (-group.response_tokens[i], i))
    bins = _first_fit([(i, group.response_tokens[i]) for i in order], max_tokens - group.prompt_tokens)
    batches = tuple({index: tuple(sorted(responses))} for responses in bins)
    return RowPlan(responses={index: _all_responses(group)}, batches=batches)


def _in_step(ranks: list[list[RowPlan]]) -> SlicePlan:
    """Pad the plan, so that every rank has equally many rows."""
    steps = max(len(rank) for rank in ranks)
    return tuple((*rank, *[PLACEHOLDER] * (steps - len(rank))) for rank in ranks)


def _all_responses(group: Lengths) -> tuple[int, ...]:
    return tuple(range(len(group.response_tokens)))
