"""Where models and documents came from and what happened to them, read from the store."""
