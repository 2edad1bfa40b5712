"""The table: what its columns are, how it is written and read."""
