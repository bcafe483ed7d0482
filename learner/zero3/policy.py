"""The trained module: a causal language model that scores the response tokens of a packed row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from curriculum.errors import UserError
from learner.attention.shared_prefix import ATTENTION_KEY, register
from learner.forward.logprobs import ResponseHead, TokenLoss
from learner.forward.row_tensors import PromptTensors, RowTensors
from learner.zero3.model_files import copy_model_files
from learner.zero3.model_folder import write_model


class Policy(nn.Module):
    """Backbone and LM head of a Hugging Face model in one `forward`, the one that DeepSpeed wraps."""

    def __init__(self, causal_lm: Any) -> None:
        """Take a `PreTrainedModel` with `attn_implementation="shared_prefix"`; replace its head by a `ResponseHead`.

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

    def forward(
        self, row: RowTensors | PromptTensors, loss: TokenLoss | None = None, prompt_states_SH: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Compute loss and scores of the response tokens of a row, or the last states of a row of prompts.

        Args:
            row: a packed row, or the prompts of one.
            loss: of the tokens; None only scores them.
            prompt_states_SH: result of the pass over the prompts, for a row of responses alone.

        Returns:
            the loss and the columns of `TokenScores`; for prompts, one tensor [S, H].
        """
        hidden_TH = self.causal_lm.get_decoder()(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            use_cache=False,
            row_layout=row.layout,
        ).last_hidden_state[0]
        if isinstance(row, PromptTensors):
            return (hidden_TH[row.last_S],)
        if prompt_states_SH is not None:
            hidden_TH = torch.cat((prompt_states_SH, hidden_TH))
        head = cast(ResponseHead, self.causal_lm.get_output_embeddings())
        return head(hidden_TH[row.predictors_N], row.labels_N, row.temperature_N, row.top_p_N, loss)

    def write(self, directory: Path, weights: dict[str, Tensor], model_path: str, overrides: Mapping[str, Any]) -> None:
        """Write a Hugging Face folder with these weights; it appears whole, and replaces an earlier one.

        Args:
            directory: the folder; a link is followed.
            weights: full weights by their Hugging Face names.
            model_path: folder or hub id that has everything else.
            overrides: what its config.json gets besides, by key.

        Raises:
            UserError: it cannot be written.
        """
        dtype = str(self.causal_lm.dtype).removeprefix("torch.")
        with_code = self.causal_lm.is_remote_code()
        add_files = partial(copy_model_files, model_path, dtype=dtype, with_code=with_code, overrides=overrides)
        write_model(directory, add_files, weights, weights.__getitem__)


def load_policy(
    model_path: str,
    *,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
    trust_remote_code: bool,
    overrides: Mapping[str, Any] | None = None,
) -> Policy:
    """Load a Hugging Face folder or hub id as a policy in training mode.

    Args:
        model_path: folder or hub id.
        dtype: type of its weights.
        gradient_checkpointing: compute activations again in the backward pass.
        trust_remote_code: run code that comes with the model.
        overrides: values of its configuration that replace those of the folder, as `config_overrides` returns them.

    Raises:
        OSError: the folder is missing or not a model (from transformers).
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    register()
    loader: Any = AutoModelForCausalLM
    causal_lm = loader.from_pretrained(
        model_path,
        dtype=dtype,
        attn_implementation=ATTENTION_KEY,
        trust_remote_code=trust_remote_code,
        **(overrides or {}),
    )
    if gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    return Policy(causal_lm).train()


def _changes_logits(config: object) -> bool:
    return any(getattr(config, name, None) not in (None, 1.0) for name in ("logit_scale", "final_logit_softcapping"))
