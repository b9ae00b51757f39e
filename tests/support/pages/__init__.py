"""Artifacts for the report to read."""
