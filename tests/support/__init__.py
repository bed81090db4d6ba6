"""What several tests share: small data, small models, ranks, commands. No test imports from another test."""
