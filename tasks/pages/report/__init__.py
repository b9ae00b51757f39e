"""The report: what the adaptation did to the model and what was done to the data, and what it cost."""
