"""The data page: what was done to the data of a run."""
