"""The servers, workers and deployments of one home, and the processes and states of its runs."""
