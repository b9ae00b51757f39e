"""A person at the two UIs, in a real browser against real servers: start, fail, repair, retry, compare, schedule.

With `ONWARD_PICTURES` set to a directory, the pages on the way are kept there as pictures.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.operated import Operated

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_LONG = 600.0  # seconds: a whole small run on a busy machine
_PATIENCE = 180_000  # milliseconds: until a page of a busy server is drawn
_WRONG_ANSWER = 7

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def write_questions(path: Path, answer: int) -> None:
    """Four questions of a benchmark of our own; the third has this answer among its four choices."""
    pairs = [("one", "two"), ("three", "four"), ("five", "six"), ("seven", "eight")]
    rows = [
        {"question": f"The word after {word} is", "choices": [after, "none", "never", "many"], "answer": 0}
        for word, after in pairs
    ]
    rows[2]["answer"] = answer
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


@pytest.fixture(scope="module")
def operated(tmp_path_factory) -> Iterator[Operated]:
    home = tmp_path_factory.mktemp("ui")
    own = [
        {"name": "continuation", "group": "domain", "held_out": "domain", "questions": 8},
        {"name": "counting", "group": "general", "file": "questions.jsonl"},
    ]
    write_questions(home / "questions.jsonl", 0)
    operated = Operated(home, ("8K", "20K"), evaluation__own=own)
    operated.up()
    try:
        yield operated
    finally:
        operated.down()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(operated, browser):
    """A page of somebody who has logged in to both servers."""
    user, _, password = operated.credentials.partition(":")
    mlflow = {"username": user, "password": password, "origin": f"http://127.0.0.1:{operated.ports[1]}"}
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, http_credentials=mlflow)
    page = context.new_page()
    page.set_default_timeout(_PATIENCE)
    page.goto(f"http://127.0.0.1:{operated.ports[0]}/login")
    log_in(page, operated.credentials)
    page.wait_for_url(lambda url: "login" not in url)
    yield page
    context.close()


def log_in(page, credentials: str) -> None:
    """What a person types into Prefect's login, old or new."""
    page.locator("input").first.fill(credentials)
    page.keyboard.press("Enter")


def picture(page, name: str) -> None:
    if directory := os.environ.get("ONWARD_PICTURES"):
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(directory) / f"{name}.png")


def field(page, description: str):
    """The input of the form's property that is described so."""
    property = "xpath=ancestor::*[contains(concat(' ',@class,' '),' schema-form-property ')][1]"
    return page.get_by_text(description).locator(property).locator("textarea,input").first


def tab(page, name: str) -> None:
    page.get_by_text(name, exact=True).first.click()


def runs_of(operated: Operated, deployment: str) -> list[dict[str, Any]]:
    """The flow runs of a deployment, the newest first."""
    found = operated.api(f"/deployments/name/pretrain/{deployment}", method="GET")
    body = {"deployments": {"id": {"any_": [found["id"]]}}, "sort": "START_TIME_DESC", "limit": 50}
    runs: list[dict[str, Any]] = operated.api("/flow_runs/filter", body)
    return runs


def submit(page, operated: Operated, deployment: str, *, drawn_anew: bool = False) -> list[dict[str, Any]]:
    """Submit the open form; returns the flow runs that the server has since.

    The server says whether a run came: the page shows it for a moment only. The form is submitted again where none came
    for a minute: a server on a busy machine may refuse for want of its database. `drawn_anew`: the page is loaded again
    then, since nothing was filled in.
    """
    known = {run["id"] for run in runs_of(operated, deployment)}
    until = time.monotonic() + _LONG
    while time.monotonic() < until:
        button = page.get_by_role("button", name="Submit")
        if button.count():
            button.click()
        again = time.monotonic() + 60
        while time.monotonic() < again:
            if new := [run for run in runs_of(operated, deployment) if run["id"] not in known]:
                return new
            page.wait_for_timeout(250)
        if drawn_anew:
            page.reload()
            drawn(page, operated, "Directory of the artifact store")
    raise AssertionError(f"the form was submitted for {_LONG:.0f} s and made no run")


def drawn(page, operated: Operated, words: str) -> None:
    """Until the page shows these words. It is loaded again where a minute did not bring them: the server was busy.

    It is logged in again where it asks for that: Prefect's newer pages forget the password when the first request of a page
    fails for any reason, such as a busy server, or a page that is left before the answer came.
    """
    from playwright.sync_api import TimeoutError

    for _ in range(4):
        again = time.monotonic() + 60
        while time.monotonic() < again:
            if page.get_by_text(words).first.is_visible():
                return
            if "/login" in page.url:
                with contextlib.suppress(TimeoutError):
                    log_in(page, operated.credentials)
                    page.wait_for_url(lambda url: "/login" not in url, timeout=30_000)
            page.wait_for_timeout(250)
        page.reload()
    page.get_by_text(words).first.wait_for()


def start_from_the_form(page, operated: Operated) -> str:
    page.goto(f"http://127.0.0.1:{operated.ports[0]}/deployments")
    picture(page, "deployments")
    page.get_by_role("link", name="small", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    field(page, "Directory of the artifact store").fill(str(operated.home / "store-of-the-form"))
    picture(page, "form")
    field(page, "Tokens of a step of training").fill("25X")  # of the short form, above the configuration
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("Validation failed for field 'change.batch_tokens'").first.wait_for()
    begun = {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}}
    assert operated.api("/flow_runs/count", begun) == 0
    field(page, "Tokens of a step of training").fill("256")
    run = submit(page, operated, "small")[0]
    assert run["parameters"]["change"] == {"batch_tokens": "256"}
    return str(run["id"])


def wait_unseen(page, operated: Operated, run: str, state: str) -> None:
    """Until the run is in this state, with no page open: one of a run at work is drawn all the time, and takes a core."""
    page.goto("about:blank")
    operated.wait(run, state, seconds=_LONG)
    page.goto(f"http://127.0.0.1:{operated.ports[0]}/runs/flow-run/{run}")


def test_both_pages_ask_for_the_password(browser, operated):
    from playwright.sync_api import Error

    prefect, mlflow = (f"http://localhost:{port}" for port in operated.ports)
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(_PATIENCE)
    for address, inside in (
        (f"{prefect}/deployments", "small"),
        (f"{prefect}/v2/deployments", "corpus-only"),
    ):
        page.goto(address)
        page.wait_for_url(re.compile("/login"))
        log_in(page, "onward:wrong")
        page.wait_for_timeout(1000)
        assert "/login" in page.url
        picture(page, "login-v2" if "/v2/" in address else "login")
        log_in(page, operated.credentials)
        page.get_by_text(inside, exact=True).first.wait_for()
        page.evaluate("localStorage.clear()")
    with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):  # the browser asks, and nobody answers
        page.goto(mlflow)
    context.close()
    user, _, password = operated.credentials.partition(":")
    context = browser.new_context(http_credentials={"username": user, "password": password})
    page = context.new_page()
    page.goto(f"{mlflow}/#/experiments")
    page.get_by_text("Default", exact=True).first.wait_for()
    context.close()


ATTACK = """
async ([prefect, mlflow]) => {
    const outcome = request => request.then(answer => answer.type, error => "refused")
    const json = {"Content-Type": "application/json"}
    const open = address => new Promise(done => {
        const socket = new WebSocket(address, "prefect")
        socket.onopen = () => done("open")
        socket.onerror = () => done("refused")
    })
    const picture = new Image()
    picture.src = `${mlflow}/get-artifact?path=x&run_uuid=x`
    const frame = document.createElement("iframe")
    frame.src = mlflow
    document.body.append(frame)
    const form = document.createElement("form")
    Object.assign(form, {method: "POST", action: `${prefect}/api/flows/`, enctype: "text/plain", target: "x"})
    document.body.append(form)
    form.submit()
    return await Promise.all([
        outcome(fetch(`${prefect}/api/flow_runs/filter`, {method: "POST", headers: json, body: "{}"})),
        outcome(fetch(`${mlflow}/api/2.0/mlflow/runs/search`, {method: "POST", headers: json, body: "{}"})),
        outcome(fetch(`${mlflow}/version`, {credentials: "include"})),
        open(`${prefect.replace("http", "ws")}/api/events/in`),
        open(`${prefect.replace("http", "ws")}/api/logs/out`),
        new Promise(done => { picture.onload = () => done("loaded"); picture.onerror = () => done("refused") }),
        outcome(fetch(`${prefect}/api/flows/`, {method: "POST", mode: "no-cors", body: "{}"}))
            .then(said => said === "opaque" ? "refused" : said),
    ])
}
"""


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_page_of_another_port_gets_nothing_from_a_browser_that_is_logged_in(page, operated, name):
    """It shares the site with the servers, and the browser sends it the password of MLflow with each request."""
    prefect, mlflow = (f"http://127.0.0.1:{port}" for port in operated.ports)
    flows = operated.api("/flows/count")
    statuses: dict[str, int] = {}
    with serving(b"<body>evil</body>") as port:
        other = page.context.new_page()
        other.on("response", lambda answer: statuses.update({answer.url: answer.status}))
        other.goto(f"http://{name}:{port}/")
        assert other.evaluate(ATTACK, [prefect, mlflow]) == ["refused"] * 7
        other.wait_for_timeout(500)
        assert statuses.pop(f"http://{name}:{port}/") == 200
        statuses.pop(f"http://{name}:{port}/favicon.ico", None)
        assert len(statuses) >= 4 and set(statuses.values()) == {403}, statuses
        opened = other.goto(mlflow)  # a link that is followed shows the page
        assert opened is not None and opened.status == 200
        other.close()
    assert operated.api("/flows/count") == flows


@contextlib.contextmanager
def serving(content: bytes) -> Iterator[int]:
    """A web server of somebody else on this machine, with one page; its port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()


def test_a_run_that_fails_is_retried_and_its_budgets_compared(page, operated):
    run = start_from_the_form(page, operated)
    page.goto("about:blank")
    until = time.monotonic() + _LONG
    while not any(task["name"].startswith("train") for task in operated.tasks(run)):
        assert time.monotonic() < until, "no training began"
        page.wait_for_timeout(250)
    write_questions(operated.home / "questions.jsonl", _WRONG_ANSWER)  # it was sound when the run was checked

    wait_unseen(page, operated, run, "FAILED")
    page.get_by_text("Failed", exact=True).first.wait_for()
    tab(page, "Logs")
    page.get_by_text("questions.jsonl, row 3").first.wait_for()
    page.get_by_text("Change what is said above").first.wait_for()
    picture(page, "failed")
    message = operated.state(run)["message"]
    assert "Kept:" in message and "Repeats:" in message and "fails again in the same way" in message

    write_questions(operated.home / "questions.jsonl", 0)
    page.get_by_role("button", name="Retry").click()
    page.locator(".p-modal").get_by_role("button", name="Retry").click()
    until = time.monotonic() + _LONG
    while operated.state(run)["type"] == "FAILED":
        assert time.monotonic() < until, "the button made no retry"
        page.wait_for_timeout(250)
    wait_unseen(page, operated, run, "COMPLETED")
    page.get_by_text("Completed", exact=True).first.wait_for()
    tab(page, "Task Runs")
    page.get_by_text("Cached", exact=True).first.wait_for()
    picture(page, "retried")
    states = {(task["name"].removesuffix(" (cached)"), task["state_name"]) for task in operated.tasks(run)}
    finished = {name for name, state in states if state == "Completed"}
    cached = {name for name, state in states if state == "Cached"}
    assert len(cached) >= 15 and cached <= finished  # all that the first attempt finished, found again

    tab(page, "Artifacts")
    picture(page, "artifacts")
    page.get_by_text("mlflow", exact=True).first.click()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="This run in MLflow").click()
    mlflow = opened.value
    mlflow.set_default_timeout(_PATIENCE)
    mlflow.wait_for_url(re.compile(rf"127\.0\.0\.1:{operated.ports[1]}/.*/runs/"))
    mlflow.get_by_text(re.compile(r"^small · 8K→20K")).first.wait_for()
    mlflow.locator(f"a[href*='{run}']").first.wait_for()  # and back to the flow run
    picture(mlflow, "mlflow")
    open_saved_view(mlflow)
    shown = f"runs of small: http://127.0.0.1:{operated.ports[1]}/#/experiments/"
    assert shown in operated.command("status").stdout
    compare_budgets(mlflow)


def open_saved_view(page) -> None:
    """From the run's page in MLflow to the experiment's runs, as the saved view shows them."""
    back = page.url
    link = page.locator("a[href*='viewStateShareKey=onward']").first
    link.wait_for()
    page.goto(f"{back.split('#')[0]}#{link.get_attribute('href').partition('#')[2]}")
    page.get_by_text("Training, by tokens seen").first.wait_for()
    page.get_by_text("Runs, their scores and their training").first.wait_for()  # the view that is open
    page.locator(".js-plotly-plot").first.wait_for()
    picture(page, "view")
    page.goto(f"{page.url.split('#')[0]}#{link_to_table(page.url)}")
    page.get_by_text(re.compile("^eval/continuation")).first.wait_for()
    picture(page, "view-table")
    page.goto(back)


def link_to_table(url: str) -> str:
    """The same view without its charts."""
    return url.partition("#")[2].replace("&compareRunsMode=CHART", "")


def compare_budgets(page) -> None:
    """In MLflow's list of runs: both budgets' models selected, compared, a chart drawn."""
    experiment = re.search(r"/experiments/(\d+)", page.url).group(1)
    base = page.url.split("#")[0]
    runs = f"{base}#/experiments/{experiment}/runs?workflowType=machine_learning"
    page.goto(f"{runs}&searchFilter=tags.stage%20%3D%20'decay'")
    parent = page.locator("[role=row]", has=page.get_by_text(re.compile("^small · 8K"))).first
    parent.locator("button").first.click()
    for name in ("decay · round 1", "decay · round 2"):
        row = page.locator("[role=row]", has=page.get_by_text(name)).first
        row.wait_for()
        index = row.get_attribute("row-index")
        page.locator(f"[role=row][row-index='{index}'] input[type=checkbox]").first.click()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 2 Runs").first.wait_for()
    page.locator(".js-plotly-plot, .parcoords, canvas").first.wait_for()
    picture(page, "compared")
    page.goto(f"{runs}&compareRunsMode=CHART")
    page.locator(".js-plotly-plot").first.wait_for()
    picture(page, "charts")


def test_a_schedule_set_in_the_ui_makes_runs(page, operated):
    page.goto(f"http://127.0.0.1:{operated.ports[0]}/deployments")
    page.get_by_role("link", name="corpus-only", exact=True).first.click()
    page.get_by_role("button", name="Schedule", exact=True).first.click()
    page.locator(".p-modal").get_by_role("button", name="Save").click()
    page.get_by_text("Hourly", exact=True).first.wait_for()
    until = time.monotonic() + _LONG
    while not (scheduled := runs_of(operated, "corpus-only")):
        assert time.monotonic() < until, "no scheduled run appeared"
        page.wait_for_timeout(250)
    assert {run["state_type"] for run in scheduled} == {"SCHEDULED"}
    page.reload()
    tab(page, "Upcoming")
    page.get_by_text(re.compile(r"[1-9]\d* Flow runs?")).first.wait_for()
    picture(page, "scheduled")
    operated.up()  # deploys again
    again = operated.api("/deployments/name/pretrain/corpus-only", method="GET")
    assert [one["schedule"]["interval"] for one in again["schedules"]] == [3600.0]


def test_prefects_newer_ui_shows_the_form_too_and_starts_a_run(page, operated):
    """Its address leads there, unless a person has chosen the other."""
    address = f"http://127.0.0.1:{operated.ports[0]}"
    broken: list[str] = []
    busy: list[str] = []  # a server without its database for a moment: the page complains, and is right
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda said: broken.append(said.text) if _is_error(said) else None)
    page.on("response", lambda answer: _note(answer, busy, broken))
    deployment = operated.api("/deployments/name/pretrain/small", method="GET")
    operated.api("/work_pools/cpu", {"is_paused": True}, "PATCH")  # nothing is to run
    try:
        page.context.clear_cookies()
        page.goto(address)
        page.wait_for_url(re.compile("/v2/"))
        drawn(page, operated, "Deployments")
        page.route(
            "**/api/admin/version", lambda route: route.abort(), times=1
        )  # a server that is away for a moment
        page.goto(f"{address}/v2/deployments/deployment/{deployment['id']}/run")
        page.wait_for_url(re.compile("/login"))
        drawn(page, operated, "Directory of the artifact store")
        for words in ("Last stage", "Make again", "Tokens of one optimizer step", "At least"):
            page.get_by_text(words).first.wait_for()
        picture(page, "form-v2")
        started = submit(page, operated, "small", drawn_anew=True)
        for run in started:
            assert run["state_type"] == "SCHEDULED"
            assert run["parameters"]["config"] == deployment["parameters"]["config"]
            operated.api(f"/flow_runs/{run['id']}", method="DELETE")
    finally:
        operated.api("/work_pools/cpu", {"is_paused": False}, "PATCH")
    assert busy or broken == []


def _note(answer, busy: list[str], broken: list[str]) -> None:
    if answer.status >= 500:
        (busy if answer.status == 503 else broken).append(f"{answer.status} {answer.url}")


def _is_error(said) -> bool:
    """An error of the page's own; what could not be loaded is told beside, with its status."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")
