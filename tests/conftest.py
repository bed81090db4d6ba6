"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# How long an example takes says something about who else uses the machine, and nothing about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
