"""From text to token ids: a tokenizer's vocabulary, and a faster encoder where it gives the same ids."""
