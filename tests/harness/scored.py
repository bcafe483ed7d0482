"""What the learner would report of a text, from plain logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.rounding import TextScores


def text_scores(logits_TV: Tensor, token_ids: Sequence[int]) -> TextScores:
    """Scores of the T tokens after the first; `logits_TV` are those at all T positions."""
    logits = logits_TV[:-1].double().cpu()
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None]).squeeze(1)
    scale = (logits.std(-1, correction=0) * (1 - logprobs.exp())).mean()
    return TextScores(logprobs=tuple(logprobs.tolist()), scale=scale.item())
