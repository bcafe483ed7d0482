"""Memory of tensors, counted as they are made and freed: what a device would have to hold at the peak."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made inside the block that are alive on one type of device, and the largest sum so far.

    Views share their storage, which counts once. Scratch memory inside a kernel does not show.
    """

    def __init__(self, device_type: str, *, before: Iterable[torch.Tensor] = ()) -> None:
        """Take the type of the device (`cpu`, `cuda`, `meta`); tensors that are there `before` do not count."""
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """Largest sum of bytes alive."""
        self.peak_apart = 0
        """Largest sum of the bytes that no call of `set_apart` has named."""
        self.at = ""
        """Operator that reached `peak`."""
        self._device_type = device_type
        self._sizes: dict[int, int] = {}
        self._apart: set[int] = set()
        self._bytes_apart = 0
        self._before = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._device_type:
                self._count(tensor.untyped_storage(), str(func))
        return result

    def set_apart(self, tensor: torch.Tensor) -> None:
        """Leave a tensor out of `peak_apart` from now on; a gradient that ZeRO-3 would divide, for example."""
        key = tensor.untyped_storage()._cdata
        if key in self._sizes and key not in self._apart:
            self._apart.add(key)
            self._bytes_apart += self._sizes[key]

    def _count(self, storage: torch.UntypedStorage, func: str) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._before:
            return
        self._sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._gone, key)
        self.now += storage.nbytes()
        if self.now > self.peak:
            self.peak, self.at = self.now, func
        self.peak_apart = max(self.peak_apart, self.now - self._bytes_apart)

    def _gone(self, key: int) -> None:
        size = self._sizes.pop(key)
        self.now -= size
        if key in self._apart:
            self._apart.remove(key)
            self._bytes_apart -= size
