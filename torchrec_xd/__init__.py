"""Cross-domain recommendation models on sharded embedding tables."""
