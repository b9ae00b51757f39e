"""A run with its surroundings: stages as Prefect tasks, the account of an attempt, and its end."""
