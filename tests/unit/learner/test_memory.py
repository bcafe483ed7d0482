"""Predicted memory of a rank: sums by hand, and the learner's own update as it was counted on the meta device."""

from __future__ import annotations

import pytest

from learner.memory import BUCKET_BYTES, CONTEXT_BYTES, ModelShape, activation_bytes, rank_bytes

GIB = 1 << 30
TINY = ModelShape(hidden=8, mlp=16, layers=3, heads=4, kv_heads=2, head_width=2, vocabulary=100, ties_embeddings=False)


def qwen2(hidden, mlp, layers, heads, kv_heads, vocabulary, *, ties=False):
    return ModelShape(
        hidden=hidden,
        mlp=mlp,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=128,
        vocabulary=vocabulary,
        ties_embeddings=ties,
    )


SHAPES = {
    "1.5B": qwen2(1536, 8960, 28, 12, 2, 151936, ties=True),
    "7B": qwen2(3584, 18944, 28, 28, 4, 152064),
    "14B": qwen2(5120, 13824, 48, 40, 8, 152064),
    "32B": qwen2(5120, 27648, 64, 40, 8, 152064),
}
COUNTED = [
    ("1.5B", 20_000, True, 4.322),
    ("1.5B", 40_000, True, 8.643),
    ("1.5B", 20_000, False, 56.440),
    ("7B", 17_500, True, 8.422),
    ("7B", 35_000, True, 16.844),
    ("7B", 17_500, False, 106.956),
    ("14B", 17_500, True, 13.712),
    ("14B", 35_000, True, 25.591),
    ("14B", 17_500, False, 175.663),
    ("32B", 17_500, True, 18.169),
    ("32B", 35_000, True, 36.339),
]
"""Model, tokens, checkpointing, and GiB at the peak besides weights and gradients of weights, counted tensor by tensor
in one forward and backward pass of a bf16 policy, loss and head included, on the meta device."""


def test_the_weights_of_a_tiny_model_are_counted_by_hand():
    assert TINY.layer_weights == 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16
    assert TINY.weights == 3 * 576 + 2 * 800


@pytest.mark.parametrize(("name", "weights"), [("1.5B", 1.543e9), ("7B", 7.616e9), ("14B", 14.77e9), ("32B", 32.76e9)])
def test_the_weights_of_known_models_are_theirs(name, weights):
    assert SHAPES[name].weights == pytest.approx(weights, rel=1e-3)


@pytest.mark.parametrize(("name", "tokens", "checkpointing", "gib"), COUNTED)
def test_activations_are_within_one_percent_of_what_was_counted(name, tokens, checkpointing, gib):
    predicted = activation_bytes(SHAPES[name], tokens=tokens, checkpointing=checkpointing)
    assert predicted / GIB == pytest.approx(gib, rel=0.01)


def test_a_rank_of_a_tiny_model_is_summed_up_by_hand():
    # 3,328 weights over 4 ranks are 832; 20 tokens over 2 ranks are 10
    rank = rank_bytes(TINY, row_tokens=20, num_ranks=4, sequence_parallel=2, checkpointing=True, has_reference=True)
    assert (rank.weights, rank.gradients, rank.optimizer, rank.reference) == (1664, 3328, 9984, 1664)
    assert rank.gathered == 2 * 3328  # the whole model is less than what ZeRO-3 keeps gathered
    assert rank.reduced == 2 * 576 + BUCKET_BYTES
    head = 10 * 5 * 8 * 2 + 100 * 8 * 6 + 2 * (256 << 20)
    assert rank.activations == 10 * 3 * 8 * 2 + head
    assert rank.total - rank.tensors == rank.context == CONTEXT_BYTES


def test_what_is_in_host_memory_takes_nothing_of_the_device():
    def rank(*offload):
        return rank_bytes(SHAPES["7B"], row_tokens=20_000, num_ranks=4, checkpointing=True, offload=offload)

    part = -(-SHAPES["7B"].weights // 4)
    assert rank().tensors - rank("optimizer").tensors == 16 * part
    assert rank("optimizer").tensors - rank("optimizer", "parameters").tensors == 2 * part
    kept = rank().activations - rank("activations").activations
    assert kept == 26 * 20_000 * 3584 * 2, "the inputs of all layers but two"


def test_a_rank_alone_gathers_nothing_unless_its_weights_come_from_the_host():
    def gathered(**options):
        return rank_bytes(TINY, row_tokens=10, num_ranks=1, **options).gathered

    assert gathered() == 0
    assert gathered(offload=("parameters",)) == 2 * 3328


def test_fp32_takes_twice_the_bytes_of_weights_and_the_same_of_the_optimizer():
    def rank(weight_bytes):
        return rank_bytes(SHAPES["1.5B"], row_tokens=1000, num_ranks=2, weight_bytes=weight_bytes)

    assert rank(4).weights == 2 * rank(2).weights
    assert rank(4).optimizer == rank(2).optimizer
    assert 1.5 < rank(4).activations / rank(2).activations <= 2


@pytest.mark.parametrize(
    ("name", "ranks", "sequence_parallel", "tokens", "offload", "gib"),
    [
        ("32B", 16, 8, 140_000, ("optimizer", "parameters"), 24),
        ("32B", 16, 8, 140_000, ("optimizer",), 28),
        ("32B", 16, 8, 140_000, (), 58),
        ("14B", 16, 8, 140_000, ("optimizer",), 21),
        ("7B", 4, 4, 140_000, ("optimizer",), 26),
        ("7B", 4, 4, 140_000, (), 55),
        ("1.5B", 1, 1, 100_000, ("optimizer",), 27),
    ],
)
def test_ranks_of_the_papers_rows_take_what_was_added_up_by_hand(name, ranks, sequence_parallel, tokens, offload, gib):
    """The sums by hand took 60K + 8 x 10K tokens (1.5B: 20K + 8 x 10K), and are whole GiB."""
    rank = rank_bytes(
        SHAPES[name],
        row_tokens=tokens,
        num_ranks=ranks,
        sequence_parallel=sequence_parallel,
        checkpointing=True,
        offload=offload,
    )
    assert rank.total / GIB == pytest.approx(gib, rel=0.05)
