"""The processes of one trainer: how they start and end, what they agree on, and how they share weights."""
