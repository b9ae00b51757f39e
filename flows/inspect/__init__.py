"""Inspection of a store after its runs: compare results, and free what nothing needs."""
