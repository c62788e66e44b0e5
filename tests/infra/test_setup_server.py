"""Which events trigger the notifications of infra/setup_server.py, according to the Prefect server's own code."""

import argparse
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import pytest
import yaml
from prefect.automations import Automation
from prefect.events import CallWebhook, SendNotification
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.utilities.user_templates import render_user_template

from flows import launch, steps
from infra import setup_server

ROOT = Path(__file__).parents[2]
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


async def triggers(monkeypatch: pytest.MonkeyPatch) -> dict[str, EventTrigger]:
    """The notifications' triggers by automation name, as the server parses them."""

    async def actions(*_: object) -> list[SendNotification]:
        return [SendNotification(block_document_id=uuid4(), subject="", body="")]

    monkeypatch.setattr(setup_server, "send_actions", actions)
    made = await setup_server.messages(argparse.Namespace(webhook=None, notify="email/team"))
    return {one.name: EventTrigger.model_validate(one.trigger.model_dump(mode="json")) for one in made}


def run_event(flow: str, state: str) -> ReceivedEvent:
    return ReceivedEvent(
        id=uuid4(),
        occurred=datetime.now(UTC),
        event=f"prefect.flow-run.{state}",
        resource={"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.resource.name": "a run"},
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{uuid4()}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": flow,
            },
            {"prefect.resource.id": "prefect.tag.retort", "prefect.resource.role": "tag"},
        ],
    )


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=[one["name"] for one in DEPLOYMENTS])
async def test_a_failure_of_every_whole_run_is_reported(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure of a stage is not reported: the run that started it fails as well."""
    failed = (await triggers(monkeypatch))["Retort: a run failed"]
    is_whole = not {"stage", "step"} & set(deployment["tags"])
    for state in ("Failed", "Crashed"):
        event = run_event(deployment["name"], state)
        assert (failed.covers(event) and failed.expects(event.event)) == is_whole
    assert not failed.expects("prefect.flow-run.Completed")


async def test_runs_of_other_projects_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not (await triggers(monkeypatch))["Retort: a run failed"].covers(run_event("somebody-elses", "Failed"))


@pytest.mark.parametrize("guard", setup_server.guards(90), ids=lambda guard: guard.name)
def test_only_our_runs_are_marked_as_dead(guard: Automation) -> None:
    """Those of others may send a heartbeat every 180 s, which is Prefect's default."""
    trigger = EventTrigger.model_validate(guard.trigger.model_dump(mode="json"))
    (begins,) = trigger.after
    whole = [one["name"] for one in DEPLOYMENTS if "step" not in one["tags"]]
    for flow in (*whole, steps.step.name):
        assert trigger.covers(run_event(flow, begins.rpartition(".")[2]))
    assert not trigger.covers(run_event("somebody-elses", begins.rpartition(".")[2]))


def test_whoever_starts_a_run_has_it_send_heartbeats_in_time() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    pool = setup_server.template_of("cpu", "process", 0)["variables"]["properties"]["env"]["default"]
    told = [
        launch.SETTINGS["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"],
        pool["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"],
        *re.findall(r"PREFECT_FLOWS_HEARTBEAT_FREQUENCY=(\d+)", dockerfile),
    ]
    assert set(told) == {str(setup_server.HEARTBEAT_SECONDS)}


def pool_event(name: str, status: str) -> ReceivedEvent:
    pool = {"prefect.resource.id": f"prefect.work-pool.{uuid4()}", "prefect.resource.name": name}
    return ReceivedEvent(id=uuid4(), occurred=datetime.now(UTC), event=f"prefect.work-pool.{status}", resource=pool)


async def test_a_pool_that_loses_its_last_worker_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    deserted = (await triggers(monkeypatch))["Retort: a pool has no worker"]
    for name in setup_server.POOLS:
        event = pool_event(name, "not-ready")
        assert deserted.covers(event)
        assert deserted.expects(event.event)
    assert not deserted.covers(pool_event("somebody-elses", "not-ready"))
    assert not deserted.expects("prefect.work-pool.ready")


@pytest.mark.parametrize(("name", "objects"), [
    ("Retort: a run failed", ("flow", "flow_run")), ("Retort: a pool has no worker", ("work_pool",)),
])  # fmt: skip
async def test_a_message_says_what_to_do(name: str, objects: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.blocks.webhook.Webhook.save", AsyncMock(return_value=uuid4()))
    made = await setup_server.messages(argparse.Namespace(webhook="http://127.0.0.1:9/", notify=None))
    (call,) = next(one.actions for one in made if one.name == name)
    assert isinstance(call, CallWebhook)
    payload = call.payload.replace("|ui_url", "")
    things = {
        one: {"name": "gpu-student", "state": {"name": "Crashed", "message": "no sign of life"}} for one in objects
    }
    text = json.loads(await render_user_template(payload, things))["text"]
    assert "To do: " in text
    assert "{{" not in text
    if name.endswith("worker"):
        assert "make worker POOL=gpu-student" in text
    else:
        assert "ended as Crashed: no sign of life" in text


def test_flows_are_those_of_the_projects_deployments(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(
        "deployments:\n"
        "  - {name: new, tags: [retort, weekly]}\n"
        "  - {name: part, tags: [retort, stage]}\n"
        "  - {name: piece, tags: [retort, step]}\n"
        "  - {name: untagged}\n"
    )
    assert setup_server.flow_names(tmp_path / "prefect.yaml") == ["new"]


async def test_no_message_can_add_fields_to_what_the_webhook_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The payloads, rendered by the server's own code with an error message that would end the text."""
    saved = AsyncMock(return_value=uuid4())
    monkeypatch.setattr("prefect.blocks.webhook.Webhook.save", saved)
    options = argparse.Namespace(webhook="http://127.0.0.1:9/", notify=None)
    hostile = 'row "1", "channel": "#all", "x": "\\ {{ flow.name }} </script>\n'
    (call,) = await setup_server.send_actions(options, "{{ flow.name }}: {{ flow_run.state.message }}", "{{ link }}")
    assert isinstance(call, CallWebhook)
    state = {"state": {"message": hostile}}
    rendered = await render_user_template(
        call.payload, {"flow": {"name": "mckd"}, "flow_run": state, "link": "http://127.0.0.1:9/1?a=1&b=2"}
    )
    link = "http://127.0.0.1:9/1?a=1&b=2"
    assert json.loads(rendered) == {"text": f"mckd: {hostile} {link}", "link": link}


def test_the_webhook_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its address, a secret, is not seen in the list of processes."""
    told = []

    async def set_up(options: argparse.Namespace) -> None:
        told.append(options.webhook)

    monkeypatch.setattr(setup_server, "set_up", set_up)
    monkeypatch.setattr("sys.argv", ["setup_server.py"])
    monkeypatch.setenv("RETORT_WEBHOOK", "https://example.com/hook")
    setup_server.main()
    assert told == ["https://example.com/hook"]
