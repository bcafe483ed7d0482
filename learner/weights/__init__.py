"""Full weights out of the learner."""
