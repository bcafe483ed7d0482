"""Makes the untrained model that `recipes/local_judge.yaml` teaches to judge: `python -m recipes.local_judge_base`.

It writes a Hugging Face folder with the tokenizer of the local base model and a two-layer Llama model of random
weights, with three exceptions in the attention of the first layer; from fully random weights the comparison of two
tokens was not learned within the minutes a reader will wait.

* Seen from the token before the verdict, four heads start with the place of answer 2, the place of answer 1 and the
  token before each: an answer of one word stands at the same distance in every prompt.
* What those heads look for starts with no content at all, only with distance.
* The first two heads start with opposite outputs: two equal words leave nothing behind.

Which words are the same, what counts as a word, and all verdicts are learned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.prompt import ChatPrompt, load_tokenizer
from learner.zero3.policy import copy_tokenizer
from recipes.local_base import ROPE_THETA, attend_back
from reward.judge_prompt import JudgeQuestion, judge_messages

HEAD_SIZE = 32
"""The smallest head vLLM serves on a CPU."""
AMPLITUDE, NUM_PAIRS = 6.0, 6


def token_distances(prompt: ChatPrompt) -> tuple[int, int]:
    """Tokens from the last one before the verdict back to the words of answer 2 and answer 1, one token each."""

    def differing(first: JudgeQuestion, second: JudgeQuestion) -> int:
        ids = [prompt.encode_messages(judge_messages(question)).tolist() for question in (first, second)]
        (position,) = [i for i, (a, b) in enumerate(zip(*ids, strict=True)) if a != b]
        return len(ids[0]) - position

    one = JudgeQuestion(question="Question:", answer="paris", truth="paris")
    return (
        differing(one, JudgeQuestion(question="Question:", answer="paris", truth="rome")),
        differing(one, JudgeQuestion(question="Question:", answer="rome", truth="paris")),
    )


def build_model(vocab_size: int, eos_token_id: int, pad_token_id: int, distances: tuple[int, int]) -> LlamaForCausalLM:
    """Weights from torch's global generator, and the start of the first layer that the file's docstring describes."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=HEAD_SIZE,
        attention_bias=True,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    attention = model.model.layers[0].self_attn
    first, second = slice(0, HEAD_SIZE), slice(HEAD_SIZE, 2 * HEAD_SIZE)
    with torch.no_grad():
        attention.q_proj.weight.zero_()
        attention.k_proj.weight.zero_()
        attention.v_proj.weight[second] = attention.v_proj.weight[first]
        attention.o_proj.weight[:, second] = -attention.o_proj.weight[:, first]
    truth, answer = distances
    for head, distance in enumerate((truth, answer, answer + 1, truth + 1)):
        attend_back(model, head=head, distance=distance, amplitude=AMPLITUDE, num_pairs=NUM_PAIRS)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=Path("recipes/assets/local_base"))
    parser.add_argument("--out", type=Path, default=Path("runs/local_judge_base"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = load_tokenizer(str(arguments.tokenizer))
    distances = token_distances(ChatPrompt(tokenizer))
    model = build_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, distances)
    model.save_pretrained(arguments.out)
    copy_tokenizer(str(arguments.tokenizer), arguments.out)
    print(
        f"{arguments.out}: {model.num_parameters()} parameters; answers {distances[1]} and {distances[0]} tokens back"
    )


if __name__ == "__main__":
    main()
