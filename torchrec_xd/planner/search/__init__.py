"""The search for the plan whose slowest rank is fastest."""
