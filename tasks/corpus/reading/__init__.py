"""Sources and readers: files, the hub and installed documentation. Reading continues where a slice ended."""
