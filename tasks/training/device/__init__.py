"""How a segment runs on a device: `auto` resolved by rule, the memory of a step, and what to do when it runs out."""
