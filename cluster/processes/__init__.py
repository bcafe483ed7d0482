"""Ray: where actors run, how they start, and how the loop calls them."""
