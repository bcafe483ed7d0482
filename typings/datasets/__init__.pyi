"""What the product calls of datasets, which comes without complete types."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

class Dataset:
    column_names: list[str] | None
    def select_columns(self, column_names: Sequence[str]) -> Dataset: ...
    def __iter__(self) -> Iterator[dict[str, Any]]: ...

def load_dataset(path: str, name: str | None = None, *, data_files: Mapping[str, str] = ..., split: str) -> Dataset: ...
