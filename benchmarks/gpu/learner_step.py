"""Training steps of the learner itself, DeepSpeed included, on one rank: the prompt shared, in parts, and dense.

Prints a line for every measurement as soon as it is made, and one for each group that compares them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.options import GROUPS, TINY, TINY_GROUPS, Group, add_kernel, is_missing, parse, peak_flops
from benchmarks.gpu.rates import synchronize
from benchmarks.line import Claim, environment, print_line, say
from learner.batch.packing import plan_slice
from learner.config import LearnerConfig
from learner.engine import LearnerEngine, Stage
from learner.forward.running_batch import mini_batch_parts
from tests.harness.meta_learner import SIZES, Case, Size, make_group, measure

NAME = "gpu_learner_step"
SHARE_OF_CEILING = 0.85
PEAK_AGAINST_PREDICTION = 1.15
STATIC_BYTES = 2 + 4 + 12
"""Of a parameter on one rank: weight in bf16, gradient in fp32, master weight and moments."""
WARM_UP = Group(prompt=64, response=16, size=2)
WAYS = ("whole", "parts", "dense")
REPEATS = {"whole": 2, "parts": 2, "dense": 1}


class Rank:
    """The only rank of a learner with random weights."""

    def __init__(self, model: Size, options: Namespace, folder: Path) -> None:
        """Make the model, start the engine, and let it check the shared prompt in its first two steps."""
        self._device = options.device
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29519", OMP_NUM_THREADS="4")
        write_model(model, folder, options.device)
        config = LearnerConfig(dtype="bf16", gradient_checkpointing=True, attention=options.kernel)
        self._engine = LearnerEngine(config, str(folder), rank=0, world_size=1, seed=0, on_gpu=options.device == "cuda")
        self._engine.start_stage(Stage.RL)
        for _ in range(2):
            self.step(WARM_UP, "whole")

    def step(self, group: Group, way: str) -> bool:
        """One training step; return whether the prompt was shared."""
        made = make_group(group.prompt, [group.response] * group.size, vocab=512)
        longest = group.prompt + group.response * (1 if way == "parts" else group.size)
        (part,) = mini_batch_parts(0, 1, batch_groups=1, num_mini_batches=1)
        self._engine.accumulate(plan_slice([made], num_ranks=1, max_tokens=longest), {0: made}, part)
        return bool(self._engine.update(learning_rate=1e-6).prompt_sharing)

    def stop_sharing(self) -> None:
        """What a failed self-check does: from now on every response has its own copy of the prompt."""
        self._engine._share_no_prompts()
        self.step(WARM_UP, "dense")

    def measure(self, group: Group, way: str) -> dict[str, Any]:
        """Seconds of a step, and the peak of memory on a card."""
        if way != "dense":
            self.step(group, way)
        on_card = self._device == "cuda"
        if on_card:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(REPEATS[way]):
            synchronize(self._device)
            started = time.perf_counter()
            shared = self.step(group, way)
            synchronize(self._device)
            seconds.append(time.perf_counter() - started)
            assert shared == (way != "dense"), "the learner has not done what was to be measured; see its log"
        return {
            "seconds": statistics.median(seconds),
            "repeats": seconds,
            "peak_bytes": torch.cuda.max_memory_allocated() if on_card else None,
            "reserved_bytes": torch.cuda.max_memory_reserved() if on_card else None,
        }


def write_model(size: Size, folder: Path, device: str) -> None:
    """A Qwen2 with random weights in a folder."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            Qwen2ForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    if device == "cuda":
        torch.cuda.empty_cache()


def predicted_bytes(model: Size, group: Group, way: str) -> int:
    """Peak on one rank: what it holds anyway, and the activations of the same update on tensors without values."""
    case = Case(size=model, prompt=group.prompt, response=group.response, group=group.size, parts=way == "parts")
    return STATIC_BYTES * model.num_parameters + measure(case).activations


def report(model: Size, group: Group, way: str, found: dict[str, Any], options: Namespace) -> None:
    """Print the line of one measurement."""
    shape = group.shape(model)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    flops = 3 * (shape.dense_flops if way == "dense" else shape.shared_flops)
    rate, claims = peak_flops(device), []
    detail = {"way": way, "kernel": options.kernel, "device": device, **_sizes(group), **found}
    detail |= {"tflops": flops / found["seconds"] / 1e12, "mfu": rate and flops / found["seconds"] / rate}
    if way != "dense":
        detail["predicted_bytes"] = predicted_bytes(model, group, way)
        if found["peak_bytes"] is not None:
            ratio = found["peak_bytes"] / detail["predicted_bytes"]
            claims.append(Claim.at_most("peak memory against the prediction", ratio, "ratio", PEAK_AGAINST_PREDICTION))
    print_line(NAME, claims, {**detail, "environment": environment("torch", "deepspeed", "transformers")})


def compare(model: Size, group: Group, found: dict[str, dict[str, Any]], options: Namespace) -> None:
    """Print how the ways relate, once all are there that are needed."""
    if "whole" not in found or "dense" not in found:
        return
    ceiling = group.shape(model).ceiling
    speedup = found["dense"]["seconds"] / found["whole"]["seconds"]
    detail: dict[str, Any] = {"kernel": options.kernel, **_sizes(group), "speedup": speedup, "ceiling": ceiling}
    if "parts" in found:
        detail["parts_against_whole_seconds"] = found["parts"]["seconds"] / found["whole"]["seconds"]
        if found["whole"]["peak_bytes"]:
            detail["parts_against_whole_peak"] = found["parts"]["peak_bytes"] / found["whole"]["peak_bytes"]
    claim = Claim.at_least("share of the FLOP ceiling", speedup / ceiling, "ratio", SHARE_OF_CEILING)
    print_line(f"{NAME}_against_dense", [claim], detail)


def _sizes(group: Group) -> dict[str, int]:
    return {"prompt": group.prompt, "response": group.response, "group": group.size}


def main() -> None:
    """Measure every group in every way while there is time; one that fails is said and left out."""
    parser = ArgumentParser(prog="python -m benchmarks.gpu.learner_step", description=__doc__)
    add_kernel(parser)
    options = parse(parser)
    if is_missing(NAME, options):
        return
    deadline = time.monotonic() + options.seconds
    model, groups = (TINY, TINY_GROUPS) if options.tiny else (SIZES["1.5B"], GROUPS)
    found: dict[Group, dict[str, dict[str, Any]]] = {group: {} for group in groups}
    with tempfile.TemporaryDirectory() as folder:
        rank = Rank(model, options, Path(folder))
        todo = [(group, way) for group in groups for way in WAYS[:2]] + [(group, "dense") for group in groups]
        is_sharing = True
        for group, way in todo:
            if time.monotonic() > deadline:
                print_line(NAME, [], {"way": way, **_sizes(group), "skipped": "no time left"})
                continue
            try:
                if way == "dense" and is_sharing:
                    rank.stop_sharing()
                    is_sharing = False
                found[group][way] = rank.measure(group, way)
                report(model, group, way, found[group][way], options)
                compare(model, group, found[group], options)
            except Exception as error:  # out of memory, for example; what was measured before is printed
                say(f"{way} {group}: {error!r}")
                print_line(NAME, [], {"way": way, **_sizes(group), "problem": f"{type(error).__name__}: {error}"[:400]})


if __name__ == "__main__":
    main()
