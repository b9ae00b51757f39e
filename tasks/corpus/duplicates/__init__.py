"""Copies and near-copies: signatures, candidates and their comparison."""
