"""Makes the tiny base model of `recipes/local.yaml`: `python -m recipes.local_base` (one core, a few minutes).

It writes a Hugging Face folder with a byte-level BPE tokenizer, in which every word of the local task is one token, and
a two-layer Llama model trained on generic in-context look-up text: copied spans of random words, documents whose facts
are restated, questions answered by a restatement, and conclusions that repeat the last value. No chat format, no
thinking tags and no prompt of the recipe occur in that text; these are what the warm-up SFT teaches.

The initial weights are random, with one exception: the query and key biases of the first layer start its two heads as
"attend one (two) tokens back". From fully random weights this text did not lead to in-context copying within the few
minutes a reader will wait. All later structure is learned.

Why Llama (with Qwen2's attention biases) and not Qwen2: transformers 5 loads the tokenizer of every Qwen2 folder as
`Qwen2Tokenizer`, which splits numbers into digits and normalises Unicode whatever tokenizer.json says.
"""

from __future__ import annotations

import argparse
import functools
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actors.prompt import TEMPLATE
from curriculum.synthetic import NAMES, VALUES, Fact, draw_document, vocabulary
from reward.judge_prompt import SYSTEM_PROMPT

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINKING_TAGS = ("<think>", "</think>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
MAX_POSITIONS = 32_768
ROPE_THETA = 1e4

COPY_STEPS, LOOKUP_STEPS = 800, 1500
LEARNING_RATE, WARMUP_STEPS = 3e-3, 50
TOKENS_PER_STEP = {"copy": 1536, "lookup": 3072}
COPY_TOKENS = 64
LOOKUP_TOKENS = (48, 64, 96, 128, 192)
"""Lengths of the look-up texts. Longer documents are for reinforcement learning to master."""

Piece = tuple[int, bool]
"""(token id, whether the loss counts the prediction of this token)."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text round-trips, and every word of the task after a space is one token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: training ends when every word of the corpus is one token
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    prompts = [TEMPLATE.format(context="Notes:", question="Question:"), SYSTEM_PROMPT]
    prompts += ["Problem:\nAnswer 1:\nAnswer 2:", "[[YES]]", "[[NO]]", "system\n", "user\n", "assistant\n"]
    words = (*vocabulary(), "Notes", "Question", "Answer", "Therefore")
    core.train_from_iterator([f" {word} {word}" for word in words] + 2 * prompts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in THINKING_TAGS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights from torch's global generator; the first layer's heads start as attention 1 and 2 tokens back."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # 32 dimensions each: the smallest head vLLM serves on a CPU
        num_key_value_heads=2,
        attention_bias=True,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    attend_back(model, head=0, distance=1)
    attend_back(model, head=1, distance=2)
    return model


def attend_back(
    model: LlamaForCausalLM, *, head: int, distance: int, amplitude: float = 2.5, num_pairs: int = 8
) -> None:
    """Sets biases of layer 0 so that, before any content, `head` prefers the key `distance` tokens before its query.

    RoPE turns pair i of a bias by position x frequency_i; a query bias turned back by distance x frequency_i meets the
    key bias exactly `distance` tokens earlier.
    """
    attention = model.model.layers[0].self_attn
    size = attention.head_dim
    with torch.no_grad():
        for pair in range(num_pairs):
            angle = distance * ROPE_THETA ** (-2 * pair / size)
            first, second = head * size + pair, head * size + pair + size // 2
            attention.k_proj.bias[first] = amplitude
            attention.q_proj.bias[first] = amplitude * math.cos(angle)
            attention.q_proj.bias[second] = -amplitude * math.sin(angle)


class LookupText:
    """Draws training texts as pieces; only tokens that the text so far determines are marked for the loss."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._encode = functools.cache(functools.partial(_single_token, tokenizer))
        self._rng = rng
        self._words = [self._encode(f" {word}") for word in vocabulary()]
        self._ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.get_added_vocab().values()))

    def copies(self, num_tokens: int) -> list[Piece]:
        """A random string of tokens, then random spans of it: after its first token a span can be predicted."""
        rng = self._rng
        pool = self._words if rng.random() < 0.5 else self._ordinary
        source = rng.choices(pool, k=rng.randint(4, num_tokens // 3))
        pieces = [(token, False) for token in source]
        while len(pieces) < num_tokens:
            start = rng.randrange(len(source))
            span = source[start : start + rng.randint(2, 8)]
            pieces += [(token, position > 0) for position, token in enumerate(span)]
        return pieces[:num_tokens]

    def lookups(self, num_tokens: int) -> list[Piece]:
        """A document, then restated facts and chains, half of them as answers to a question."""
        rng = self._rng
        size = max(24, int(num_tokens * rng.uniform(0.3, 0.7)))
        first = (rng.choice(NAMES), "visits", rng.choice(VALUES["visits"]))
        document = draw_document(rng, min_words=size, max_words=size, chain=(first,))
        facts = [(name, relation, value) for (name, relation), value in document.facts.items()]
        chains = [(a, b) for a in facts if a[1] == "follows" for b in facts if b[0] == a[2] and b[1] != "follows"]
        pieces = self._pieces(document.text, learn=False)
        while len(pieces) < num_tokens:
            evidence = rng.choice(chains) if chains and rng.random() < 0.4 else (rng.choice(facts),)
            pieces += self._answered(evidence) if rng.random() < 0.5 else self._restated(evidence, from_word=2)
        return pieces[:num_tokens]

    def mixed(self, num_tokens: int) -> list[Piece]:
        """Mostly look-ups; some copying, so that it is not forgotten."""
        return self.lookups(num_tokens) if self._rng.random() < 0.85 else self.copies(num_tokens)

    def _restated(self, evidence: tuple[Fact, ...], *, from_word: int) -> list[Piece]:
        """The facts again; the loss counts words from `from_word` of the first fact and all of the second."""
        pieces = []
        for fact in evidence:
            words = self._pieces(" ".join(fact) + ".", learn=True)
            pieces += [(token, position >= from_word) for position, (token, _) in enumerate(words)]
            from_word = 0
        return pieces

    def _answered(self, evidence: tuple[Fact, ...]) -> list[Piece]:
        """A question, noise, the facts that answer it, and sometimes noise and the conclusion ("... is tokyo.")."""
        (name, relation, _), last = evidence[0], evidence[-1]
        question = f"{name} {relation} what?" if len(evidence) == 1 else f"{name} follows who {last[1]} what?"
        pieces = self._pieces(f"Question: {question}", learn=False)
        if self._rng.random() < 0.7:
            pieces += self._noise(0, 40)
        pieces += self._pieces("Answer:", learn=False) + self._restated(evidence, from_word=0)
        if self._rng.random() < 0.6:
            pieces += self._noise(1, 8) + self._pieces("is", learn=False) + self._pieces(f"{last[2]}.", learn=True)
        return pieces

    def _noise(self, min_tokens: int, max_tokens: int) -> list[Piece]:
        return [
            (token, False) for token in self._rng.choices(self._ordinary, k=self._rng.randint(min_tokens, max_tokens))
        ]

    def _pieces(self, text: str, *, learn: bool) -> list[Piece]:
        return [(self._encode(part), learn) for part in re.findall(r" \w+|[^\s\w]", f" {text}")]


def _single_token(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{text!r} takes {len(ids)} tokens; add the word to the tokenizer's corpus")
    return ids[0]


def pretrain(model: LlamaForCausalLM, text: LookupText, rng: random.Random) -> None:
    """Copying first, then look-ups with a share of copying; AdamW with warm-up, plateau and linear decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    num_steps = COPY_STEPS + LOOKUP_STEPS
    model.train()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, max(0.05, 2 * (1 - step / num_steps)))
        if step < COPY_STEPS:
            batch = _batch(text.copies, COPY_TOKENS, TOKENS_PER_STEP["copy"])
        else:
            batch = _batch(text.mixed, rng.choice(LOOKUP_TOKENS), TOKENS_PER_STEP["lookup"])
        loss, accuracy = _step(model, optimizer, batch)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{num_steps} loss {loss:.3f} accuracy {accuracy:.3f}", flush=True)


def _batch(draw: Callable[[int], list[Piece]], num_tokens: int, tokens_per_step: int) -> torch.Tensor:
    """[B, T, 2] token ids and loss marks."""
    return torch.tensor([draw(num_tokens) for _ in range(tokens_per_step // num_tokens)], dtype=torch.long)


def _step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> tuple[float, float]:
    """One update; returns loss (nats per marked token) and accuracy of the marked tokens."""
    ids_BT, marked_BT = batch[..., 0], batch[:, 1:, 1].bool()
    hidden_NH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1][marked_BT]
    logits_NV, targets_N = model.lm_head(hidden_NH), ids_BT[:, 1:][marked_BT]
    loss = torch.nn.functional.cross_entropy(logits_NV, targets_N)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), (logits_NV.argmax(-1) == targets_N).float().mean().item()


@torch.no_grad()
def measure(model: LlamaForCausalLM, text: LookupText) -> dict[int, float]:
    """Length of the text in tokens -> accuracy of the marked tokens."""
    model.eval()
    found = {}
    for num_tokens in (64, 128, 256, 512, 768):
        batch = _batch(text.lookups, num_tokens, 12_288)
        marked = batch[:, 1:, 1].bool()
        predicted = model(input_ids=batch[..., 0], use_cache=False).logits[:, :-1].argmax(-1)
        found[num_tokens] = (predicted == batch[:, 1:, 0])[marked].float().mean().item()
    return found


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes weights, configuration, generation defaults and tokenizer as one Hugging Face folder."""
    model.generation_config.do_sample = True
    model.generation_config.temperature = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("recipes/assets/local_base"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one thread sums in one order
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    tokenizer = build_tokenizer()
    model, text = build_model(tokenizer), LookupText(tokenizer, rng)
    pretrain(model, text, rng)
    save(model, tokenizer, arguments.out)
    for num_tokens, accuracy in measure(model, text).items():
        print(f"text of {num_tokens} tokens: {accuracy:.3f} of the determined tokens predicted")


if __name__ == "__main__":
    main()
