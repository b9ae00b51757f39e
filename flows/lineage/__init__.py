"""Where models and documents came from and what became of them, read from what the store holds."""
