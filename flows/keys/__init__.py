"""Every key of a configuration, written down: docs/configuration.md and configs/schema.json."""
