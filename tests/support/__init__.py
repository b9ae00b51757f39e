"""What tests share: small runs, servers, models and data, and programs that tests start as processes of their own."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project's own directory."""
