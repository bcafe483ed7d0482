"""What is minimised, and what is counted on the way."""
