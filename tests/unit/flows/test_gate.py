"""The gate before both servers: which requests reach what is behind it, as their ASGI scopes."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.services.gate import Gate
from flows.services.serve import names

OWN = "127.0.0.1:4200"
KNOWN = "onward:a-password"
PASSWORD = {"authorization": "Basic " + base64.b64encode(KNOWN.encode()).decode()}
SCRIPT = {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
LINK = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
FRAME = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}

FOREIGN: dict[str, dict[str, Any]] = {
    "another site": {"origin": "http://evil.example"},
    "a site that begins like ours": {"origin": f"http://{OWN}.evil.example"},
    "a site with our name as its user": {"origin": f"http://{OWN}@evil.example"},
    "a page without an origin of its own": {"origin": "null"},
    "an empty origin": {"origin": ""},
    "another port of this machine": {"origin": "http://127.0.0.1:1"},
    "this machine without a port": {"origin": "http://127.0.0.1"},
    "a page of an extension": {"origin": f"moz-extension://{OWN}"},
    "two origins": {"origin": [f"http://{OWN}", "http://evil.example"]},
    "another name for our address": {"host": "evil.example"},
    "the same with our port": {"host": "evil.example:4200"},
    "our name and another": {"host": [OWN, "evil.example"]},
    "another port": {"host": "127.0.0.1:1"},
    "no port": {"host": "127.0.0.1"},
    "no name at all": {"host": []},
    "an empty name": {"host": ""},
    "all addresses": {"host": "0.0.0.0:4200"},
    "a picture on another site": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    "a script of another port": {"sec-fetch-site": "same-site", **SCRIPT},
    "a frame on another site": {"sec-fetch-site": "cross-site", **FRAME},
    "a form on another site": {"sec-fetch-site": "cross-site", "origin": "http://evil.example", **LINK},
    "a site that says two things": {"sec-fetch-site": ["same-origin", "cross-site"], **SCRIPT},
    "another site with our origin": {"sec-fetch-site": "cross-site", "origin": f"http://{OWN}"},
    "an unknown relation": {"sec-fetch-site": "x", **SCRIPT},
}


async def behind(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "reached"})


GATE = Gate(behind, names("prefect", 4200, {}), lambda path: path == "/", KNOWN)


def scope(path: str = "/", method: str = "GET", kind: str = "http", **headers: Any) -> dict[str, Any]:
    given = {"host": OWN, **headers}
    several = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    rows = [(name.encode(), one.encode()) for name, values in several.items() for one in values]
    return {"type": kind, "method": method, "path": path, "headers": rows}


def answered(asked: dict[str, Any], gate: Gate = GATE) -> Any:
    """The status of the gate's answer, "reached" where the server behind was asked, "closed" for a websocket."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": f"{asked['type']}.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(StopIteration):
        gate(asked, receive, send).send(None)  # type: ignore[attr-defined]
    if sent[0]["type"] == "websocket.close":
        return "closed"
    return sent[0].get("status", sent[0]["type"])


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("why", FOREIGN)
def test_what_a_foreign_page_or_name_can_send_is_refused_even_with_the_password(why, kind):
    headers = {"host": OWN, **FOREIGN[why], **PASSWORD}
    for method in ("GET", "POST", "OPTIONS", "HEAD"):
        for path in ("/", "/health", "/api/flow_runs/filter"):
            expected = 403 if kind == "http" else "closed"
            assert answered(scope(path, method, kind, **headers)) == expected, (method, path)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:4200"},
        {"host": "LOCALHOST:4200"},
        {"origin": f"http://{OWN}", "sec-fetch-site": "same-origin", **SCRIPT},
        {"origin": f"https://{OWN}"},
        {"sec-fetch-site": "same-origin", **FRAME},
        {"sec-fetch-site": "none", **LINK},
        {"sec-fetch-site": "cross-site", **LINK},
        {"sec-fetch-site": "same-site", **LINK},
    ],
)
def test_the_own_page_a_command_and_a_link_reach_it_with_the_password(headers):
    assert answered(scope(**headers, **PASSWORD)) == "reached"
    assert answered(scope(**headers)) == 401


@pytest.mark.parametrize(
    "how", [{"path": "/api/x"}, {"path": "/health"}, {"method": "POST"}, {"method": "HEAD"}]
)
def test_a_link_elsewhere_opens_a_page_and_nothing_else(how):
    link = {"sec-fetch-site": "cross-site", **LINK, **PASSWORD}
    assert answered(scope(**{"path": "/", **how}, **link)) == 403


@pytest.mark.parametrize(
    "header",
    [
        [],
        "",
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"onward:other").decode(),
        "Basic " + base64.b64encode(b"onward:").decode(),
        "Basic " + base64.b64encode("onward:pässword".encode()).decode(),
        "Bearer " + base64.b64encode(KNOWN.encode()).decode(),
        [PASSWORD["authorization"], "Basic eA=="],
    ],
)
def test_any_other_word_than_the_password_is_refused(header):
    assert answered(scope(authorization=header)) == 401
    assert answered(scope(kind="websocket", authorization=header)) == "closed"
    assert answered(scope("/health", authorization=header)) == "reached", "which tells that it answers"
    assert answered(scope("/health", "POST", authorization=header)) == 401


@given(
    path=st.text(min_size=1).map("/".__add__),
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "TRACE", "x"]),
    origin=st.from_regex(r"[a-z]{2,8}://[a-z0-9.:@-]{1,30}", fullmatch=True),
)
def test_whatever_the_path_no_other_origin_and_no_password_gets_through(path, method, origin):
    if origin.partition("://")[2] not in (OWN, "localhost:4200"):
        assert answered(scope(path, method, origin=origin, **PASSWORD)) == 403
    if path != "/health":
        assert answered(scope(path, method)) == 401


def test_a_server_that_asks_for_its_own_password_gets_what_comes_from_its_pages():
    gate = Gate(behind, names("prefect", 4200, {}), lambda path: not path.startswith("/api/"))
    assert answered(scope("/api/flows/filter", "POST"), gate) == "reached"
    assert answered(scope("/api/flows/filter", "POST", origin="http://evil.example"), gate) == 403
    assert answered({"type": "lifespan"} | scope(kind="lifespan", host="none"), gate) == "reached"


def test_the_operator_names_what_else_the_server_is_called():
    given = {
        "ONWARD_SERVER_NAMES": " Box.example:4200, box ,",
        "PREFECT_UI_URL": "https://user@runs.example/prefect",
        "ONWARD_MLFLOW_URL": "http://127.0.0.1:5000",
    }
    known = names("prefect", 4200, given)
    assert known == {OWN, "localhost:4200", "box.example:4200", "box", "runs.example"}
    assert "127.0.0.1:5000" in names("mlflow", 4999, given)
    gate = Gate(behind, known, lambda path: True)
    assert answered(scope(host="box.example:4200", origin="http://box.example:4200"), gate) == "reached"
    assert answered(scope(origin="https://runs.example"), gate) == "reached", "a proxy that changes Host"
    assert answered(scope(host="box.example"), gate) == 403
