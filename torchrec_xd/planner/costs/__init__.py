"""Every way of sharding a table, with time and memory from torchrec's cost model or from measured lookups."""
