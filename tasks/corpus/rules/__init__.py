"""Filter rules. Each has a name and a threshold, and measures a batch of texts column by column."""
