"""What is told of a run."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from flows.ui.console import Console
from storage.secrets import without_secrets


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(console: Console) -> list[str]:
    lines: list[str] = []
    console.tell = lambda text, warning: lines.append(text)
    return lines


def test_a_run_that_goes_on_is_told_in_a_few_lines():
    terminal = io.StringIO()
    console = Console(terminal)
    log = told(console)
    for number in range(1, 31):
        for stage in ("ingest", "dedup"):
            console.done(f"{stage} · slice {number} · c03dd0", "cached", 0.0, {})
    for number in range(31, 41):
        console.done(f"ingest · slice {number} · c03dd0", "built", 0.2, {})
    console.done("train · round 1 · 8K · b92ee0", "built", 60.0, {"tokens": 8000})
    assert log == [
        "· 60 found in the store: ingest × 30, dedup × 30",
        "✓ 10 made in 2.0 s: ingest × 10",
        "✓ train · round 1 · 8K · b92ee0                  60.0 s  8,000 tokens",
    ]
    shown = terminal.getvalue().splitlines()
    assert shown[0] == log[0] and shown[-1] == log[-1]
    assert sum("ingest · slice" in line for line in shown) == 10, "a terminal shows each as it is made"


def test_a_log_shows_a_long_stage_at_work_and_how_long_it_takes(monkeypatch):
    log = io.StringIO()
    seconds = [0.0]
    monkeypatch.setattr("flows.ui.console.time.monotonic", lambda: seconds[0])
    console = Console(log)
    for second in range(1, 100):
        seconds[0] = float(second)
        console.progress("perplexity · domain · 8K", second * 100, 12_000, "tokens")
        if second == 40:
            console.line("something else")
    assert log.getvalue().splitlines() == [
        "● perplexity · domain · 8K  3,000 of 12,000 tokens, about 2 min left",
        "something else",
        "● perplexity · domain · 8K  7,000 of 12,000 tokens, less than a minute left",
    ]


def test_what_waits_to_be_told_is_told_before_what_comes_after():
    console = Console(io.StringIO())
    log = told(console)
    console.done("ingest · slice 1 · c03dd0", "cached", 0.0, {})
    console.warn("the disk is nearly full")
    console.warn("the disk is nearly full")
    console.done("dedup · slice 1 · 52d679", "cached", 0.0, {})
    console.flush()
    assert log == [
        "· 1 found in the store: ingest",
        "! the disk is nearly full",
        "· 1 found in the store: dedup",
    ]


def test_no_line_holds_a_secret_wherever_it_goes():
    terminal = io.StringIO()
    console = Console(terminal)
    log = told(console)
    console.failed("base · a28d66", "https://me:hunter2@hub/x refused hf_abcdefghijklmnopqrst")
    for text in (terminal.getvalue(), log[0]):
        assert "hunter2" not in text and "hf_abc" not in text and "hub/x refused" in text


def test_an_address_without_a_password_stays_as_it_is():
    plain = "postgresql://host:5432/db, sqlite:////home/me@work/mlflow.db, write to me@host"
    assert without_secrets(plain) == plain


def test_one_rule_blots_out_secrets_wherever_they_are_told():
    """Console, pages and failures, MLflow and the doctor: each has the rule of storage/secrets.py, and none its own."""
    from flows.runs import ending, prefect_states
    from flows.services import doctor
    from flows.tracking import tracker as tracking
    from flows.ui import console, publish, stage_bar

    for module in (doctor, ending, stage_bar, publish, console, tracking, prefect_states):
        assert module.without_secrets is without_secrets
    told = doctor.Finding("x", "bad", "http://me:hunter2@host does not answer", "ask https://hunter2@host")
    assert (
        doctor.render(told)
        == "✗ x            http://host does not answer\n               → ask https://host\n"
    )


def test_the_time_left_is_told_at_the_rate_since_the_stage_began(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    console = Console(terminal)
    clock = iter([100.0, 101.0, 110.0, 111.0, 200.0])
    monkeypatch.setattr("flows.ui.console.time.monotonic", lambda: next(clock))
    console.progress("evaluate · round 1 · mmlu · 3f9a2c", 5_000, 100_000, "tokens")  # it went on from there
    console.progress("evaluate · round 1 · mmlu · 3f9a2c", 5_100, 100_000, "tokens")
    assert "left" not in terminal.getvalue()  # too early to say
    console.progress("evaluate · round 1 · mmlu · 3f9a2c", 6_000, 100_000, "tokens")
    assert terminal.getvalue().endswith("6,000 of 100,000 tokens, 6 %, about 16 min left")
    console.progress("evaluate · round 1 · piqa · 8c01d5", 10, 1_000, "tokens")
    assert terminal.getvalue().endswith("10 of 1,000 tokens, 1 %")  # another one
    console.progress("evaluate · round 1 · piqa · 8c01d5", 900, 1_000, "tokens")
    assert terminal.getvalue().endswith("900 of 1,000 tokens, 90 %, less than a minute left")


@pytest.mark.parametrize("columns", [200, 80, 60, 40, 20])
def test_progress_stays_in_one_row_however_narrow_the_terminal_is(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    console = Console(terminal)
    for label in ("train · round 1 · 256K · c44d95", "evaluate · round 12 · 日本語" + 8 * "日本語"):
        console._last = 0.0
        console.progress(label, 102_400, 204_800, "tokens", loss=lambda: 2.8123)
        shown = terminal.getvalue().split("\r\x1b[K")[-1]
        assert cell_len(shown) < columns and "\n" not in shown
        if label.startswith("train"):
            amount = "102,400 of 204,800 tokens, " if columns >= 80 else ""
            whole = f"● {label}  {amount}50 %, loss 2.812"
            assert shown == whole[: columns - 1].rstrip()


def test_between_two_long_steps_the_time_left_runs_down(monkeypatch):
    """It is not told anew at a rate that falls until the step ends; and a log does not repeat a line."""
    log = io.StringIO()
    seconds = [0.0]
    monkeypatch.setattr("flows.ui.console.time.monotonic", lambda: seconds[0])
    console = Console(log)
    for second in range(1, 602):
        seconds[0] = float(second)
        done = second // 120 if second < 400 else 3
        console.progress("train · round 1 · 8K", done, 11, "steps", loss=lambda: 3.0)
    assert log.getvalue().splitlines() == [
        "● train · round 1 · 8K  0 of 11 steps, loss 3.000",
        "● train · round 1 · 8K  1 of 11 steps, loss 3.000, about 20 min left",
        "● train · round 1 · 8K  2 of 11 steps, loss 3.000, about 18 min left",
        "● train · round 1 · 8K  3 of 11 steps, loss 3.000, about 16 min left",
    ]
    seconds[0] = 5000.0  # halted meanwhile
    console.progress("train · round 1 · 8K", 3, 11, "steps")
    assert log.getvalue().splitlines()[-1].endswith("3 of 11 steps, about 14 min left")
