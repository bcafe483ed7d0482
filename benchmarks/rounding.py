"""What rounding does to log-probabilities, by depth, width and spread of the logits.

Random Qwen2 models, whose head is scaled so that the logits spread by `spread`, and the base of the local recipe, over
random tokens. `c` is the mean difference of two right computations over u * scale, see `learner.rounding`: the model in
its type, with torch's attention kernel, against the same weights in fp64, and in bf16 also against plain attention. The
limit is at c = `FACTOR`.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.line import Claim, environment, print_line, say
from learner.rounding import FACTOR, UNIT

BASE = Path(__file__).parents[1] / "recipes" / "assets" / "local_base"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VOCABULARY = 4096


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounding", description=__doc__)
    for name, default in (("tokens", 256), ("threads", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, kind, default in (
        ("layers", int, (2, 8, 24)),
        ("hidden", int, (128, 512)),
        ("spread", float, (0.5, 4.0)),
    ):
        parser.add_argument(f"--{name}", type=kind, nargs="+", default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {"local_base": measure(_base(), options)}
    say(f"local_base: {found['local_base']}")
    for layers in options.layers:
        for hidden in options.hidden:
            for spread in options.spread:
                name = f"{layers} layers of {hidden}, spread {spread:g}"
                found[name] = measure(_random(layers, hidden, spread, options), options)
                say(f"{name}: {found[name]}")
    worst = {
        dtype: max(value for row in found.values() for key, value in row.items() if dtype in key) for dtype in UNIT
    }
    claims = [Claim.at_most(f"largest c in {dtype}", c, "u", FACTOR / 2) for dtype, c in worst.items()]
    print_line("rounding", claims, {**found, "environment": environment("torch", "transformers")})


def measure(model: Any, options: argparse.Namespace) -> dict[str, float]:
    """The c of every pair of computations, and the scale."""
    torch.manual_seed(options.seed)
    ids = torch.randint(10, min(VOCABULARY, model.config.vocab_size) - 10, (1, options.tokens))
    exact = _logprobs(model, ids, torch.float64, "sdpa")
    labels = ids[0, 1:, None]
    scale = (exact.std(-1, correction=0) * (1 - exact.gather(1, labels).squeeze(1).exp())).mean().item()

    def c(ours: Tensor, theirs: Tensor, dtype: str) -> float:
        gap = (ours.gather(1, labels) - theirs.gather(1, labels)).abs().mean().item()
        return round(gap / (UNIT[dtype] * scale), 3)

    bf16 = _logprobs(model, ids, torch.bfloat16, "sdpa")
    return {
        "scale": round(scale, 3),
        "fp32 against fp64": c(_logprobs(model, ids, torch.float32, "sdpa"), exact, "fp32"),
        "bf16 against fp64": c(bf16, exact, "bf16"),
        "bf16 against another kernel": c(bf16, _logprobs(model, ids, torch.bfloat16, "eager"), "bf16"),
    }


def _logprobs(model: Any, ids: Tensor, dtype: torch.dtype, attention: str) -> Tensor:
    """[T - 1, V] with a head in fp64, which the product's head equals to 1e-6."""
    other = copy.deepcopy(model).to(dtype)
    other.set_attn_implementation(attention)
    with torch.no_grad():
        hidden = other.model(ids).last_hidden_state[0, :-1]
        return (hidden.double() @ other.lm_head.weight.double().T).log_softmax(-1)


def _base() -> Any:
    from transformers import AutoModelForCausalLM

    return _rounded(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32))


def _random(layers: int, hidden: int, spread: float, options: argparse.Namespace) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(options.seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight *= spread / model(torch.arange(64)[None]).logits.std(-1).mean()
    return _rounded(model)


def _rounded(model: Any) -> Any:
    """The model with weights that bf16 holds exactly, so that all types start from the same numbers."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    return model


if __name__ == "__main__":
    main()
