"""How a segment uses a device: how `auto` is resolved, how much memory a step needs, what to do if memory runs out."""
