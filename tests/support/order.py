"""The order in which files of tests are begun."""

from __future__ import annotations

LONGEST = (
    "components/flows/test_deploy.py",
    "system/training/test_processes.py",
    "system/test_ui.py",
    "system/test_run.py",
    "system/test_services.py",
    "system/training/test_sharding.py",
    "system/test_stop.py",
    "system/docker/test_stack.py",
    "system/test_kill.py",
    "system/test_outage.py",
    "components/training/test_kill.py",
    "components/flows/test_tracking.py",
    "components/flows/test_evaluation.py",
    "components/test_safety.py",
    "system/test_readme.py",
    "system/test_mlflow_away.py",
    "system/test_two_processes.py",
    "system/test_frugal.py",
    "components/flows/test_collect.py",
    "components/training/test_frugal_resume.py",
    "agreement/test_harness.py",
    "system/test_dask.py",
    "components/training/test_memory.py",
    "components/training/test_out_of_memory.py",
    "components/training/test_attention.py",
    "components/corpus/test_hub.py",
)
"""The files of minutes, about the longest first. They are begun first: one that is begun late is left alone at the end.

Two of the first three need no `reference_run`, for which the others wait.
"""
