"""From text to token ids: a tokenizer's vocabulary, and the fast way where it gives the same ids."""
