"""The trained module: a causal language model that scores the response tokens of a packed row."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from curriculum.errors import UserError
from learner.attention.shared_prefix import ATTENTION_KEY, register
from learner.forward.layer_parts import run_layers_in_parts
from learner.forward.logprobs import ResponseHead, TokenLoss
from learner.forward.row_tensors import RowTensors
from learner.zero3.model_files import copy_model_files
from learner.zero3.model_folder import write_model


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

    def write(self, directory: Path, weights: dict[str, Tensor], model_path: str) -> None:
        """Write a Hugging Face folder with these weights; it appears whole, and replaces an earlier one.

        Args:
            directory: the folder; a link is followed.
            weights: full weights by their Hugging Face names.
            model_path: folder or hub id that has everything else.

        Raises:
            UserError: it cannot be written.
        """
        dtype = str(self.causal_lm.dtype).removeprefix("torch.")
        add_files = partial(copy_model_files, model_path, dtype=dtype, with_code=self.causal_lm.is_remote_code())
        write_model(directory, add_files, weights, weights.__getitem__)


def load_policy(
    model_path: str, *, dtype: torch.dtype, trust_remote_code: bool, recompute: bool = False, offload: bool = False
) -> Policy:
    """Load a Hugging Face folder or hub id as a policy in training mode; see `Policy`.

    Raises:
        OSError: the folder is missing or not a model (from transformers).
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    register()
    loader: Any = AutoModelForCausalLM
    causal_lm = loader.from_pretrained(
        model_path, dtype=dtype, attn_implementation=ATTENTION_KEY, trust_remote_code=trust_remote_code
    )
    return Policy(causal_lm, recompute=recompute, offload=offload).train()


def _changes_logits(config: object) -> bool:
    return any(getattr(config, name, None) not in (None, 1.0) for name in ("logit_scale", "final_logit_softcapping"))
