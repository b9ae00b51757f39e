"""Automations in Prefect: a run whose process is gone becomes Crashed. Notifications exist too, switched off at first.

Each is created once, by name. A person's changes stay, disabling included. A run sends a heartbeat every 30 seconds
(`PREFECT_FLOWS_HEARTBEAT_FREQUENCY`, set in `flows.machine.environment`). The crash automation waits for three of them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

CRASHED = "onward: a run whose process is gone is Crashed"
TELL_FAILED = "onward: tell of runs that failed"
TELL_COMPLETED = "onward: tell of runs that completed"
WEBHOOK = "onward-notify"
PLACEHOLDER = "https://example.invalid/put-your-webhook-here"
SILENCE = timedelta(seconds=90)

_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDED = ("Completed", "Failed", "Cancelled", "Crashed", "Interrupted", "Paused", "Planned")
_QUEUED = ("Scheduled", "AwaitingRetry", "Late", "Waiting", "Rescheduled", "Pending")
"""States in which a run sends no heartbeat but is not lost, such as a retry that waits for its turn."""
_OTHER_SIGNS = {f"prefect.flow-run.{state}" for state in (*_ENDED, *_QUEUED)}
_FLOWS = ["pretrain", "evaluate", "tune"]
_CRASHED_MESSAGE = (
    "No sign of life for 90 seconds: its process was killed, or its machine is down. What it finished is kept, and "
    "training goes on from its last checkpoint: Retry goes on from there, or the command that started the run."
)


def install(client: SyncPrefectClient) -> list[str]:
    """Create the missing automations. Returns one line for each automation."""
    block = _webhook(client)
    return [_made(client, automation) for automation in (_crash(), _failed(block), _completed(block))]


def _made(client: SyncPrefectClient, automation: AutomationCore) -> str:
    known = client.read_automations_by_name(automation.name)
    if known:
        _learn(client, known[0], automation)
        return f"automation {automation.name!r} (kept, {'on' if known[0].enabled else 'off'})"
    client.create_automation(automation)
    return f"automation {automation.name!r} (made, {'on' if automation.enabled else 'off'})"


def _learn(client: SyncPrefectClient, known: Automation, wanted: AutomationCore) -> None:
    """Teach an automation of an older release the names of states that it takes for silence."""
    there, now = known.trigger, wanted.trigger
    if not (isinstance(there, EventTrigger) and isinstance(now, EventTrigger)):
        return
    if there.posture == now.posture == Posture.Proactive and now.expect - there.expect:
        trigger = there.model_copy(update={"expect": there.expect | now.expect})
        named = set(AutomationCore.model_fields) - {"owner_resource"}  # which the server does not take
        fields = {name: getattr(known, name) for name in named}
        client.update_automation(known.id, AutomationCore(**{**fields, "trigger": trigger}))


def _crash() -> AutomationCore:
    return AutomationCore(
        name=CRASHED,
        description="A run tells of itself every 30 s; after 90 s of silence it is set Crashed, and can be retried.",
        enabled=True,
        tags=["onward"],
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *_OTHER_SIGNS},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=SILENCE,
            **_ours(),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=_CRASHED_MESSAGE)],
    )


def _failed(block: UUID) -> AutomationCore:
    about = f"Calls the webhook block {WEBHOOK}: put your address there, then switch this on."
    return _tell(TELL_FAILED, about, {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}, block)


def _completed(block: UUID) -> AutomationCore:
    about = f"Calls the webhook block {WEBHOOK}: put your address there, then switch this on."
    return _tell(TELL_COMPLETED, about, {"prefect.flow-run.Completed"}, block)


def _tell(name: str, about: str, events: set[str], block: UUID) -> AutomationCore:
    """A template for a notification, switched off at first. The payload is JSON; chat services show its `text`."""
    text = "{{ flow_run.name }}: {{ flow_run.state.name }}. {{ flow_run.state.message or '' }} {{ flow_run|ui_url }}"
    fields = {
        "text": text,
        "run": "{{ flow_run.name }}",
        "state": "{{ flow_run.state.name }}",
        "flow_run": "{{ flow_run.id }}",
        "url": "{{ flow_run|ui_url }}",
    }
    lines = [
        f'"{field}": {{% filter tojson %}}{template}{{% endfilter %}}' for field, template in fields.items()
    ]
    return AutomationCore(
        name=name,
        description=about,
        enabled=False,
        tags=["onward"],
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect=events,
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(0),
            **_ours(),
        ),
        actions=[CallWebhook(block_document_id=block, payload="{" + ", ".join(lines) + "}")],
    )


def _ours() -> dict[str, Any]:
    """Matches runs of our flows only, because only they send heartbeats often enough."""
    return {
        "match": ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        "match_related": ResourceSpecification(
            {"prefect.resource.role": "flow", "prefect.resource.name": _FLOWS}
        ),
    }


def _webhook(client: SyncPrefectClient) -> UUID:
    try:
        return client.read_block_document_by_name(WEBHOOK, block_type_slug="webhook").id
    except ObjectNotFound:
        block = Webhook(url=PLACEHOLDER, headers={"Content-Type": "application/json"})
        return block.save(WEBHOOK)  # type: ignore[return-value]
