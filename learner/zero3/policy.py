"""The trained module: a causal language model that scores the response tokens of a packed row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from curriculum.errors import UserError
from learner.attention.shared_prefix import ATTENTION_KEY, register
from learner.forward.layer_parts import run_layers_in_parts
from learner.forward.logprobs import ResponseHead, TokenLoss
from learner.forward.row_tensors import RowTensors
from learner.zero3.model_files import copy_model_files
from learner.zero3.model_folder import write_model
from learner.zero3.model_weights import fill, give_memory, stored_weights


class Policy(nn.Module):
    """Backbone and LM head of a Hugging Face model in one `forward`, the one that DeepSpeed wraps."""

    def __init__(self, causal_lm: Any, *, recompute: bool = False, offload: bool = False) -> None:
        """Take a model, replace its head by a `ResponseHead`, and make its layers take rows in parts.

        Args:
            causal_lm: a `PreTrainedModel` with `attn_implementation="shared_prefix"`.
            recompute: keep only the inputs of the layers for the backward pass.
            offload: keep them in host memory.

        Raises:
            UserError: the LM head has a bias, or the model scales or caps its logits, which `ResponseHead` does not do.
        """
        super().__init__()
        head = causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear) or len(list(head.parameters())) > 1 or _changes_logits(causal_lm.config):
            raise UserError(
                f"{type(causal_lm).__name__}: the LM head is not a plain matrix; use a Qwen2, Qwen3 or Llama model"
            )
        self.causal_lm = causal_lm
        causal_lm.set_output_embeddings(ResponseHead(cast(nn.Parameter, head.weight)))
        run_layers_in_parts(causal_lm.get_decoder(), recompute=recompute, offload=offload)

    def forward(self, row: RowTensors, loss: TokenLoss | None = None) -> tuple[Tensor, ...]:
        """Return the loss of the response tokens of a row, and the columns of `TokenScores`.

        Args:
            row: a packed row.
            loss: of the tokens; None only scores them.
        """
        hidden_TH = self.causal_lm.get_decoder()(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            use_cache=False,
            row_parts=row.parts,
        ).last_hidden_state[0]
        head = cast(ResponseHead, self.causal_lm.get_output_embeddings())
        return head(hidden_TH[row.predictors_N], row.labels_N, row.temperature_N, row.top_p_N, loss)

    def write(
        self,
        directory: Path,
        weights: Mapping[str, Tensor],
        read: Callable[[str], Tensor],
        model_path: str,
        overrides: Mapping[str, Any],
        *,
        max_file_bytes: int,
    ) -> None:
        """Write a Hugging Face folder with these weights; it appears whole, and replaces an earlier one.

        Args:
            directory: the folder; a link is followed.
            weights: by their Hugging Face names; shape and dtype are looked at only.
            read: returns the full weight of a name; called in the order of `write_order`.
            model_path: folder or hub id that has everything else.
            overrides: what its config.json gets besides, by key.
            max_file_bytes: size of a file of weights.

        Raises:
            UserError: it cannot be written.
        """
        dtype = str(self.causal_lm.dtype).removeprefix("torch.")
        with_code = self.causal_lm.is_remote_code()
        add_files = partial(copy_model_files, model_path, dtype=dtype, with_code=with_code, overrides=overrides)
        write_model(directory, add_files, weights, read, max_file_bytes=max_file_bytes)


def take_whole(parameter: nn.Parameter, stored: Tensor) -> None:
    """Give a parameter without memory a copy of its values, in host memory."""
    give_memory(parameter, torch.device("cpu"))
    fill(parameter.detach().view(-1), 0, stored)


def load_policy(
    model_path: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool,
    recompute: bool = False,
    offload: bool = False,
    overrides: Mapping[str, Any] | None = None,
    take: Callable[[nn.Parameter, Tensor], None] = take_whole,
) -> Policy:
    """Load a Hugging Face folder or hub id as a policy in training mode; see `Policy`.

    The model is built without memory for its parameters; they get it one after the other, in the order of
    `named_parameters`.

    Args:
        model_path: folder or hub id, with its weights as safetensors.
        dtype: of all parameters, whatever type the files have.
        trust_remote_code: run code that comes with the model.
        recompute: as in `Policy`.
        offload: as in `Policy`.
        overrides: values of its configuration that replace those of the folder, as `config_overrides` returns them.
        take: gives a parameter memory, and the values that it is handed as a mapped file.

    Raises:
        OSError: the folder is missing or not a model (from transformers).
        UserError: its weights cannot be read, or are those of another model.
    """
    causal_lm = _without_memory(model_path, overrides or {}, dtype=dtype, trust_remote_code=trust_remote_code)
    stored = stored_weights(causal_lm, model_path)
    policy = Policy(causal_lm, recompute=recompute, offload=offload).train()
    for name, parameter in causal_lm.named_parameters():
        take(parameter, stored[name])
    for name, buffer in causal_lm.named_buffers():
        if name in stored:
            buffer.copy_(stored[name])
    return policy


def _without_memory(
    model_path: str, overrides: Mapping[str, Any], *, dtype: torch.dtype, trust_remote_code: bool
) -> Any:
    """Build a model whose parameters have shapes and no values; its buffers have those of the configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    register()
    config_of: Any = AutoConfig
    build: Any = AutoModelForCausalLM
    config = config_of.from_pretrained(model_path, trust_remote_code=trust_remote_code, **overrides)

    def drop(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # as it is
        empty = torch.empty_like(parameter, dtype=dtype, device="meta")
        return nn.Parameter(empty, requires_grad=parameter.requires_grad)

    register_hook: Any = register_module_parameter_registration_hook  # declared without a result
    hook = register_hook(drop)
    try:
        return build.from_config(
            config, dtype=dtype, attn_implementation=ATTENTION_KEY, trust_remote_code=trust_remote_code
        )
    finally:
        hook.remove()


def _changes_logits(config: object) -> bool:
    return any(getattr(config, name, None) not in (None, 1.0) for name in ("logit_scale", "final_logit_softcapping"))
