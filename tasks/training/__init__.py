"""The trainer: its own process, knowing nothing of the orchestra.

`python -m tasks.training SPEC.json` runs with torch, transformers, safetensors, pyarrow and numpy alone. Of this
project it imports storage.errors, storage.atomic, storage.code, storage.tokens and storage.packing, nothing else.
Under torchrun the same module is one of several processes (processes.py; launch.py for the command, join.py for
further machines).

What must stay true: a run killed at any instant and started again ends with the same bytes as one that was
never killed, and every token of the global batch counts once, whatever the micro-batch and the processes.
"""
