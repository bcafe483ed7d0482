"""Secrets in the environment: which variables hold some, which of them may go to an endpoint, and who gets the rest."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from curriculum.errors import UserError

ENDPOINT_KEYS = ("OPENAI_API_KEY", "VLLM_API_KEY", "JUDGE_API_KEY")
"""Variables that a recipe may send to the endpoint that it names: keys that are made for an OpenAI-compatible endpoint
and for nothing else. Keys of clouds, hubs and other services are not among them, whatever a recipe calls for."""
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables that let a process read private models and data of the Hugging Face hub."""
ALLOWED = "QWENLONG_ALLOW_ENV"
"""Variable in which the user names further ones that may be sent to an endpoint, separated by commas."""

_OF_STORAGES = {
    **dict.fromkeys(("s3", "s3a"), ("AWS_",)),
    **dict.fromkeys(("gs", "gcs"), ("GOOGLE_", "GCP_")),
    **dict.fromkeys(("abfs", "abfss", "az"), ("AZURE_",)),
}
"""Beginnings of the variables with which the library of a storage logs in, by the scheme of its URLs."""

_SECRET_WORDS = re.compile(
    r"(^|_)(API)?(KEY|KEYS|TOKEN|TOKENS|SECRET|SECRETS|PASSWORD|PASSWD|PASSPHRASE|PAT|CREDENTIAL|CREDENTIALS)(_|$|\d)",
    re.IGNORECASE,
)
_SECRET_NAMES = re.compile(
    r"(AWS|AZURE|GCP|GOOGLE|GH|GITHUB|GITLAB)_|SSH_AUTH_SOCK$|NETRC$|\w*PASSWORD$", re.IGNORECASE
)
_RAY = re.compile(r"RAY_", re.IGNORECASE)
"""Ray's own variables, the token of its authentication among them: without them its processes cannot speak."""


def is_secret(name: str) -> bool:
    """Return whether the name of an environment variable says that it holds a key, token, password or the like."""
    return not _RAY.match(name) and bool(_SECRET_WORDS.search(name) or _SECRET_NAMES.match(name))


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without keys, tokens and passwords: for processes that several others use."""
    return {name: value for name, value in environment.items() if not is_secret(name)}


def blanked_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an empty value for every secret of an environment, and for the usual ones where they are not set.

    It is laid over the environment of an actor, which may come from a Ray that was started with secrets.
    """
    names = {*ENDPOINT_KEYS, *HUB_TOKENS, "WANDB_API_KEY", *filter(is_secret, environment)}
    return dict.fromkeys(sorted(names), "")


def endpoint_key(variable: str, *, name: str = "api_key_env") -> str | None:
    """Return the key that goes to an endpoint; None where the variable is not set.

    Args:
        variable: name of an environment variable, which may come from a stranger's recipe.
        name: recipe key that names it, for messages.

    Raises:
        UserError: the user has not allowed that variable to be sent.
    """
    allowed = (entry.strip() for entry in os.environ.get(ALLOWED, "").split(","))
    if variable not in ENDPOINT_KEYS and variable not in allowed:
        raise UserError(
            f"{name}={variable!r}: what that variable holds would be sent to the endpoint; if you want that, set "
            f"{ALLOWED}={variable}; {', '.join(ENDPOINT_KEYS)} need no permission"
        )
    return os.environ.get(variable) or None


def endpoint_secrets(variable: str, *, name: str = "api_key_env") -> dict[str, str]:
    """Return the environment of a process that asks an endpoint, and of nobody else; the rest is as `endpoint_key`."""
    key = endpoint_key(variable, name=name)
    return {} if key is None else {variable: key, ALLOWED: variable}


def hub_secrets(*models: str) -> dict[str, str]:
    """Return the environment of a process that loads these models: the token of the hub, unless all are folders."""
    if all(os.path.isdir(model) for model in models):
        return {}
    return {name: token for name in HUB_TOKENS if (token := os.environ.get(name))}


def storage_secrets(url: str | None) -> dict[str, str]:
    """Return the environment of a process that reads and writes a storage; nothing without one, or of other storages.

    What a node has itself is not replaced where this process has no such variable.
    """
    prefixes = _OF_STORAGES.get((url or "").partition("://")[0], ())
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


@contextmanager
def lent(secrets: Mapping[str, str]) -> Generator[None]:
    """Put secrets into the environment of a process that others use as well, for the length of a block."""
    before = {name: os.environ.get(name) for name in secrets}
    os.environ.update(secrets)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
