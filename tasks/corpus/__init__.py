"""From text to training sequences: one module per stage, one folder for the internals of each."""
