"""What a run writes: folder, progress, metrics, trajectories, console."""
