"""This machine as seen by a run: processes, their environment, GPUs."""
