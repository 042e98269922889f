"""Other people's annotation files -> JSON lines or tar shards of the kit."""
