"""What every node of a cluster has, and what of it a run could not work with. Knows nothing of Ray."""
