"""Where batches come from: strictly on-policy, or with a bounded policy lag."""
