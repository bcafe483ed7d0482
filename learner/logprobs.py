"""Log-probabilities of the response tokens without ever holding all logits.

Suffixes: `_N` response tokens, `_H` hidden width, `_V` vocabulary. The LM head runs only on the positions that predict
a response token, in chunks; a chunk's logits are thrown away after use and computed again in the backward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_CHUNK_LOGITS = 1 << 26
"""Logits of one chunk: 256 MiB in fp32, 441 tokens of a vocabulary of 152K."""


class TokenScores(NamedTuple):
    """What the policy says about the response tokens of a micro-batch, in fp32."""

    logprobs_N: Tensor
    """[N] log-probability (nats) of each token after temperature, with gradient."""
    entropy_N: Tensor
    """[N] entropy (nats) of the distribution it was drawn from, after temperature, without gradient."""
    hits_N: Tensor
    """[N] 1.0 where the token is the most likely one, else 0.0."""


class ResponseHead(nn.Module):
    """The LM head of a causal model, turned from hidden states to token scores.

    It takes the place of the model's own head and keeps its (maybe tied) weight under the same name. ZeRO-3 gathers the
    weight once per call however many chunks follow, so ranks with different numbers of tokens stay in step.
    """

    def __init__(self, weight_VH: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VH

    def forward(self, hidden_NH: Tensor, labels_N: Tensor, temperature_N: Tensor) -> TokenScores:
        """Scores of `labels_N`; see `score_tokens`."""
        return score_tokens(hidden_NH, self.weight, labels_N, temperature_N)


def score_tokens(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    labels_N: Tensor,
    temperature_N: Tensor,
    *,
    max_chunk_logits: int = MAX_CHUNK_LOGITS,
) -> TokenScores:
    """Score each label under softmax(hidden @ weight.T / temperature).

    Args:
        hidden_NH: last hidden state at the position before each label.
        weight_VH: weight of the LM head.
        labels_N: int64 token ids.
        temperature_N: fp32 sampling temperature of each token.
        max_chunk_logits: bound on tokens times vocabulary of one chunk.
    """
    chunk = max(1, max_chunk_logits // weight_VH.shape[0])
    if len(labels_N) <= chunk:
        return TokenScores(*_score_chunk(hidden_NH, weight_VH, labels_N, temperature_N))
    pieces = [
        checkpoint(_score_chunk, hidden, weight_VH, labels, temperature, use_reentrant=False, preserve_rng_state=False)
        for hidden, labels, temperature in zip(
            hidden_NH.split(chunk), labels_N.split(chunk), temperature_N.split(chunk), strict=True
        )
    ]
    return TokenScores(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))


def _score_chunk(
    hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, temperature_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    logits_NV = nn.functional.linear(hidden_NH, weight_VH).float() / temperature_N[:, None]
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    logprobs_N = logprobs_NV.gather(1, labels_N[:, None]).squeeze(1)
    with torch.no_grad():
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)
        hits_N = (logprobs_NV.argmax(dim=-1) == labels_N).float()
    return logprobs_N, entropy_N, hits_N
