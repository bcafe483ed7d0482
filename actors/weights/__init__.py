"""New weights into a vLLM engine."""
