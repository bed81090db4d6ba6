"""What each way of sharding a table costs."""
