"""The part of a rank on a GPU that it shares with an engine: what it may take at work, and keep at rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from curriculum.errors import RunFailed

_torch: Any = torch  # where its declarations have no complete types

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShare:
    """Shares of the memory of a GPU, from 0 to 1."""

    at_work: float
    """While the engine sleeps: the most that torch's allocator hands out to this rank."""
    at_rest: float
    """While the engine samples: the most that this rank may hold."""

    def limit(self) -> None:
        """Hold torch's allocator to the share at work, on the current GPU; what is above it is out of memory."""
        _torch.cuda.set_per_process_memory_fraction(self.at_work)

    def check_at_rest(self, device: torch.device) -> None:
        """Check what torch's allocator holds of the GPU after it has emptied its cache; errors as in `check_rest`."""
        self.check_rest(torch.cuda.memory_reserved(device), _torch.cuda.get_device_properties(device).total_memory)

    def check_rest(self, held_bytes: int, total_bytes: int) -> None:
        """Check the bytes that a rank holds at rest, of those of its GPU.

        Raises:
            RunFailed: the engine would not find its share free.
        """
        if held_bytes > self.at_rest * total_bytes:
            too_much = held_bytes / total_bytes - self.at_rest
            raise RunFailed(
                f"the learner holds {held_bytes / GIB:.1f} GiB of its GPU between two steps, but "
                f"rollout.engine.gpu_memory_utilization leaves it {self.at_rest * total_bytes / GIB:.1f} GiB; "
                f"lower it by {too_much + 0.01:.2f}, or set learner.offload=[optimizer, parameters]"
            )
