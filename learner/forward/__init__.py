"""Rows through the model: tensors, log-probabilities, the three phases of a long row."""
