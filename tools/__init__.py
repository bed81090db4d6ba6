"""Tools run beside training."""
