"""Ask once more, alone and one after the other, the tests that failed while others ran beside them.

    python -m tests.support.alone

pytest has left their names in its cache. A test that starts servers and kills them may fail on a machine that has too much
to do; alone it must hold. A test that claims equal bytes after a kill is not asked again: it must never fail. Neither is
anything asked again when many tests failed: something is broken then.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support import ROOT

MOST = 4
NEVER_AGAIN = (
    "tests/agreement/",
    "tests/components/corpus/",
    "tests/components/storage/",
    "tests/components/training/",
    "tests/system/test_kill.py",
    "tests/system/test_dask.py",
    "tests/system/training/",
)


def may_be_asked_again(failed: list[str]) -> bool:
    return 0 < len(failed) <= MOST and not any(name.startswith(NEVER_AGAIN) for name in failed)


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
