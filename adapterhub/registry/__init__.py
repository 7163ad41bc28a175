"""Registry: immutable numbered versions of adapters in plain folders, found by refs."""
