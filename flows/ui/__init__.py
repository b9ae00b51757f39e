"""What Prefect's pages show of a run: its form, its progress, its artifacts, its log."""
