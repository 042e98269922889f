"""Sources of large data: what the `datasets` library reads, and tar shards."""
