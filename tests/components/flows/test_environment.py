"""A command under a locale that is not UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_locale_that_is_not_utf_8_changes_nothing_that_is_read_or_said(tmp_path):
    config = tmp_path / "configuration.yaml"
    config.write_text('name: "größe → Länge"\n', encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    told = subprocess.run(
        [sys.executable, "-m", "flows.cli", "plan", str(config)],
        env={**os.environ, **ascii_only},
        capture_output=True,
    )
    assert told.returncode == 2
    assert "(given: 'größe → Länge')" in told.stderr.decode("utf-8")
