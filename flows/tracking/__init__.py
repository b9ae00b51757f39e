"""MLflow: what a run publishes, through events that are kept beside the store until they are published."""
