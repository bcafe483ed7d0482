"""The one client of OpenAI-compatible endpoints: bounded in time and attempts, and wary of what it gets back."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar, cast

from curriculum.errors import UserError, library_words
from curriculum.secrets import endpoint_key
from reward.circuit import CircuitBreaker
from reward.config import MAX_BACKOFF_S, MAX_RETRIES
from reward.endpoint_url import checked_url

API_KEY_ENV = "OPENAI_API_KEY"
FIRST_BACKOFF_S = 0.5
"""Pause before the second attempt; it doubles with every further one."""
LISTING_TIMEOUT_S = 10.0
"""Longest wait for the list of models of an endpoint."""
MAX_MESSAGE_CHARS = 200
"""Characters that are kept of what a server says about an error."""
MAX_NAME_CHARS = 300
"""Longest name of a model that an endpoint lists."""
_RATE_LIMITED = 429
_RETRIED_STATUS = frozenset({408, 409, 425, _RATE_LIMITED})
_ABOUT_THE_REQUEST = frozenset({400, 413, 422})
"""Refusals of one request by an endpoint that works."""

_T = TypeVar("_T")


class NoReplyError(Exception):
    """A request got no reply that can be used; others may."""


class BadReplyError(ValueError):
    """The endpoint answered with something that is no chat completion."""


class ChatEndpoint:
    """Sends chats to an endpoint and reads the completions.

    Consumes: requests, at most `max_concurrency` at a time.  Waits for: a reply, at most `timeout_s` per attempt.
    Unblocked by: a reply, the end of the retries, or the circuit breaker, which refuses every attempt while it is open.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        timeout_s: float,
        api_key_env: str = API_KEY_ENV,
        max_retries: int = MAX_RETRIES,
        max_backoff_s: float = MAX_BACKOFF_S,
        max_concurrency: int | None = None,
        circuit: CircuitBreaker | None = None,
        request_fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the client; no request is sent yet.

        Args:
            base_url: root of the API, as `endpoint_root` gives it.
            model: name of the model behind it.
            timeout_s: longest wait for one reply.
            api_key_env: environment variable that holds the key; endpoints without one ignore it.
            max_retries: further attempts after a failed one.
            max_backoff_s: longest pause between two attempts.
            max_concurrency: attempts under way at once; None where the caller limits them.
            circuit: is told of every attempt, and may refuse the next one.
            request_fields: sent with every request beside its own fields.

        Raises:
            UserError: the user has not allowed that variable to be sent; see `curriculum.secrets`.
        """
        from openai import AsyncOpenAI

        self._model = model
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._max_backoff_s = max_backoff_s
        self._slots = nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
        self._circuit = circuit
        self._request_fields = dict(request_fields or {})
        self._has_answered = False
        client: Any = AsyncOpenAI
        self._client = client(base_url=base_url, api_key=_key(api_key_env), timeout=timeout_s, max_retries=0)

    async def ask(self, messages: Sequence[Mapping[str, str]], read: Callable[[Any], _T], /, **parameters: Any) -> _T:
        """Send a chat until there is a reply that `read` accepts.

        Args:
            messages: `{role, content}` each.
            read: takes what it needs out of the JSON value of the completion; see `read_reply`.
            parameters: further fields of the request, such as temperature and max_tokens.

        Raises:
            NoReplyError: no attempt got one, or the circuit is open.
        """
        from openai import OpenAIError

        attempt = 0
        while True:
            is_last = attempt == self._max_retries
            try:
                async with self._slots:
                    return await self._attempt(messages, read, parameters, is_last=is_last)
            except (OpenAIError, OSError, ValueError) as error:  # TimeoutError is an OSError
                if is_last or not is_retried(error):
                    raise NoReplyError(failure_text(error)) from error
                pause_s = backoff_s(attempt, retry_after_s(error), longest_s=self._max_backoff_s)
            await asyncio.sleep(pause_s)
            attempt += 1

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _attempt(
        self, messages: Any, read: Callable[[Any], _T], parameters: Mapping[str, Any], *, is_last: bool
    ) -> _T:
        from openai import OpenAIError

        if self._circuit is not None and not self._circuit.admits():
            raise NoReplyError("the endpoint has failed too often and is not asked for a while")
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._client.chat.completions.with_raw_response.create(
                    model=self._model, messages=messages, extra_body=self._request_fields, **parameters
                )
                completion = read_reply(reply.http_response.text, read)
        except (OpenAIError, OSError, ValueError) as error:
            counts = is_outage(error, is_last=is_last, has_answered=self._has_answered)
            self._tell_circuit(failure_text(error) if counts else None)
            raise
        self._has_answered = True
        self._tell_circuit(None)
        return completion

    def _tell_circuit(self, failure: str | None) -> None:
        if self._circuit is None:
            return
        if failure is None:
            self._circuit.succeeded()
        else:
            self._circuit.failed(failure)


# ---- the retry rule: what follows from the error of an attempt


def is_retried(error: Exception) -> bool:
    """Return whether the same request may succeed a moment later."""
    status = _status(error)
    return status is None or status >= 500 or status in _RETRIED_STATUS


def is_outage(error: Exception, *, is_last: bool, has_answered: bool = True) -> bool:
    """Return whether an error counts against the endpoint.

    One that refuses a single request, or asks for a pause, works; a rate limit that outlasts all attempts does not, and
    neither does an endpoint that has refused every request: what they share is wrong.
    """
    status = _status(error)
    return is_last if status == _RATE_LIMITED else not (has_answered and status in _ABOUT_THE_REQUEST)


def is_refusal(error: BaseException | None) -> bool:
    """Return whether an endpoint understood a request and will refuse it again (a wrong key, argument or length)."""
    status = _status(error) if isinstance(error, Exception) else None
    return status is not None and 400 <= status < 500 and status not in _RETRIED_STATUS


def retry_after_s(error: Exception) -> float | None:
    """Return the pause that the endpoint asks for; a date or anything else is left to the exponential back-off."""
    response = getattr(error, "response", None)
    header = None if response is None else response.headers.get("retry-after")
    return float(header) if header and header.isascii() and header.isdigit() and len(header) < 10 else None


def backoff_s(attempt: int, retry_after_s: float | None, *, longest_s: float) -> float:
    """Return the pause after attempt 0, 1, …: what the endpoint asks for, else exponential with up to 25 % less."""
    if retry_after_s is not None:
        return min(retry_after_s, longest_s)
    return min(FIRST_BACKOFF_S * 2.0 ** min(attempt, 60), longest_s) * (1 - 0.25 * random.random())


def failure_text(error: Exception) -> str:
    """Return why an attempt has no reply, in one short line; a status comes with what the server says about it."""
    status = _status(error)
    if status is not None:
        message = _server_message(getattr(error, "body", None))
        return f"HTTP {status}: {message}" if message else f"HTTP {status}"
    if isinstance(error, BadReplyError):
        return str(error)
    return f"{type(error).__name__}: {library_words(error.__cause__ or error)}"


def _server_message(body: object) -> str:
    """Return the message in the body of an error, on one line."""
    fields = cast("Mapping[str, Any]", body) if isinstance(body, Mapping) else {"message": body}
    texts = [text for key in ("message", "detail", "error") if isinstance(text := fields.get(key), str)]
    return " ".join(texts[0].split())[:MAX_MESSAGE_CHARS] if texts else ""


def _status(error: Exception) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


# ---- replies, URLs, models


def read_reply(body: str, read: Callable[[Any], _T]) -> _T:
    """Return what `read` takes out of the JSON value of a body.

    Raises:
        BadReplyError: the body is HTML, broken JSON or JSON of another shape.
    """
    try:
        return read(json.loads(body))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise BadReplyError(f"the reply is no chat completion: {' '.join(body[:200].split())!r:.80}") from error


def text_of(message: Mapping[str, Any], key: str) -> str:
    """Return the text under a key of a message, "" where the model said nothing.

    Raises:
        TypeError: it holds something else than text.
    """
    text = message.get(key)
    if not isinstance(text, str | None):
        raise TypeError(f"{key} holds {type(text).__name__} instead of text")
    return text or ""


def is_url(text: str) -> bool:
    """Return whether an option names an endpoint."""
    return text.startswith(("http://", "https://"))


def endpoint_root(url: str) -> str:
    """Return the root of an OpenAI-compatible API: `/v1` where the URL has no path, and no path of a single method.

    Raises:
        UserError: the URL has no host, or cannot be read.
    """
    try:
        checked_url(url)
    except ValueError as error:
        raise UserError(f"{url}: {error}") from error
    url = url.rstrip("/").removesuffix("/chat/completions")
    return f"{url}/v1" if url.count("/") == 2 else url


def served_models(base_url: str) -> list[str]:
    """Return the names of the models that an endpoint serves.

    Raises:
        NoReplyError: it does not tell.
    """
    from openai import OpenAI, OpenAIError

    try:
        with OpenAI(base_url=base_url, api_key=_key(API_KEY_ENV), timeout=LISTING_TIMEOUT_S, max_retries=0) as client:
            names = [model.id for model in client.models.list().data]
    except (AttributeError, TypeError, LookupError) as error:
        raise NoReplyError("the reply is no list of models") from error
    except (OpenAIError, OSError, ValueError) as error:
        raise NoReplyError(failure_text(error)) from error
    if not all(_is_name(name) for name in names):
        raise NoReplyError("the reply lists models whose names are no names")
    return names


def _is_name(name: Any) -> bool:
    """Return whether an endpoint means a name: visible text, and not too much of it."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()


def _key(variable: str) -> str:
    return endpoint_key(variable) or "none"
