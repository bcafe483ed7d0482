"""What the product calls of pyarrow.parquet, which comes without types."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow import RecordBatch, Schema, Table

class ParquetFile:
    schema_arrow: Schema
    def __init__(self, source: Path) -> None: ...
    def iter_batches(self, batch_size: int = ..., *, columns: Sequence[str]) -> Iterator[RecordBatch]: ...

def write_table(table: Table, where: Path) -> None: ...
