"""Measure models: benchmarks through lm-evaluation-harness, perplexity on held-out documents, questions made from
them."""
