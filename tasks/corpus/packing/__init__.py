"""From documents to sequences: budgets, windows, best fit and the mixture of sources."""
