"""A run with its surroundings: the stages as Prefect tasks, the account of an attempt, how it ends."""
