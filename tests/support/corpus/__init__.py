"""Sources and slices of documents."""
