"""A tiny corpus and tiny models for the trainer, and trainers as processes."""
