"""Models on the Hugging Face hub, or on another one that HF_ENDPOINT names; the token is that of HF_TOKEN."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curriculum.errors import RunFailed, UserError, library_words
from curriculum.hub import is_hub_id

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
"""Files of an earlier model in the repository that must not stay beside those of this one."""


class Hub:
    """A repository of the hub that models are uploaded to."""

    def __init__(self, name: str, *, private: bool) -> None:
        """Make the repository unless it is there, which shows whether this user may write to it.

        Raises:
            UserError: the name is none, or the hub refuses.
            RunFailed: the hub cannot be reached.
        """
        if not is_hub_id(name):
            raise UserError(f"--push {name!r}: is no name on the hub; give OWNER/NAME")
        import huggingface_hub

        hub: Any = huggingface_hub
        self._api = hub.HfApi()
        self._name = name
        with self._errors("nothing was written"):
            self._api.create_repo(name, private=private or None, exist_ok=True)

    def upload(self, folder: Path) -> str:
        """Upload the files of a folder as one commit; return the address of the repository.

        Raises:
            UserError: the hub refuses.
            RunFailed: the hub cannot be reached.
        """
        with self._errors(f"the model is in {folder}; upload it with: hf upload {self._name} {folder}"):
            self._api.upload_folder(
                repo_id=self._name,
                folder_path=folder,
                commit_message="Upload a model of qwenlong",
                delete_patterns=list(_WEIGHTS),
            )
        return f"{self._api.endpoint}/{self._name}"

    @contextmanager
    def _errors(self, done: str) -> Generator[None]:
        """Raise whatever the library raises in one line that says what is done already."""
        from huggingface_hub.errors import HfHubHTTPError

        name, endpoint = f"--push {self._name}", self._api.endpoint
        try:
            yield
        except Exception as error:  # the library and those below it raise types of their own
            refusal = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
            status = None if refusal is None else refusal.response.status_code
            if status == 401:
                text = f"{endpoint} knows no such user: set HF_TOKEN to a token that may write"
                raise UserError(f"{name}: {text}; {done}") from error
            if status in (403, 404):
                text = f"{endpoint} does not let this token write there: use another name, or a token with that right"
                raise UserError(f"{name}: {text}; {done}") from error
            if status is not None and status < 500:
                raise UserError(f"{name}: {endpoint} refuses ({library_words(refusal or error)}); {done}") from error
            reason = library_words(_causes(error)[-1])
            raise RunFailed(f"{name}: {endpoint} cannot be reached or failed ({reason}); {done}") from error


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and those that it comes from, the first one last."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain
