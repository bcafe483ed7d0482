"""The model of the weight-update benchmark, and how many of its values an update of reinforcement learning changes."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import torch
from safetensors.torch import load_file

from actors.weights.tensors import described
from actors.weights.update import Segment, WeightUpdate, segment_offsets
from learner.weights.sender import carrying_values

TOKENIZER = Path(__file__).parents[1] / "recipes" / "assets" / "local_base"
TINY_LEARNING_RATE = 2e-6
"""Of reinforcement learning; what AdamW moves a value by in its first update."""


def save_model(folder: Path, options: Namespace) -> Path:
    """A Hugging Face folder with a random Qwen2 of these sizes, tied embeddings, fp32, and any tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(options.seed)
    config = Qwen2Config(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(1, options.hidden // 256),
        intermediate_size=options.intermediate,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = folder / "model"
    Qwen2ForCausalLM(config).save_pretrained(model, max_shard_size="100GB")
    for file in TOKENIZER.glob("*token*"):
        shutil.copy(file, model)
    shutil.copy(TOKENIZER / "chat_template.jinja", model)
    return model


def delta_share(model: Path) -> float:
    """Bytes of the changes over bytes of the weights, in bf16, after every value moved by the learning rate."""
    base = load_file(model / "model.safetensors")
    torch.manual_seed(0)
    moved = {name: w + TINY_LEARNING_RATE * torch.randn_like(w).sign() for name, w in base.items()}
    old, new = (_laid_out(weights, version) for version, weights in enumerate((base, moved)))
    changes = carrying_values(*new, base=old)
    return changes.num_travelling_bytes / changes.num_bytes


def _laid_out(weights: dict[str, torch.Tensor], version: int) -> tuple[WeightUpdate, Segment]:
    tensors = {name: weight.bfloat16() for name, weight in weights.items()}
    records = tuple(described(name, tensor, version=version, stride=64) for name, tensor in tensors.items())
    segment = Segment(segment_offsets(records)[-1])
    update = WeightUpdate(version=version, source=segment.path, tensors=records)
    for tensor, piece in zip(tensors.values(), update.pieces(segment.data), strict=True):
        torch.from_numpy(piece).copy_(tensor.reshape(-1).view(torch.uint8))
    return update, segment
