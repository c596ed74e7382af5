"""The room that knows Spark."""
