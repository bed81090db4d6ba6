"""Chooses a way of sharding and the ranks of every table, and proves how far the choice is from the best one."""
