"""The policy, partitioned by DeepSpeed ZeRO-3, and its checkpoints."""
