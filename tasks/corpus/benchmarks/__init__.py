"""Benchmark questions, and where text contains them."""
