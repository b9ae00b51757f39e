"""Models to measure, and the harness beside ours."""
