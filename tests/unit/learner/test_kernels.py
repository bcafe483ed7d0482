"""Which flash attention runs, with stand-ins for the card and for the package of FlashAttention-3."""

import inspect
import logging
import sys
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from torch.nn.attention import _fa3, current_flash_attention_impl, restore_flash_attention_impl
from torch.utils._python_dispatch import TorchDispatchMode

from curriculum.errors import UserError
from learner.attention.flash import Spans, attend, attend_backward
from learner.attention.kernels import FA2, FA3, FA3_MODULE, NO_FLASH, ON_CPU, use_kernel

CUDA, CPU, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    restore_flash_attention_impl(_raise_warn=False)


@pytest.fixture
def card(monkeypatch):
    """A card of a compute capability, with a build of FlashAttention-3 that has these kernels; None for no build."""

    def insert(capability, kernels):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        if kernels is None:
            monkeypatch.setitem(sys.modules, FA3_MODULE, None)
            monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
            return
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name == FA3_MODULE or None)
        monkeypatch.setitem(sys.modules, FA3_MODULE, ModuleType(FA3_MODULE))
        operators = ModuleType("flash_attn_3")
        vars(operators).update({name: object() for name in kernels})
        monkeypatch.setattr(torch.ops, "flash_attn_3", operators, raising=False)

    return insert


WHOLE = ("fwd", "bwd")


def test_flash_attention_3_runs_on_hopper_where_it_is_installed(card, caplog):
    caplog.set_level(logging.INFO)
    card((9, 0), WHOLE)
    assert use_kernel("auto", CUDA, BF16) == FA3
    assert current_flash_attention_impl() == "FA3"
    assert caplog.messages == ["attention: FlashAttention-3 of flash_attn_interface"]


def test_flash_attention_2_runs_where_it_is_asked_for(card):
    card((9, 0), WHOLE)
    assert use_kernel("fa2", CUDA, BF16) == FA2
    assert current_flash_attention_impl() is None


MISSING = [
    ((8, 0), WHOLE, "FlashAttention-3 runs on Hopper, compute capability 9.0, and this card has 8.0"),
    ((9, 0), None, "the module flash_attn_interface is not installed"),
    ((9, 0), ("fwd",), "the module flash_attn_interface cannot be used: Module 'flash_attn_interface' does not expose"),
]


@pytest.mark.parametrize(("capability", "kernels", "reason"), MISSING)
def test_without_it_auto_says_why_and_takes_flash_attention_2(card, capability, kernels, reason):
    card(capability, kernels)
    assert use_kernel("auto", CUDA, BF16).startswith(f"{FA2}, because {reason}")
    assert current_flash_attention_impl() is None


@pytest.mark.parametrize(("capability", "kernels", "reason"), MISSING)
def test_without_it_a_recipe_that_wants_it_is_refused_in_one_line(card, capability, kernels, reason):
    card(capability, kernels)
    with pytest.raises(UserError) as refused:
        use_kernel("fa3", CUDA, BF16)
    (line,) = refused.value.lines
    assert line.startswith(f"learner.attention=fa3: {reason}")
    assert line.endswith("install it as docs/operations.md says, or set learner.attention=auto")


def test_a_rank_without_it_keeps_all_ranks_on_flash_attention_2(card, monkeypatch):
    card((9, 0), WHOLE)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        dist, "all_gather_object", lambda found, own: found.__setitem__(slice(None), [own, "no module"])
    )
    assert use_kernel("auto", CUDA, BF16) == f"{FA2}, because no module"
    assert current_flash_attention_impl() is None


def test_there_is_nothing_to_choose_on_a_cpu_or_in_fp32():
    assert use_kernel("auto", CPU, torch.float32) == ON_CPU
    assert use_kernel("auto", CUDA, torch.float32) == NO_FLASH


class _Recorder(TorchDispatchMode):
    """Keeps the arguments of the flash kernels of CUDA."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_flash_attention" in str(func):
            self.calls[func.overloadpacket.__name__] = (func._overloadname, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls():
    """Our calls for 8 heads on 2 of keys: two responses of 4 and 5 tokens against prompts of 7 and 6."""
    q, k, v = (
        torch.empty(1, heads, tokens, 64, dtype=BF16, device=META) for heads, tokens in ((8, 9), (2, 13), (2, 13))
    )
    queries, keys = Spans((4, 5), META), Spans((7, 6), META)
    with _Recorder() as recorder:
        out, lse = attend(q, k, v, queries, keys, causal=False, scale=0.125)
        attend_backward(q, q, k, v, out, lse, queries, keys, causal=False, scale=0.125)
    return recorder.calls


def test_our_calls_are_those_that_flash_attention_3_takes_over(calls):
    taken = {
        "_flash_attention_forward": _fa3._fa3_flash_attention_forward_impl_default,
        "_flash_attention_backward": _fa3._fa3_flash_attention_backward_impl,
    }
    assert calls.keys() == taken.keys()
    source = inspect.getsource(_fa3._fa3_register_kernels)
    for name, function in taken.items():
        overload, args, kwargs = calls[name]
        assert overload == "default"
        assert f'"{name}", {function.__name__}' in " ".join(source.split())
        inspect.signature(function).bind(*args, **kwargs)


def test_flash_attention_3_accepts_the_arguments_of_our_calls(calls, monkeypatch):
    """Through torch's own code down to the kernels; a meta tensor stands for one on the card."""
    seen = {}

    def forward(q, k, v, *rest):
        seen["forward"] = (q.shape, k.shape, rest)
        return torch.empty_like(q), torch.empty(q.shape[1], q.shape[0], device=META), None, None

    def backward(dout, q, k, v, out, lse, dq, dk, dv, *rest):
        seen["backward"] = (lse.shape, dk.shape, rest)

    monkeypatch.setattr(_fa3, "_FA3_CUDA_FWD", forward)
    monkeypatch.setattr(_fa3, "_FA3_CUDA_BWD", backward)
    monkeypatch.setattr(_fa3, "_get_device_major", lambda _: 9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: x.device.type == "meta"))
    _, args, kwargs = calls["_flash_attention_forward"]
    out, lse, *_ = _fa3._fa3_flash_attention_forward_impl_default(*args, **kwargs)
    assert (out.shape, lse.shape) == ((9, 8, 64), (8, 9))
    assert seen["forward"][:2] == ((9, 8, 64), (13, 2, 64))
    _, args, kwargs = calls["_flash_attention_backward"]
    dq, dk, dv = _fa3._fa3_flash_attention_backward_impl(*args, **kwargs)
    assert (dq.shape, dk.shape, dv.shape) == ((9, 8, 64), (13, 2, 64), (13, 2, 64))
    lse_shape, _, (offsets_q, offsets_k, _, _, max_q, max_k, scale, causal, left, right, *_) = seen["backward"]
    assert (lse_shape, offsets_q.shape, offsets_k.shape) == ((8, 9), (3,), (3,))
    assert (max_q, max_k, scale, causal, left, right) == (5, 7, 0.125, False, -1, -1)
