"""What tells a file from a damaged one: its size and its checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import xxhash

Block = bytes | memoryview
"""Consecutive bytes of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """What tells a file from a damaged one."""

    num_bytes: int
    xxh3: str
    """128 bits in hex; against accidents, not against forgery."""


Digests = Mapping[str, FileDigest]
"""By the path of a file inside its folder."""


def digest_blocks(blocks: Iterable[Block], on_block: Callable[[Block], object] = lambda _: None) -> FileDigest:
    """Return the digest of a file from its blocks, in their order; `on_block` gets each of them as well."""
    digest, num_bytes = xxhash.xxh3_128(), 0
    for block in blocks:
        on_block(block)
        digest.update(block)
        num_bytes += len(block)
    return FileDigest(num_bytes=num_bytes, xxh3=digest.hexdigest())
