"""`onward status` beside a real Prefect: a run is named with its deployment."""

from __future__ import annotations

from typing import Any

from flows.services.rest import Api
from flows.services.status import _runs, render
from tests.support.servers import PrefectServer


def test_a_run_is_named_with_its_deployment_also_where_that_is_gone(prefect_server: PrefectServer) -> None:
    api = Api(prefect_server.api_url)
    flow = api.post("/flows/", {"name": "status-flow"})["id"]
    made = [
        api.post("/deployments/", {"name": name, "flow_id": flow})["id"]
        for name in ("status-kept", "status-gone")
    ]
    running: dict[str, Any] = {"state": {"type": "RUNNING", "name": "Running"}}
    ours = [api.post(f"/deployments/{one}/create_flow_run", running)["id"] for one in made]
    ours.append(api.post("/flow_runs/", {"flow_id": flow, **running})["id"])
    try:
        api._call("DELETE", f"/deployments/{made[1]}", None)
        rows = {row["id"]: row for row in _runs(api)["running"] if row["id"] in ours}
        assert [rows[one]["deployment"] for one in ours] == ["status-flow/status-kept", None, None]
        text = render({"up": False, "runs": {"running": list(rows.values())}}, secret=True)
        named = [line for line in text.splitlines() if "status-flow/status-kept" in line]
        assert len(named) == 1 and rows[ours[0]]["name"] in named[0]
    finally:
        for one in ours:
            api._call("DELETE", f"/flow_runs/{one}", None)
