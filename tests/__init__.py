"""The tests, by tier: unit, contracts, components, system, agreement; what they share is in `support`. See README.md."""
