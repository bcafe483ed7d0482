"""What the product calls of deepspeed.zero, which comes without types."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch.nn import Module, Parameter

class Init:
    def __init__(
        self, module: Module, *, config_dict_or_path: dict[str, Any], zero_param_parallel_group: Any = None
    ) -> None: ...

def GatheredParameters(params: Sequence[Parameter]) -> AbstractContextManager[None]: ...
