"""Inputs of layers in host memory, from the forward pass until the backward pass needs them.

Copies run beside the computation: a tensor goes out while its layer computes, and comes back while the layer after it,
whose backward pass is before its own, computes.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

_cuda: Any = torch.cuda  # where its declarations have no complete types


class HostCopies:
    """Puts tensors of one device into host memory; they are taken back in the opposite order."""

    def __init__(self) -> None:
        self._last: weakref.ref[HostCopy] | None = None
        self._stream: Any = None

    def put(self, x: Tensor) -> HostCopy:
        """Return a copy of a tensor; on a CPU it is the tensor, and of a meta tensor, which has no data, its shape."""
        if x.is_cuda and self._stream is None:
            self._stream = _cuda.Stream(x.device)
        copy = HostCopy(x, before=self._last, stream=self._stream)
        self._last = weakref.ref(copy)
        return copy


class HostCopy:
    """One tensor in host memory."""

    def __init__(self, x: Tensor, *, before: weakref.ref[HostCopy] | None, stream: Any) -> None:
        """Copy the tensor; `before` is the one that was put there before it, and will be taken after it."""
        self._before = before
        self._stream = stream
        self._device = x.device
        self._host: Tensor | None = x if x.device.type == "cpu" else None
        self._shape = (x.shape, x.dtype)
        self._back: Tensor | None = None
        if x.is_cuda:
            self._host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            stream.wait_stream(_cuda.current_stream(x.device))
            with _cuda.stream(stream):
                self._host.copy_(x, non_blocking=True)
            x.record_stream(stream)

    def take(self) -> Tensor:
        """Return the tensor on its device, and begin to bring back the one that is taken next."""
        back = self._begin()
        before = None if self._before is None else self._before()
        if before is not None:
            before._begin()
        if self._stream is not None:
            current = _cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            back.record_stream(current)
        self._back = self._host = None
        return back

    def _begin(self) -> Tensor:
        """Return the tensor on its device, where it may still be on its way."""
        if self._back is None:
            shape, dtype = self._shape
            if self._device.type == "meta":
                self._back = torch.empty(shape, dtype=dtype, device=self._device)
            elif self._host is None:
                raise RuntimeError("the input of a layer was taken twice; back-propagate a row once")
            elif self._stream is None:
                self._back = self._host
            else:
                with _cuda.stream(self._stream):
                    self._back = self._host.to(self._device, non_blocking=True)
        return self._back
