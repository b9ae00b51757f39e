"""Where shards run, and what may be named as the place; a shard that is made twice, or too late, does no harm."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from storage.draft import Draft
from storage.errors import ConfigError
from storage.executors import check_executor, description
from storage.workers import Workers


@pytest.mark.parametrize(
    "good", ["processes", "dask://127.0.0.1:8786", "dask+tls://head.node:8786", "dask://[::1]:8786"]
)
def test_an_executor_that_can_be_named(good):
    assert check_executor(good) == good


@pytest.mark.parametrize(
    "bad", ["threads", "dask://", "dask://host", "tcp://host:1", "dask://a b:1", "dask://h:1/x", "processes "]
)
def test_an_executor_that_cannot_be_named(bad):
    with pytest.raises(ValueError, match="dask://host:port"):
        check_executor(bad)


def test_without_dask_the_way_to_install_it_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'onward\[dask\]'"):
        Workers(executor="dask://127.0.0.1:8786")


def test_no_cluster_is_asked_where_there_is_nothing_to_run():
    with Workers(executor="dask://127.0.0.1:1") as workers:
        assert list(workers.run([])) == []


def test_what_workers_are_compared_by_names_code_and_libraries():
    found = description()
    assert len(found["code"]) == 64
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(found[name][0].isdigit() for name in ("numpy", "pyarrow", "polars", "tokenizers"))


class _Gone:
    """Takes the calls of a run that ends at once, for the test to begin when it likes, as a slow worker would."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def run(self, calls):
        self.calls |= {name: (function, arguments) for name, function, arguments in calls}
        raise KeyboardInterrupt  # the run is gone; its tasks are not


def two_files(job: tuple[threading.Event, threading.Event, bool], directory: Path) -> dict[str, Any]:
    begun, go, careless = job
    (directory / "inner").mkdir()
    (directory / "inner" / "first.txt").write_text("first")
    begun.set()
    assert go.wait(30)
    if careless:  # brings back the directory that was taken away
        (directory / "inner").mkdir(parents=True, exist_ok=True)
    (directory / "inner" / "second.txt").write_text("second")
    return {"rows": 2, "thread": threading.get_ident()}


def _held(
    work: Path, names: tuple[str, ...] = ("a",), careless: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tasks of an attempt whose run is gone, and the events by shard that they tell and wait for."""
    events = {name: (threading.Event(), threading.Event(), careless) for name in names}
    workers: Any = _Gone()
    with pytest.raises(KeyboardInterrupt):
        Draft(work, workers=workers).shards("letters", events, two_files)
    return workers.calls, events


def _free() -> tuple[threading.Event, threading.Event, bool]:
    go = threading.Event()
    go.set()
    return threading.Event(), go, False


def _start(call: tuple[Any, tuple[Any, ...]]) -> tuple[threading.Thread, list[Any]]:
    ended: list[Any] = []

    def target() -> None:
        try:
            ended.append(call[0](*call[1]))
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, ended


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_of_two_that_make_one_shard_at_once_the_first_stays(tmp_path):
    calls, events = _held(tmp_path / "work")
    one, of_one = _start(calls["a"])
    two, of_two = _start(calls["a"])
    events["a"][1].set()
    one.join()
    two.join()
    assert of_one == of_two and of_one[0]["stats"]["rows"] == 2
    assert of_one[0]["stats"]["thread"] in (one.ident, two.ident)
    assert _files(tmp_path / "work") == [
        "letters/a/.shard.json",
        "letters/a/inner/first.txt",
        "letters/a/inner/second.txt",
    ]


def test_a_task_of_a_run_that_is_gone_cannot_commit_once_the_next_has_begun(tmp_path):
    work = tmp_path / "work"
    calls, events = _held(work)
    late, of_late = _start(calls["a"])
    assert events["a"][0].wait(30)
    again = Draft(work)
    assert again.shards("letters", {"a": _free()}, two_files)["a"]["thread"] == threading.get_ident()
    events["a"][1].set()
    late.join()
    assert isinstance(of_late[0], Exception)
    parts, _ = again.finish()
    assert [entry.path for entry in parts["letters"].files] == [
        "letters/a/inner/first.txt",
        "letters/a/inner/second.txt",
    ]


def test_half_a_shard_never_comes_back(tmp_path):
    """The late task's first file is taken away; its second must not be committed alone, where nothing is there yet."""
    work = tmp_path / "work"
    calls, events = _held(work, careless=True)
    late, of_late = _start(calls["a"])
    assert events["a"][0].wait(30)
    Draft(work)
    events["a"][1].set()
    late.join()
    assert "was taken away" in str(of_late[0])
    assert not (work / "letters" / "a").exists()


def test_a_late_task_leaves_nothing_where_its_stage_has_ended(tmp_path):
    calls, events = _held(tmp_path / "work", ("a", "b"))
    late, of_late = _start(calls["a"])
    assert events["a"][0].wait(30)
    events["b"][1].set()
    again = Draft(tmp_path / "work")
    again.shards("letters", {"a": _free(), "b": _free()}, two_files)
    again.finish()
    os.rename(tmp_path / "work", tmp_path / "artifact")
    before = _files(tmp_path)
    events["a"][1].set()
    late.join()
    unstarted, of_unstarted = _start(calls["b"])
    unstarted.join()
    assert isinstance(of_late[0], Exception)
    assert "does not see" in str(of_unstarted[0])
    assert _files(tmp_path) == before
    assert not (tmp_path / "work").exists()


def test_what_lies_aside_is_in_no_part_and_its_loss_makes_the_shard_again(tmp_path):
    def stats() -> dict[str, Any]:
        return Draft(tmp_path).shards("letters", {"a": 3}, with_notes, aside=("notes.txt",))

    first = stats()
    assert stats() == first
    (tmp_path / "letters" / "a" / "notes.txt").unlink()
    again = Draft(tmp_path)
    assert again.shards("letters", {"a": 3}, with_notes, aside=("notes.txt",)) != first
    parts, volatile = again.finish()
    assert [entry.path for entry in parts["letters"].files] == ["letters/a/letters.txt"]
    assert [entry.rows for entry in parts["letters"].files] == [3]
    assert "letters/a/notes.txt" not in volatile


def with_notes(job: int, directory: Path) -> dict[str, Any]:
    (directory / "letters.txt").write_text("x" * job)
    (directory / "notes.txt").write_text("aside")
    return {"rows": job, "made": os.urandom(4).hex()}
