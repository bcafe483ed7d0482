"""The learner's kernels on a CUDA card in bf16, against fp32 on the CPU."""

import pytest
import torch
from torch.nn.attention import restore_flash_attention_impl

from learner.attention.flash import Spans, attend, attend_backward, merge
from learner.attention.kernels import obstacle_to_fa3
from learner.forward.host_copy import HostCopies
from learner.forward.logprobs import score_tokens, token_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def _qkv(queries, keys):
    torch.manual_seed(0)
    shapes = ((1, 8, queries, 64), (1, 2, keys, 64), (1, 2, keys, 64))
    return [torch.randn(shape).bfloat16() for shape in shapes]


def _close(ours, theirs):
    assert ((ours.cpu().float() - theirs.float()).norm() / theirs.float().norm()).item() < 2e-2


@pytest.mark.parametrize("lengths", [(300,), (100, 7, 1, 192), (50,) * 6])
def test_attention_and_its_gradient_equal_those_of_the_cpu(lengths):
    tensors = _qkv(300, 300)
    grad = torch.randn(1, 8, 300, 64).bfloat16()
    found = {}
    for device in ("cpu", "cuda"):
        spans = Spans(lengths, torch.device(device))
        q, k, v, g = (x.to(device) for x in (*tensors, grad))
        out, lse = attend(q, k, v, spans, spans, causal=True, scale=0.125)
        gradients = attend_backward(g, q, k, v, out, lse, spans, spans, causal=True, scale=0.125)
        found[device] = (out, lse, *gradients)
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert ours.shape == theirs.shape
        _close(ours, theirs)


def test_merged_halves_equal_the_whole():
    q, k, v = (x.cuda() for x in _qkv(40, 256))
    device = q.device
    queries = Spans((40,), device)

    def over(keys):
        spans = Spans((keys.stop - keys.start,), device)
        return attend(q, k[:, :, keys], v[:, :, keys], queries, spans, causal=False, scale=0.125)

    out, lse = merge(*over(slice(0, 100)), *over(slice(100, 256)))
    whole, whole_lse = over(slice(0, 256))
    _close(out, whole.cpu())
    torch.testing.assert_close(lse, whole_lse, rtol=1e-3, atol=1e-3)


def test_the_head_sums_its_gradient_in_fp32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(600, 64).bfloat16(), torch.randn(40_000, 64).bfloat16()
    labels = torch.randint(40_000, (600,))
    found = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        inputs = [x.to(device, dtype).requires_grad_() for x in (hidden, weight)]
        loss, _ = token_loss(
            *inputs,
            labels.to(device),
            torch.ones(600, device=device),
            lambda n, scores: scores.logprobs_N,
            max_tile_logits=40_000 * 64,
        )
        loss.backward()
        found[device] = [x.grad for x in inputs]
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        _close(ours, theirs)


@pytest.mark.parametrize("num_tokens", [0, 1, 64])
def test_the_head_does_not_round_logits_that_compete_near_20(num_tokens):
    torch.manual_seed(0)
    hidden, weight = torch.randn(num_tokens, 64).bfloat16(), (0.1 * torch.randn(40_000, 64)).bfloat16()
    hidden[:, 0], weight[:, 0] = 5.0, 4.0
    labels = torch.randint(40_000, (num_tokens,))
    logprobs = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    inputs = [x.cuda() for x in (hidden, weight, labels, torch.ones(num_tokens))]
    torch.testing.assert_close(score_tokens(*inputs).logprobs_N.double().cpu(), logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("vocab", [1000, 40_000])
def test_the_gradients_of_the_head_are_those_of_fp64(vocab):
    """Their own rounding is 2^-8; summed up in bf16 over 300 tiles, that of the head would be off by several times."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(600, 64).bfloat16(), (0.3 * torch.randn(vocab, 64)).bfloat16()
    labels = torch.randint(vocab, (600,))
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    (exact[0] @ exact[1].T).log_softmax(-1).gather(1, labels[:, None]).sum().backward()
    ours = [x.cuda().requires_grad_() for x in (hidden, weight)]
    loss, _ = token_loss(
        *ours, labels.cuda(), torch.ones(600).cuda(), lambda n, scores: scores.logprobs_N, max_tile_logits=2 * vocab
    )
    loss.backward()
    for found, expected in zip(ours, exact, strict=True):
        error = (found.grad.cpu().double() - expected.grad).norm() / expected.grad.norm()
        assert error.item() < 2**-8


@pytest.fixture
def flash_attention_3():
    obstacle = obstacle_to_fa3(torch.device("cuda"))
    if obstacle is not None:
        pytest.skip(obstacle)
    yield
    restore_flash_attention_impl()


def _whole_group(device):
    """A prompt of 300 tokens and responses of 50, 1 and 200, forward and backward through both calls of a layer."""
    torch.manual_seed(0)
    lengths = (50, 1, 200)
    q, k, v, grad = (torch.randn(1, heads, 251, 128).bfloat16().to(device) for heads in (8, 2, 2, 8))
    prompt_k, prompt_v = (torch.randn(1, 2, 300, 128).bfloat16().to(device) for _ in range(2))
    own, all_queries, prompt = Spans(lengths, device), Spans((251,), device), Spans((300,), device)
    scale = 128**-0.5
    out, lse = merge(
        *attend(q, k, v, own, own, causal=True, scale=scale),
        *attend(q, prompt_k, prompt_v, all_queries, prompt, causal=False, scale=scale),
    )
    first = attend_backward(grad, q, k, v, out, lse, own, own, causal=True, scale=scale)
    second = attend_backward(grad, q, prompt_k, prompt_v, out, lse, all_queries, prompt, causal=False, scale=scale)
    return [x.cpu() for x in (out, lse, *first, *second)]


def test_flash_attention_3_gives_what_flash_attention_2_gives(request):
    two = _whole_group(torch.device("cuda"))
    request.getfixturevalue("flash_attention_3")
    for ours, theirs in zip(_whole_group(torch.device("cuda")), two, strict=True):
        assert ours.shape == theirs.shape
        _close(ours, theirs)


def test_layer_inputs_go_to_the_host_and_come_back():
    copies = HostCopies()
    expected = [torch.randn(1, 512, 256) for _ in range(4)]
    kept = []
    for x in expected:
        on_card = x.cuda() * 2
        kept.append(copies.put(on_card))
        del on_card
        torch.full((1, 512, 256), 7.0, device="cuda")  # must not land in memory that is still being copied
    for copy, x in zip(reversed(kept), reversed(expected), strict=True):
        torch.testing.assert_close(copy.take().cpu(), 2 * x)
