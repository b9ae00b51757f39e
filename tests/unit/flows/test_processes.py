"""A process is known on a machine of any name."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from flows.machine.processes import ProcessId
from flows.services.record import worker_name


@pytest.mark.parametrize("name", ["box", "a:b:c", "two words", "schön", "\udcff\udcfe", "a\nb\x1b[0m", ""])
def test_a_process_is_known_on_a_host_of_any_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A kernel takes any bytes as the machine's name; JSON, Prefect and our own one-line form do not."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename=name))
    own = ProcessId.current()
    assert ProcessId.from_text(own.to_text()) == own
    assert own.state() == "alive"
    json.dumps(own.to_dict(), ensure_ascii=False).encode()
    worker_name("cpu").encode()
    assert own.host.isprintable()
