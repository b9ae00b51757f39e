"""The trainer: a process of its own that knows nothing of Prefect or MLflow.

`python -m tasks.training SPEC.json` needs torch, transformers, safetensors, pyarrow and numpy alone. From this
project it imports only modules of storage/ that need nothing else (errors, fields, units, atomic, code, tokens,
packing). Under torchrun the same module runs as one of several processes (process/; join.py adds further machines).

What must stay true: a run that is killed at any instant and started again ends with the same bytes as a run that
was never killed. Every token of the global batch counts once, whatever the micro-batch and the number of processes.

Each folder imports only the folders before it: process (how processes start, meet and end), update (the optimizer),
state (what is on disk), device (what a step needs from a device). spec.py defines the specification,
combinations.py refuses settings that do not go together, read_spec.py reads the file. loop.py runs a segment from
start to end.
"""
