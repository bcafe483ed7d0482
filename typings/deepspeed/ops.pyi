"""What the product sets in deepspeed.ops, which comes without types."""

__compatible_ops__: dict[str, bool]
