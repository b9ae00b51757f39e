"""The trainer: its own process, knowing nothing of the orchestra.

`python -m tasks.training SPEC.json` runs with torch, transformers, safetensors, pyarrow and numpy alone. Of this
project it imports modules of storage/ that need nothing else (errors, fields, units, atomic, code, tokens, packing).
Under torchrun the same module is one of several processes (process/; join.py for further machines).

What must stay true: a run killed at any instant and started again ends with the same bytes as one that was
never killed, and every token of the global batch counts once, whatever the micro-batch and the processes.

Folders import only those before them: process (how processes start, meet and end), update (the optimizer), state (what
is on disk), device (what a step takes of a device). spec.py says what the trainer is told, combinations.py what of it
does not go together, read_spec.py reads it; loop.py is the way through.
"""
