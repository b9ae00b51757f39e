"""Ask once more, alone and one after the other, the tests that failed while others ran beside them.

    python -m tests.support.alone

pytest has left their names in its cache. A test that starts servers and kills them may fail on a machine that has too much
to do; alone it must hold. A test that claims equal bytes after a kill is not asked again: it must never fail. Neither is
anything asked again when many tests failed: something is broken then.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

from tests.support import ROOT

MOST = 4
NEVER_AGAIN = (
    "tests/agreement/",
    "tests/components/training/test_frugal_resume.py",
    "tests/components/training/test_kill.py",
    "tests/system/test_kill.py",
)
"""Where every test claims equality after a kill, or with a reference."""
_CLAIMS_EQUALITY = re.compile(r"_(bits?|bytes?|equals?|same|undisturbed)(_|$|\[)")
"""In the name of a test anywhere."""


def may_be_asked_again(failed: list[str]) -> bool:
    """Whether these tests, by their node ids, are few, and none of them claims equality."""
    strict = [
        name
        for name in failed
        if name.startswith(NEVER_AGAIN) or _CLAIMS_EQUALITY.search(name.rpartition("::")[2])
    ]
    return 0 < len(failed) <= MOST and not strict


def main() -> int:
    remembered = ROOT / ".pytest_cache/v/cache/lastfailed"
    failed = sorted(json.loads(remembered.read_text())) if remembered.exists() else []
    if not may_be_asked_again(failed):
        return 1
    print(f"\nAsked once more, alone: {', '.join(failed)}", flush=True)
    command = [sys.executable, "-m", "pytest", "-v", *failed]
    if subprocess.run(command, cwd=ROOT).returncode:
        return 1
    print(f"\nFailed while others ran, and passed alone (unsteady, to be mended): {', '.join(failed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
