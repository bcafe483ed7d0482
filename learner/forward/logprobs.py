"""Log-probabilities of the response tokens, and the gradient through them, without ever holding all logits.

The LM head runs only on the positions that predict a response token, in tiles of tokens. The loss of a token depends on
its log-probability and entropy alone, so the gradient of a tile can be computed as soon as these two are known: the
logits are computed once, turned into the gradient in place and discarded. Forward and backward take three matrix
products, one less than computing the logits again; the memory beside the gradients themselves does not grow with the
number of tokens. Logits are in fp32, also for bf16 weights, and so is the sum of the gradient of the head over the
tiles.

Suffixes: `_N` response tokens, `_H` hidden width, `_V` vocabulary, `_n` tokens of one tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

MAX_TILE_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Logits of one tile, which is held twice: 32 MiB in fp32 keep a CPU busy, 256 MiB (441 tokens of a vocabulary of
152K) a GPU."""
VOCABULARY_BLOCK = 1 << 14
"""Rows of a bf16 head that are converted to fp32 at once, or whose gradient is."""
NUCLEUS_CANDIDATES = 1024
"""Most likely tokens searched first for the nucleus; the whole vocabulary is sorted only where they do not fill it."""


_linalg: Any = torch.linalg  # torch declares vecdot without types


class TokenScores(NamedTuple):
    """Scores of the response tokens of a micro-batch under the policy, in fp32, without gradient."""

    logprobs_N: Tensor
    """[N] log-probability (nats) of each token after temperature, under the whole distribution."""
    entropy_N: Tensor
    """[N] entropy (nats) of the distribution each token was drawn from, after temperature."""
    hits_N: Tensor
    """[N] 1.0 where the token is the most likely one, else 0.0."""
    log_nucleus_N: Tensor
    """[N] log of the probability mass (nats, at most 0) of the policy's own nucleus at the sampler's top-p."""
    inside_N: Tensor
    """[N] 1.0 where the token lies in the policy's own nucleus, so that the sampler could have drawn it, else 0.0."""
    spread_N: Tensor
    """[N] standard deviation of the logits over the vocabulary, after temperature (nats)."""

    @property
    def scale_N(self) -> Tensor:
        """[N] what rounding changes the log-probability of each token in proportion to, see `learner.rounding`."""
        return self.spread_N * -torch.expm1(self.logprobs_N)


class TokenLoss(Protocol):
    """The loss as a function of the tokens of one tile."""

    def __call__(self, tokens: slice, scores: TokenScores) -> Tensor:
        """Return the weighted loss of each token; differentiable in `scores.logprobs_N` and `scores.entropy_N`.

        Args:
            tokens: which of the N tokens these are.
            scores: of these tokens.
        """
        ...


@runtime_checkable
class RowLoss(TokenLoss, Protocol):
    """A loss whose value at one token depends on other tokens of the row: it is shown all of them first.

    The head then computes the logits twice: four matrix products instead of three, but no second pass of the model.
    """

    def see_row(self, logprobs_N: Tensor) -> None:
        """Take [N] the log-probabilities of all tokens of the row held here, without gradient, before the first tile.

        Every rank that shares the row makes this call at the same place, so it may be collective among them.
        """
        ...


class ResponseHead(nn.Module):
    """The LM head of a causal model, which computes the loss of the response tokens instead of logits.

    It replaces the model's own head and keeps its weight, tied or not, under the same name. ZeRO-3 gathers the weight
    once per call, whatever the number of tiles, so ranks with different numbers of tokens stay in step.
    """

    def __init__(self, weight_VH: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VH

    def forward(
        self, hidden_NH: Tensor, labels_N: Tensor, temperature_N: Tensor, top_p_N: Tensor | None, loss: TokenLoss | None
    ) -> tuple[Tensor, ...]:
        """Return the loss and the columns of `TokenScores`, see `token_loss`; without a loss, zero and the columns.

        One flat tuple, because DeepSpeed's hooks find tensors on the first level only.
        """
        if loss is None:
            scores = score_tokens(hidden_NH, self.weight, labels_N, temperature_N, top_p_N)
            return hidden_NH.new_zeros((), dtype=torch.float32), *scores
        total, scores = token_loss(hidden_NH, self.weight, labels_N, temperature_N, loss, top_p_N)
        return total, *scores


def score_tokens(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    labels_N: Tensor,
    temperature_N: Tensor,
    top_p_N: Tensor | None = None,
    *,
    max_tile_logits: int | None = None,
) -> TokenScores:
    """Score each label under softmax(hidden @ weight.T / temperature), without gradient.

    Args:
        hidden_NH: last hidden state at the position before each label.
        weight_VH: weight of the LM head.
        labels_N: int64 token ids.
        temperature_N: fp32 sampling temperature of each token.
        top_p_N: fp32 nucleus of the sampler; None where it kept the whole distribution, which saves a search.
        max_tile_logits: bound on tokens times vocabulary of one tile; None for that of the device.
    """
    with torch.no_grad():
        tiles = [
            _score_tile(
                hidden_NH[n], weight_VH, labels_N[n], temperature_N[n], None if top_p_N is None else top_p_N[n]
            )[0]
            for n in _tiles(len(labels_N), weight_VH, max_tile_logits)
        ]
    return _joined(tiles)


def token_loss(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    labels_N: Tensor,
    temperature_N: Tensor,
    loss: TokenLoss,
    top_p_N: Tensor | None = None,
    *,
    max_tile_logits: int | None = None,
) -> tuple[Tensor, TokenScores]:
    """Sum a loss over the tokens, and score them.

    Args:
        hidden_NH: last hidden state at the position before each label.
        weight_VH: weight of the LM head.
        labels_N: int64 token ids.
        temperature_N: fp32 sampling temperature of each token.
        loss: of the tokens of each tile.
        top_p_N: fp32 nucleus of the sampler; None where it kept the whole distribution, which saves a search.
        max_tile_logits: bound on tokens times vocabulary of one tile; None for that of the device.

    Returns:
        the sum, an fp32 scalar whose gradient for hidden states and weight is already computed, and the scores.
    """
    if isinstance(loss, RowLoss):
        seen = score_tokens(hidden_NH, weight_VH, labels_N, temperature_N, max_tile_logits=max_tile_logits)
        loss.see_row(seen.logprobs_N)
    tiles = list(_tiles(len(labels_N), weight_VH, max_tile_logits))
    if not torch.is_grad_enabled():
        scores = score_tokens(hidden_NH, weight_VH, labels_N, temperature_N, top_p_N, max_tile_logits=max_tile_logits)
        return torch.stack([loss(n, _part(scores, n)).sum() for n in tiles]).sum(), scores
    function: Any = _TiledLoss
    total, *columns = function.apply(hidden_NH, weight_VH, labels_N, temperature_N, top_p_N, loss, tiles)
    return total, TokenScores(*columns)


class _TiledLoss(torch.autograd.Function):
    """Loss, scores and gradients in one pass over the tiles, as the docstring of the module describes it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        labels_N: Tensor,
        temperature_N: Tensor,
        top_p_N: Tensor | None,
        loss: TokenLoss,
        tiles: list[slice],
    ) -> tuple[Tensor, ...]:
        grad_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        grad_VH = torch.zeros_like(weight_VH, dtype=_accumulator(weight_VH.dtype)) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float64, device=hidden_NH.device)
        columns: list[TokenScores] = []
        for n in tiles:
            top_p_n = None if top_p_N is None else top_p_N[n]
            scores, logprobs_nV, probs_nV = _score_tile(hidden_NH[n], weight_VH, labels_N[n], temperature_N[n], top_p_n)
            terms_n, wrt_logprob_n, wrt_entropy_n = _loss_and_slopes(loss, n, scores)
            total += terms_n.sum()
            columns.append(scores)
            grad_nV = _logit_gradient(logprobs_nV, probs_nV, scores, labels_N[n], wrt_logprob_n, wrt_entropy_n)
            grad_nV.div_(temperature_N[n, None])
            if grad_NH is not None:
                torch.mm(grad_nV.to(weight_VH.dtype), weight_VH, out=grad_NH[n])
            if grad_VH is not None:
                _add_product(grad_VH, grad_nV, hidden_NH[n])
        ctx.save_for_backward(grad_NH, None if grad_VH is None else grad_VH.to(weight_VH.dtype))
        scores = _joined(columns)
        ctx.mark_non_differentiable(*scores)
        return total.float(), *scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_NH, grad_VH = (None if x is None else x.mul_(grad.to(x.dtype)) for x in ctx.saved_tensors)
        return grad_NH, grad_VH, None, None, None, None, None


def _score_tile(
    hidden_nH: Tensor, weight_VH: Tensor, labels_n: Tensor, temperature_n: Tensor, top_p_n: Tensor | None
) -> tuple[TokenScores, Tensor, Tensor]:
    """Return the scores of a tile, and log-probabilities and probabilities [n, V], from which the gradient is made."""
    logits_nV = _logits(hidden_nH, weight_VH).div_(temperature_n[:, None])
    logprobs_nV = logits_nV.log_softmax(dim=-1)
    probs_nV = torch.exp(logprobs_nV, out=logits_nV)
    label_n = labels_n[:, None]
    zeros_n = torch.zeros_like(temperature_n)
    log_nucleus_n, inside_n = zeros_n, zeros_n + 1
    if top_p_n is not None:
        log_nucleus_n, inside_n = _nucleus(probs_nV, probs_nV.gather(1, label_n), top_p_n)
    scores = TokenScores(
        logprobs_N=logprobs_nV.gather(1, label_n).squeeze(1),
        entropy_N=-_linalg.vecdot(probs_nV, logprobs_nV),
        hits_N=(logprobs_nV.argmax(dim=-1) == labels_n).to(temperature_n.dtype),
        log_nucleus_N=log_nucleus_n,
        inside_N=inside_n,
        spread_N=_spread(logprobs_nV),
    )
    return scores, logprobs_nV, probs_nV


def _logits(hidden_nH: Tensor, weight_VH: Tensor) -> Tensor:
    """Return [n, V] hidden_nH @ weight_VH.T in the dtype of its sums: rounded to bf16, a logit of 20 moves by 1/16."""
    dtype = _accumulator(weight_VH.dtype)
    if weight_VH.dtype == dtype:
        return nn.functional.linear(hidden_nH, weight_VH)
    if weight_VH.device.type != "cpu":
        return torch.mm(hidden_nH, weight_VH.T, out_dtype=dtype)
    logits_nV = torch.empty(len(hidden_nH), len(weight_VH), dtype=dtype)
    wide_nH = hidden_nH.to(dtype)
    for start in range(0, len(weight_VH), VOCABULARY_BLOCK):
        block = slice(start, start + VOCABULARY_BLOCK)
        torch.mm(wide_nH, weight_VH[block].to(dtype).T, out=logits_nV[:, block])
    return logits_nV


def _loss_and_slopes(loss: TokenLoss, n: slice, scores: TokenScores) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss of the tokens, and its derivatives with respect to their log-probability and entropy.

    A derivative is None where the loss does not depend on that column.
    """
    with torch.enable_grad():
        logprobs_n = scores.logprobs_N.detach().requires_grad_()
        entropy_n = scores.entropy_N.detach().requires_grad_()
        terms_n = loss(n, scores._replace(logprobs_N=logprobs_n, entropy_N=entropy_n))
        if not terms_n.requires_grad:
            return terms_n, None, None
        wrt_logprob_n, wrt_entropy_n = torch.autograd.grad(terms_n.sum(), (logprobs_n, entropy_n), allow_unused=True)
    return terms_n.detach(), wrt_logprob_n, wrt_entropy_n


def _logit_gradient(
    logprobs_nV: Tensor,
    probs_nV: Tensor,
    scores: TokenScores,
    labels_n: Tensor,
    wrt_logprob_n: Tensor | None,
    wrt_entropy_n: Tensor | None,
) -> Tensor:
    """Return the gradient with respect to z = logits / temperature, in the memory of `probs_nV`.

    d logp(label) / d z = onehot - p,  d entropy / d z = -p (log p + entropy).
    """
    factor_nV = None
    if wrt_entropy_n is not None:
        factor_nV = logprobs_nV.add_(scores.entropy_N[:, None]).mul_(-wrt_entropy_n[:, None])
    if wrt_logprob_n is None:
        return probs_nV.mul_(0.0 if factor_nV is None else factor_nV)
    if factor_nV is None:
        probs_nV.mul_(-wrt_logprob_n[:, None])
    else:
        probs_nV.mul_(factor_nV.sub_(wrt_logprob_n[:, None]))
    return probs_nV.scatter_add_(1, labels_n[:, None], wrt_logprob_n[:, None].to(probs_nV.dtype))


def _add_product(grad_VH: Tensor, grad_nV: Tensor, hidden_nH: Tensor) -> None:
    """Add grad_nV.T @ hidden_nH to `grad_VH`, in its dtype.

    A GPU multiplies in the type of the model: there the gradient of each logit is rounded to it, the sums are not.
    """
    if hidden_nH.dtype == grad_VH.dtype:
        grad_VH.addmm_(grad_nV.T, hidden_nH)
        return
    wide_nH = hidden_nH.to(grad_VH.dtype) if hidden_nH.device.type == "cpu" else None
    for start in range(0, grad_VH.shape[0], VOCABULARY_BLOCK):
        block = slice(start, start + VOCABULARY_BLOCK)
        if wide_nH is not None:
            grad_VH[block].addmm_(grad_nV[:, block].T, wide_nH)
        else:
            narrow = grad_nV[:, block].to(hidden_nH.dtype)
            grad_VH[block] += torch.mm(narrow.T, hidden_nH, out_dtype=grad_VH.dtype)


def _nucleus(probs_nV: Tensor, label_probs_n1: Tensor, top_p_n: Tensor) -> tuple[Tensor, Tensor]:
    """Return [n] the log mass of the smallest set of most likely tokens that reaches top-p, and if the label is in it.

    A token is in the set while the mass of the more likely ones is below top-p, as in vLLM's sampler.
    """
    above_n = torch.where(probs_nV > label_probs_n1, probs_nV, 0.0).sum(dim=-1)
    count = min(NUCLEUS_CANDIDATES, probs_nV.shape[1])
    best_nk = probs_nV.topk(count, dim=-1).values
    if count < probs_nV.shape[1] and bool((best_nk.sum(dim=-1) < top_p_n).any()):
        best_nk = probs_nV.sort(dim=-1, descending=True).values
    before_nk = best_nk.cumsum(dim=-1) - best_nk
    mass_n = torch.where(before_nk < top_p_n[:, None], best_nk, 0.0).sum(dim=-1)
    return mass_n.clamp(max=1.0).log(), (above_n < top_p_n).to(top_p_n.dtype)


def _spread(logprobs_nV: Tensor) -> Tensor:
    """Return [n] the standard deviation over the vocabulary; it is that of the logits."""
    squares_n = _linalg.vecdot(logprobs_nV, logprobs_nV) / logprobs_nV.shape[1]
    return (squares_n - logprobs_nV.mean(dim=-1).square()).clamp(min=0).sqrt()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums are computed: fp32, or fp64 for a model in fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _tiles(num_tokens: int, weight_VH: Tensor, max_tile_logits: int | None) -> Iterator[slice]:
    """Yield the tiles, at least one, which may be empty: a rank without tokens still has to gather the weight."""
    kind = "cpu" if weight_VH.device.type == "cpu" else "cuda"
    bound = MAX_TILE_LOGITS[kind] if max_tile_logits is None else max_tile_logits
    size = max(1, bound // weight_VH.shape[0])
    for start in range(0, max(num_tokens, 1), size):
        yield slice(start, min(start + size, num_tokens))


def _part(scores: TokenScores, n: slice) -> TokenScores:
    return TokenScores(*(column[n] for column in scores))


def _joined(tiles: list[TokenScores]) -> TokenScores:
    return TokenScores(*(torch.cat(columns) for columns in zip(*tiles, strict=True)))
