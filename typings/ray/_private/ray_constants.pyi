"""The one constant of Ray that the product sets."""

ENABLE_RAY_CLUSTER: bool
