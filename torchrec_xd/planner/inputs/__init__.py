"""What is planned: a cluster, tables and constraints."""
