"""Rows through the model: tensors, layers in parts, log-probabilities."""
