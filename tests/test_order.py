"""Long files of tests are begun first, so that no worker waits at the end for another's."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import LONGEST_FIRST, ROOT


def test_files_that_are_to_be_begun_first_are_there():
    assert [name for name in LONGEST_FIRST if not (ROOT / "tests" / name).is_file()] == []


def test_two_workers_begin_with_the_longest_files(tmp_path):
    """xdist itself puts the files with the most tests first: seen where it runs files of the same names."""
    home, names = tmp_path / "tests", [*LONGEST_FIRST[:3], "test_many.py"]
    for name in reversed(names):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        tests = [f"def test_{number}(): time.sleep(0.2)" for number in range(9 if "many" in name else 4)]
        (home / name).write_text("\n".join(["import time", *tests]) + "\n")
    (home / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "--import-mode=importlib",
    ]
    answer = subprocess.run([*command, str(home)], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    done = [line.split("tests/")[1].split("::")[0] for line in answer.stdout.splitlines() if "PASSED" in line]
    begun = list(dict.fromkeys(done))
    assert (set(begun[:2]), begun[2:]) == (set(names[:2]), names[2:])
