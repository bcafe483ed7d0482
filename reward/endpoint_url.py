"""The address of an OpenAI-compatible API, checked where it is given rather than where it is first used."""

from __future__ import annotations

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field


def checked_url(url: str) -> str:
    """Return a URL that a client can open.

    Raises:
        ValueError: host or port are no host or port.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        if "[" in parts.netloc:
            ipaddress.ip_address(host or "")
        (host or "").encode("idna")
    except UnicodeError as error:
        raise ValueError("a part of its host is empty, too long or no name; give http://HOST:PORT/v1") from error
    except ValueError as error:
        raise ValueError(f"host or port cannot be read ({error}); give http://HOST:PORT/v1") from error
    if not host:
        raise ValueError("names no host; give http://HOST:PORT or https://HOST/PATH")
    return url


EndpointUrl = Annotated[str, Field(pattern=r"^https?://[^\s/]+[^\s]*$", max_length=2000), AfterValidator(checked_url)]
"""Root of an API, for example http://127.0.0.1:8000/v1."""
