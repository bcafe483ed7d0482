"""The weights of a Hugging Face model where its files are mapped: a rank reads no more than the stretch it keeps.

Ranks on one machine share the pages of a file. The names and shapes must be those of the model, so that no weight
stays what it was by chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from actors.model_folder import WEIGHTS, WEIGHTS_INDEX, weight_files
from curriculum.errors import UserError, first_line, library_words
from curriculum.files import file_errors

_utils: Any = torch.utils  # where its declarations have no complete types

_OLD_BUFFER = ".rotary_emb.inv_freq"
"""End of names that old files of Llama models have besides their weights; computed from the configuration today."""
_NAMED_FAULTS = 3


def stored_weights(causal_lm: Any, model_path: str) -> dict[str, Tensor]:
    """Return what the files hold for every parameter and stored buffer of a model, mapped; nothing is read yet.

    Args:
        causal_lm: the model, with or without values; tied parameters may be stored under any of their names.
        model_path: Hugging Face folder or hub id, with its weights as safetensors.

    Raises:
        UserError: there are no such files, they are damaged, or they hold other weights than the model has.
    """
    found = _mapped(model_path)
    own: dict[str, Tensor] = causal_lm.state_dict(keep_vars=True)
    names_of: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names_of.setdefault(id(tensor), []).append(name)
    stored = {name: found[other] for name in own for other in reversed(names_of[id(own[name])]) if other in found}
    faults = [f"no {name}" for name in own if name not in stored]
    faults += [
        f"{name}, which it does not have" for name in found.keys() - own.keys() if not name.endswith(_OLD_BUFFER)
    ]
    faults += [
        f"{name} of shape {list(stored[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    if not faults:
        faults = [fault for names in names_of.values() for fault in _contradictions(names, found)]
    if faults:
        more = f" and {len(faults) - _NAMED_FAULTS} more" if len(faults) > _NAMED_FAULTS else ""
        raise UserError(
            f"model {model_path!r}: its files do not hold the weights of the model in its config.json: "
            f"{', '.join(sorted(faults)[:_NAMED_FAULTS])}{more}; use the config.json that belongs to them, or save the "
            "model again with save_pretrained"
        )
    return stored


def give_memory(parameter: nn.Parameter, device: torch.device) -> None:
    """Give a parameter on the meta device memory without values; all modules that share it keep sharing it."""
    with_memory = torch.empty_like(parameter, device=device)
    _utils.swap_tensors(parameter, nn.Parameter(with_memory, requires_grad=parameter.requires_grad))


def fill(part: Tensor, start: int, stored: Tensor) -> None:
    """Copy a stretch of a tensor, seen flat, from its file; elements after its end are padding and become zero.

    Args:
        part: [n] filled in place, on any device; values are rounded to its type.
        start: its first element in the tensor.
        stored: the whole tensor, mapped.
    """
    stretch = stored.flatten()[start : start + len(part)]
    part[: len(stretch)].copy_(stretch)
    part[len(stretch) :].zero_()


def _mapped(model_path: str) -> dict[str, Tensor]:
    """Return the tensors in the files of a model by name."""
    name = f"model {model_path!r}"
    folder = Path(model_path) if Path(model_path).is_dir() else _downloaded(model_path, name)
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder, name=name):
        try:
            with file_errors(folder / file, "read"):
                opened: Any = safe_open(folder / file, framework="pt")
            tensors |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{name}: {file} cannot be read ({error}); download the model again") from error
        except RuntimeError as error:  # of torch
            raise UserError(
                f"{name}: {file} cannot be mapped ({first_line(error)}); save the model in smaller files, with "
                "save_pretrained(max_shard_size='5GB')"
            ) from error
    return tensors


def _downloaded(hub_id: str, name: str) -> Path:
    """Return the folder in the cache of the hub that holds the weights of a model, after a download if need be."""
    import huggingface_hub

    hub: Any = huggingface_hub
    try:
        folder = Path(hub.snapshot_download(hub_id, allow_patterns=[WEIGHTS, WEIGHTS_INDEX]))
        return Path(hub.snapshot_download(hub_id, allow_patterns=weight_files(folder, name=name)))
    except UserError:
        raise
    except Exception as error:  # the hub raises errors of many kinds
        raise UserError(
            f"{name}: no weights can be had from the hub ({library_words(error)}); check the name and the network"
        ) from error


def _contradictions(names: list[str], found: dict[str, Tensor]) -> list[str]:
    """Return what is wrong if tied parameters are stored under several names with different values."""
    first, *others = [name for name in names if name in found]
    return [
        f"{other} with other values than {first}, to which it is tied"
        for other in others
        if not torch.equal(found[first], found[other])
    ]
