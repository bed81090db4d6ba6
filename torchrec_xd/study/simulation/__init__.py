"""A/B tests over days in a planted world: every arm learns from what it has shown."""
