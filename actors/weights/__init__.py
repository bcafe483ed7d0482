"""New weights for a vLLM engine."""
