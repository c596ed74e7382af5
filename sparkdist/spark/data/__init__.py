"""Rows: from whatever Spark has them in to blocks that stay on the executors."""
