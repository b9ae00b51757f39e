"""MLflow: what a run tells it, by events that are kept beside the store until they are published."""
