"""One update of the weights: learning rate, AdamW, 8-bit moments, stochastic rounding, the pull to the base."""
