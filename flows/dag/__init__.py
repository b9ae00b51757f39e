"""The DAG: which artifacts a run requests, in which order, and what enters each key. It makes nothing itself."""
