"""Names of the Hugging Face hub."""

from __future__ import annotations


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a hub id, owner/name; asks no network."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name
