"""One update of the weights: the rate, AdamW, moments in 8 bits, rounding by chance, the pull to the base."""
