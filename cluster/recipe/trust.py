"""A recipe may come from a stranger: what it would do with the user's rights and keys needs the user's word."""

from __future__ import annotations

import os

from cluster.recipe.config import RunConfig
from curriculum.errors import UserError
from curriculum.secrets import endpoint_key
from reward.config import OpenAIJudge


def check_trust(config: RunConfig, *, remote_code: bool) -> None:
    """Check that the user has agreed to what a recipe asks for.

    Args:
        config: the recipe.
        remote_code: whether the user lets code run that comes with the model.

    Raises:
        UserError: the recipe runs such code, or sends a variable of the environment that the user has not allowed.
    """
    check_remote_code(config, trusted=remote_code)
    judge = config.reward.judge
    if isinstance(judge, OpenAIJudge):
        endpoint_key(judge.api_key_env, name="reward.judge.api_key_env")


def check_remote_code(config: RunConfig, *, trusted: bool) -> None:
    """Check that the user has agreed to running code that comes with the model.

    Raises:
        UserError: the recipe runs such code, and the user has not agreed.
    """
    if config.model.trust_remote_code and not trusted:
        raise UserError(
            f"model.trust_remote_code=True: code that comes with {config.model.path!r} would run with your rights; if "
            "you trust it, add --trust-remote-code, else set model.trust_remote_code=false"
        )


def key_destination(config: RunConfig) -> str | None:
    """Return one line that says which key goes where; None where none does."""
    judge = config.reward.judge
    if not isinstance(judge, OpenAIJudge) or not os.environ.get(judge.api_key_env):
        return None
    return f"{judge.base_url} gets the key in {judge.api_key_env}, and questions and answers to judge"
