"""Benchmark questions, and where they stand in text."""
