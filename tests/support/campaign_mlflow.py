"""A campaign on MLflow's database and on the accounts of what it was told: one byte is flipped, and a run is told again.

What must come of it: the store as it was, no exception, and either nothing said, or a sentence that says what to do.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flows.tracking.account import DIRECTORY
from flows.tracking.database import damage_of
from tests.support import ROOT
from tests.support.campaign import Outcome
from tests.support.made import Made
from tests.support.mlflow_checks import check_whole

WAY_OUT = "start the run again, which publishes all"


@dataclass
class TrackingCampaign:
    """A database in `home` that knows a whole run."""

    made: Made
    home: Path
    seed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.database = self.home / "mlflow.db"
        said = self.tell(self.database)
        assert not said, said
        with contextlib.closing(sqlite3.connect(self.database)) as database:  # so that there are free pages
            database.execute("CREATE TABLE gone AS SELECT * FROM metrics, (SELECT 1 UNION SELECT 2)")
            database.execute("DROP TABLE gone")
            database.commit()
        self.page = 4096
        self.number = 0

    def tell(self, database: Path) -> list[str]:
        """Tell a run as a flow does; what it warns of."""
        said: list[str] = []
        tracker = self.made.tracker(f"sqlite:///{database}", "a1", warn=said.append)
        tracker.start()
        self.made.tell(tracker)
        tracker.close("FINISHED")
        return said

    def places(self) -> dict[str, list[range]]:
        """Bytes of the database by kind: the header, the schema, pages of each table and index that has rows, free ones."""
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            roots = dict(database.execute("SELECT rootpage, name FROM sqlite_schema WHERE rootpage > 0"))
            rows = {
                name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                for (name,) in database.execute(
                    "SELECT name FROM sqlite_schema WHERE type = 'table'"
                ).fetchall()
            }
        raw = self.database.read_bytes()
        page = self.page
        found: dict[str, list[range]] = {
            "header": [range(100)],
            "schema": [range(100, page)],
            "free": [range(number * page, (number + 1) * page) for number in set(_free(raw, page))],
        }
        for number, name in roots.items():
            if rows.get(name, 0) or name in ("alembic_version",):
                start = (number - 1) * page
                found[f"{name}, its head"] = [range(start, start + 12)]
                found[f"{name}, its cells"] = [range(start + 12, start + page)]
        taken = {*(number - 1 for number in roots), *_free(raw, page), 0}
        found["inner and leaf pages"] = [
            range(number * page, (number + 1) * page)
            for number in range(len(raw) // page)
            if number not in taken
        ]
        return found

    def strike(self, kind: str, places: list[range]) -> Outcome:
        """Flip a byte of a copy, tell the run again, and, where it is said to be damaged, once more without it."""
        self.number += 1
        directory = self.home / f"flip-{self.number}"
        directory.mkdir()
        copy = directory / "mlflow.db"
        shutil.copy(self.database, copy)
        raw = bytearray(copy.read_bytes())
        at = self.random.choice(self.random.choice(places))
        raw[at] ^= 1 << self.random.randrange(8)
        copy.write_bytes(raw)
        said = self.tell(copy)
        outcome = Outcome(f"MLflow's database: {kind}", "harmless")
        if said:
            assert len(said) == 1 and WAY_OUT in said[0] and f"mv {copy} {copy}.damaged" in said[0], (
                kind,
                at,
                said,
            )
            outcome.what, outcome.said = "refused", said[0]
        elif damage_of(copy):
            outcome.what = "not met"
        self._forget_accounts()
        shutil.rmtree(directory)
        self.outcomes.append(outcome)
        return outcome

    def without_it(self) -> None:
        """The way out, followed: a damaged database is set aside, and the next run, a process, tells all into a new one."""
        directory = self.home / "without"
        directory.mkdir()
        database = directory / "mlflow.db"
        raw = bytearray(self.database.read_bytes())
        raw[0] ^= 1
        database.write_bytes(raw)
        said = self.tell(database)
        assert len(said) == 1 and f"mv {database} {database}.damaged" in said[0], said
        database.rename(f"{database}.damaged")
        again = (
            "import sys; from pathlib import Path; from tests.support.made import opened; "
            "made = opened(Path(sys.argv[1]), Path(sys.argv[2])); tracker = made.tracker(sys.argv[3], 'a1'); "
            "tracker.start(); made.tell(tracker); tracker.close('FINISHED')"
        )
        address = f"sqlite:///{database}"
        command = [sys.executable, "-c", again, str(self.made.home), str(self.made.store.root), address]
        subprocess.run(command, check=True, cwd=ROOT)
        shutil.copy(
            database, directory / "told.db"
        )  # this process still has the damaged one open under its name
        check_whole(self.made, f"sqlite:///{directory / 'told.db'}")
        assert not list((self.made.store.root / DIRECTORY).glob("*.jsonl")), "all is told"

    def strike_account(self) -> Outcome:
        """Flip a byte of an account that was left, and tell a run again, which publishes what was left."""
        nowhere = self.home / "nowhere" / "mlflow.db"
        nowhere.parent.mkdir(exist_ok=True)
        nowhere.write_bytes(b"no database at all" * 300)
        self.tell(nowhere)
        [account] = (self.made.store.root / DIRECTORY).glob("*.jsonl")
        raw = bytearray(account.read_bytes().replace(str(nowhere).encode(), str(self.database).encode()))
        raw[self.random.randrange(len(raw))] ^= 1 << self.random.randrange(8)
        account.write_bytes(raw)
        said = self.tell(self.database)
        outcome = Outcome("the account of what MLflow was told", "refused" if said else "harmless", *said[:1])
        assert not said or "the next run" in said[0], said
        check_whole(self.made, f"sqlite:///{self.database}")
        self._forget_accounts()
        self.outcomes.append(outcome)
        return outcome

    def _forget_accounts(self) -> None:
        for pattern in ("*.jsonl", "*.damaged"):
            for path in (self.made.store.root / DIRECTORY).glob(pattern):
                path.unlink()


def _free(raw: bytes, page: int) -> Iterator[int]:
    """Pages of the list of free ones, counted from 0."""
    trunk = int.from_bytes(raw[32:36])
    while trunk:
        yield trunk - 1
        start = (trunk - 1) * page
        for number in range(int.from_bytes(raw[start + 4 : start + 8])):
            yield int.from_bytes(raw[start + 8 + 4 * number : start + 12 + 4 * number]) - 1
        trunk = int.from_bytes(raw[start : start + 4])
