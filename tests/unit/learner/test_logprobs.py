import pytest
import torch

from learner.logprobs import score_tokens


def _random(num_tokens=7, hidden=5, vocab=11):
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(num_tokens, hidden, generator=generator, requires_grad=True)
    weight_VH = torch.randn(vocab, hidden, generator=generator, requires_grad=True)
    labels_N = torch.randint(vocab, (num_tokens,), generator=generator)
    temperature_N = torch.linspace(0.5, 1.5, num_tokens)
    return hidden_NH, weight_VH, labels_N, temperature_N


def test_two_tokens_by_hand():
    hidden_NH, weight_VH = torch.tensor([[1.0]]), torch.tensor([[0.0], [torch.log(torch.tensor(3.0))]])
    scores = score_tokens(hidden_NH, weight_VH, torch.tensor([0]), torch.ones(1))  # probabilities 1/4 and 3/4
    assert scores.logprobs_N.item() == pytest.approx(-1.3862944)
    assert scores.entropy_N.item() == pytest.approx(0.25 * 1.3862944 + 0.75 * 0.2876821)
    assert scores.hits_N.item() == 0.0


def test_the_temperature_divides_the_logits():
    hidden_NH, weight_VH, labels_N, temperature_N = _random()
    expected = torch.log_softmax((hidden_NH @ weight_VH.T) / temperature_N[:, None], dim=-1)
    scores = score_tokens(hidden_NH, weight_VH, labels_N, temperature_N)
    torch.testing.assert_close(scores.logprobs_N, expected[torch.arange(7), labels_N])
    torch.testing.assert_close(scores.entropy_N, -(expected.exp() * expected).sum(-1).detach())


def test_the_hit_says_whether_the_label_is_the_most_likely_token():
    hidden_NH, weight_VH, _, temperature_N = _random()
    best = (hidden_NH @ weight_VH.T).argmax(-1)
    assert score_tokens(hidden_NH, weight_VH, best, temperature_N).hits_N.tolist() == [1.0] * 7
    assert score_tokens(hidden_NH, weight_VH, (best + 1) % 11, temperature_N).hits_N.tolist() == [0.0] * 7


@pytest.mark.parametrize("max_chunk_logits", [1, 11, 33, 1000])
def test_chunks_change_neither_values_nor_gradients(max_chunk_logits):
    expected, expected_grads = _scores_and_gradients(1 << 20)
    scores, grads = _scores_and_gradients(max_chunk_logits)
    for ours, theirs in zip((*scores, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_bf16_weights_give_fp32_scores():
    hidden_NH, weight_VH, labels_N, temperature_N = _random()
    scores = score_tokens(hidden_NH.bfloat16(), weight_VH.bfloat16(), labels_N, temperature_N)
    assert {column.dtype for column in scores} == {torch.float32}


def _scores_and_gradients(max_chunk_logits):
    hidden_NH, weight_VH, labels_N, temperature_N = _random()
    scores = score_tokens(hidden_NH, weight_VH, labels_N, temperature_N, max_chunk_logits=max_chunk_logits)
    (scores.logprobs_N * torch.arange(1.0, 8.0)).sum().backward()
    return scores, (hidden_NH.grad, weight_VH.grad)
