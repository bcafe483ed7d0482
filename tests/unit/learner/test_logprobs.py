"""The tiled head against the whole logits matrix and autograd."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learner.forward.logprobs import VOCABULARY_BLOCK, ResponseHead, score_tokens, token_loss

NUM_TOKENS, VOCAB = 7, 11


def _random(num_tokens=NUM_TOKENS, hidden=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(num_tokens, hidden, generator=generator, dtype=dtype).requires_grad_()
    weight_VH = torch.randn(VOCAB, hidden, generator=generator, dtype=dtype).requires_grad_()
    labels_N = torch.randint(VOCAB, (num_tokens,), generator=generator)
    temperature_N = torch.linspace(0.5, 1.5, num_tokens)
    return hidden_NH, weight_VH, labels_N, temperature_N


def _whole(hidden_NH, weight_VH, labels_N, temperature_N):
    """Log-probability and entropy with gradient, from all logits."""
    logprobs_NV = ((hidden_NH @ weight_VH.T) / temperature_N[:, None]).log_softmax(-1)
    logprobs_N = logprobs_NV.gather(1, labels_N[:, None]).squeeze(1)
    return logprobs_N, -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def _curved(n, logprobs_n, entropy_n):
    """A loss that depends on position, log-probability and entropy, none of them linearly."""
    return torch.arange(1.0, NUM_TOKENS + 1)[n] * (logprobs_n.exp() + 0.3 * entropy_n.square())


def test_two_tokens_by_hand():
    hidden_NH, weight_VH = torch.tensor([[1.0]]), torch.tensor([[0.0], [torch.log(torch.tensor(3.0))]])
    scores = score_tokens(hidden_NH, weight_VH, torch.tensor([0]), torch.ones(1))  # probabilities 1/4 and 3/4
    assert scores.logprobs_N.item() == pytest.approx(-1.3862944)
    assert scores.entropy_N.item() == pytest.approx(0.25 * 1.3862944 + 0.75 * 0.2876821)
    assert scores.hits_N.item() == 0.0
    assert (scores.log_nucleus_N.item(), scores.inside_N.item()) == (0.0, 1.0)


def test_the_temperature_divides_the_logits():
    inputs = _random()
    logprobs_N, entropy_N = _whole(*inputs)
    scores = score_tokens(*inputs)
    torch.testing.assert_close(scores.logprobs_N, logprobs_N.detach())
    torch.testing.assert_close(scores.entropy_N, entropy_N.detach())


def test_the_spread_is_that_of_the_logits_after_temperature():
    inputs = _random()
    hidden_NH, weight_VH, _, temperature_N = inputs
    logits_NV = (hidden_NH @ weight_VH.T + 20) / temperature_N[:, None]
    scores = score_tokens(*inputs)
    torch.testing.assert_close(scores.spread_N, logits_NV.std(-1, correction=0).detach())
    torch.testing.assert_close(scores.scale_N, scores.spread_N * (1 - scores.logprobs_N.exp()))


def test_the_hit_says_whether_the_label_is_the_most_likely_token():
    hidden_NH, weight_VH, _, temperature_N = _random()
    best = (hidden_NH @ weight_VH.T).argmax(-1)
    assert score_tokens(hidden_NH, weight_VH, best, temperature_N).hits_N.tolist() == [1.0] * 7
    assert score_tokens(hidden_NH, weight_VH, (best + 1) % VOCAB, temperature_N).hits_N.tolist() == [0.0] * 7


@pytest.mark.parametrize("max_tile_logits", [1, VOCAB, 3 * VOCAB, 1000])
def test_one_tiled_pass_gives_the_loss_and_the_gradients_of_the_whole_matrix(max_tile_logits):
    expected_inputs, inputs = _random(), _random()
    logprobs_N, entropy_N = _whole(*expected_inputs)
    expected = _curved(slice(None), logprobs_N, entropy_N).sum()
    expected.backward()
    loss, scores = token_loss(
        *inputs, lambda n, scores: _curved(n, scores.logprobs_N, scores.entropy_N), max_tile_logits=max_tile_logits
    )
    (2 * loss).backward()
    assert loss.item() == pytest.approx(expected.item())
    torch.testing.assert_close(scores.logprobs_N, logprobs_N.detach())
    for ours, theirs in zip(inputs[:2], expected_inputs[:2], strict=True):
        torch.testing.assert_close(ours.grad, 2 * theirs.grad)


def test_a_loss_of_the_entropy_alone_or_of_nothing_has_the_right_gradient():
    expected_inputs, inputs = _random(), _random()
    _whole(*expected_inputs)[1].sum().backward()
    token_loss(*inputs, lambda n, scores: scores.entropy_N)[0].backward()
    torch.testing.assert_close(inputs[1].grad, expected_inputs[1].grad)
    inputs = _random()
    token_loss(*inputs, lambda n, scores: torch.zeros_like(scores.entropy_N))[0].backward()
    assert not inputs[0].grad.any()
    assert not inputs[1].grad.any()


def test_without_gradients_the_loss_is_the_same():
    inputs = _random()

    def loss(n, scores):
        return _curved(n, scores.logprobs_N, scores.entropy_N)

    with torch.no_grad():
        frozen, _ = token_loss(*inputs, loss, max_tile_logits=2 * VOCAB)
    assert frozen.item() == pytest.approx(token_loss(*inputs, loss)[0].item())


def test_bf16_weights_give_fp32_scores_and_a_gradient_summed_in_fp32():
    hidden_NH, weight_VH, labels_N, temperature_N = _random(512, dtype=torch.float32)
    half_hidden = hidden_NH.detach().bfloat16().requires_grad_()
    half_weight = weight_VH.detach().bfloat16().requires_grad_()
    loss, scores = token_loss(
        half_hidden, half_weight, labels_N, temperature_N, lambda n, scores: scores.logprobs_N, max_tile_logits=VOCAB
    )
    loss.backward()
    assert {column.dtype for column in scores} == {torch.float32}
    exact = [x.detach().float().requires_grad_() for x in (half_hidden, half_weight)]
    _whole(*exact, labels_N, temperature_N)[0].sum().backward()
    # 512 tiles of one token: rounding every partial sum to bf16 would be off by several percent
    error = (half_weight.grad.float() - exact[1].grad).norm() / exact[1].grad.norm()
    assert error < 6e-3


def test_bf16_weights_whose_logits_compete_near_20_are_scored_as_exactly_as_in_fp32():
    generator = torch.Generator().manual_seed(0)
    vocabulary = VOCABULARY_BLOCK + 100  # two blocks
    hidden_NH = torch.randn(64, 16, generator=generator).bfloat16()
    weight_VH = (0.25 * torch.randn(vocabulary, 16, generator=generator)).bfloat16()
    hidden_NH[:, 0], weight_VH[:, 0] = 5.0, 4.0
    inputs = hidden_NH, weight_VH, torch.arange(64) * (vocabulary // 64), torch.ones(64)
    expected_N, entropy_N = _whole(hidden_NH.double(), weight_VH.double(), *inputs[2:])
    scores = score_tokens(*inputs)
    assert (scores.logprobs_N - expected_N).abs().max() < 1e-5
    assert (scores.entropy_N - entropy_N).abs().max() < 1e-5
    rounded_NV = (hidden_NH @ weight_VH.T).double().log_softmax(-1)
    rounded_N = rounded_NV.gather(1, inputs[2][:, None]).squeeze(1)
    assert (rounded_N - expected_N).abs().mean() > 0.02  # what it costs to round them


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    hidden_NH, weight_VH = torch.ones(4, 1), probabilities.log()[:, None]
    scores = score_tokens(hidden_NH, weight_VH, torch.arange(4), torch.ones(4), torch.full((4,), 0.7))
    torch.testing.assert_close(scores.log_nucleus_N, torch.full((4,), 0.8).log())
    assert scores.inside_N.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_flat_distribution_needs_the_whole_vocabulary_for_its_nucleus():
    vocabulary = 5000
    hidden_NH, weight_VH = torch.ones(1, 1), torch.linspace(0, 1e-3, vocabulary)[:, None]
    scores = score_tokens(hidden_NH, weight_VH, torch.tensor([0]), torch.ones(1), torch.full((1,), 0.9))
    assert scores.log_nucleus_N.exp().item() == pytest.approx(0.9, abs=1e-3)
    assert scores.inside_N.item() == 0.0


def test_a_head_without_tokens_still_gives_a_gradient_of_zero():
    head = ResponseHead(torch.nn.Parameter(torch.randn(VOCAB, 5)))
    hidden_NH = torch.randn(0, 5, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss, *columns = head(hidden_NH, none, torch.zeros(0), None, lambda n, scores: scores.logprobs_N)
    loss.backward()
    assert [len(column) for column in columns] == [0] * 6
    assert not head.weight.grad.any()


class _Seeing:
    """A loss that needs the whole row: every token is weighted by the mean probability."""

    def see_row(self, logprobs_N):
        self.weight = logprobs_N.exp().mean()
        self.num_seen = len(logprobs_N)

    def __call__(self, tokens, scores):
        return self.weight * scores.logprobs_N


@pytest.mark.parametrize("max_tile_logits", [VOCAB, 1000])
@pytest.mark.parametrize("with_gradient", [True, False])
def test_a_loss_of_the_whole_row_sees_it_before_the_first_tile(max_tile_logits, with_gradient):
    inputs, loss = _random(), _Seeing()
    logprobs_N, _ = _whole(*inputs)
    with torch.set_grad_enabled(with_gradient):
        total, _ = token_loss(*inputs, loss, max_tile_logits=max_tile_logits)
    assert loss.num_seen == NUM_TOKENS
    assert total.item() == pytest.approx((logprobs_N.exp().mean() * logprobs_N.sum()).item())


class _Products(TorchDispatchMode):
    """Keeps types and shape of every matrix product, and what a whole head is turned into."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.products, self.copies = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.products.append((args[0].dtype, result.dtype, tuple(result.shape)))
        if func.overloadpacket == torch.ops.aten._to_copy and args[0].shape == self.head:
            self.copies.append((args[0].dtype, result.dtype))
        return result


def test_on_a_gpu_a_bf16_head_has_logits_and_sums_in_fp32():
    """On meta tensors, which take the branch of CUDA: 600 tokens, a vocabulary of 152,064, tiles of 441."""
    tokens, vocab, hidden, bf16, fp32 = 600, 152_064, 1536, torch.bfloat16, torch.float32
    hidden_NH = torch.empty(tokens, hidden, dtype=bf16, device="meta", requires_grad=True)
    weight_VH = torch.empty(vocab, hidden, dtype=bf16, device="meta", requires_grad=True)
    labels_N, ones_N = torch.empty(tokens, dtype=torch.int64, device="meta"), torch.ones(tokens, device="meta")
    with _Products((vocab, hidden)) as seen:
        loss, scores = token_loss(hidden_NH, weight_VH, labels_N, ones_N, lambda n, scores: scores.logprobs_N)
        loss.backward()
    logits = [product for product in seen.products if product[2][1] == vocab]
    assert logits == [(bf16, fp32, (441, vocab)), (bf16, fp32, (tokens - 441, vocab))]
    of_head = [
        product
        for product in seen.products
        if product[2] in ((VOCABULARY_BLOCK, hidden), (vocab % VOCABULARY_BLOCK, hidden))
    ]
    assert len(of_head) == 2 * 10
    assert {(ours, sums) for ours, sums, _ in of_head} == {(bf16, fp32)}
    assert seen.copies == [(fp32, bf16)], "its gradient once, at the end; its weight never in fp32"
    assert (loss.dtype, {column.dtype for column in scores}) == (fp32, {fp32})
    assert (hidden_NH.grad.dtype, weight_VH.grad.dtype) == (bf16, bf16)
