"""What the product calls of deepspeed.zero, which comes without types."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch.nn import Parameter

def GatheredParameters(params: Sequence[Parameter]) -> AbstractContextManager[None]: ...
