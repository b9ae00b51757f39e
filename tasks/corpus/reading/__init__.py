"""Sources and readers: files, the hub and installed documentation, read on from where a slice ended."""
