"""What a run is told: the recipe, its keys, its faults, and what is read before anything starts."""
