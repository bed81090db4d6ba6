"""What a plan is made from: the cluster, the tables of a model or of a list, constraints and settings."""
