"""Engines: a pass over the blocks, by one Spark job each or by workers that stay."""
