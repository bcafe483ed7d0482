"""What a run writes down: folder, progress, metrics, trajectories, console."""
