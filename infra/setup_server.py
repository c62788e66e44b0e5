"""Set up a Prefect server for Retort: work pools, GPU limits, notifications, automations.

    python infra/setup_server.py [--type process|kubernetes] [--gpus N] [--webhook URL] [--notify TYPE/NAME]
                                 [--silence-seconds N]

Running it again brings everything up to date and changes nothing else. PREFECT_API_URL names the server, and
PREFECT_API_AUTH_STRING holds the password if it asks for one. RETORT_WEBHOOK does the same as --webhook and shows the
address, which is a secret on most services, to nobody who can list this machine's processes.
"""

import argparse
import asyncio
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.automations import Automation
from prefect.blocks.core import Block
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events import CallWebhook, ChangeFlowRunState, EventTrigger, Posture, SendNotification
from prefect.events.actions import ActionTypes
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

POOLS = {
    "cpu": "Parent runs, and stages that need no GPU",
    "gpu-teacher": "Teachers that label on GPUs of their own",
    "gpu-student": "Students: training, labeling, scoring",
}
HEARTBEAT_SECONDS = 30
"""How often a run sends a heartbeat; the minimum that Prefect accepts."""
START_SECONDS = 1800
"""A run that a worker took but that has not started by then never will: even pulling an image takes only minutes."""
ENDS = ("Completed", "Cached", "Failed", "Crashed", "Cancelled")
WEBHOOK = "retort-notifications"
DEPLOYMENTS = Path(__file__).parents[1] / "prefect.yaml"
PROJECT_TAG = "retort"
PART = "step"
"""The flow of which such a part is a run."""
PART_TAGS = {"stage", "step"}
"""Deployments with one of these tags run parts of a run. If a part fails, the run that started it fails and reports it.
"""


async def set_up(options: argparse.Namespace) -> None:
    async with get_client() as client:
        for name, description in POOLS.items():
            await make_pool(client, name, options.type, description, template_of(name, options.type, options.gpus))
        for gpu in range(options.gpus):
            await client.upsert_global_concurrency_limit_by_name(f"gpu-{gpu}", limit=1)
        for automation in [*guards(options.silence_seconds), *await messages(options)]:
            await create_or_update(automation)


async def make_pool(client: PrefectClient, name: str, kind: str, description: str, template: dict[str, Any]) -> None:
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound:
        await client.create_work_pool(
            WorkPoolCreate(name=name, type=kind, description=description, base_job_template=template)
        )
        print(f"work pool {name}: made ({kind})")
        return
    if pool.type != kind:
        raise SystemExit(
            f"work pool '{name}' is of type '{pool.type}', not '{kind}': delete it first, or give its type"
        )
    await client.update_work_pool(name, WorkPoolUpdate(description=description, base_job_template=template))
    print(f"work pool {name}: up to date")


def template_of(pool: str, kind: str, gpus: int) -> dict[str, Any]:
    """The base job template of a pool: what its workers start for a run."""
    if kind == "kubernetes":
        template: dict[str, Any] = json.loads((Path(__file__).parent / "kubernetes" / f"{pool}.json").read_text())
        return template
    template = ProcessWorker.get_default_base_job_template()
    environment = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    if gpus and pool != "cpu":
        environment["RETORT_GPUS"] = str(gpus)
    template["variables"]["properties"]["env"]["default"] = environment
    return template


def guards(silence_seconds: int) -> list[Automation]:
    """Automations that mark dead runs as Crashed. Until then such runs keep their slots and cannot be retried.

    Only Retort's: those of other flows on the same server send a heartbeat every 180 s unless told otherwise.
    """
    ours = of_flows([*flow_names(DEPLOYMENTS), PART])
    return [
        Automation(
            name="Retort: a silent run has crashed",
            description="A run that sends no heartbeat any more is marked Crashed, which frees its slots.",
            trigger=EventTrigger(
                match_related=ours,
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ENDS)},
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=silence_seconds),
            ),
            actions=[crashed(f"No sign of life for {silence_seconds} s: its worker or its machine is gone.")],
        ),
        Automation(
            name="Retort: a run that does not begin has crashed",
            description="A run that a worker took and did not start is marked Crashed, which frees its slots.",
            trigger=EventTrigger(
                match_related=ours,
                after={"prefect.flow-run.Pending"},
                expect={"prefect.flow-run.Running", *(f"prefect.flow-run.{end}" for end in ENDS)},
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=START_SECONDS),
            ),
            actions=[crashed(f"Taken by a worker {START_SECONDS} s ago, and not begun since.")],
        ),
    ]


def crashed(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)


async def messages(options: argparse.Namespace) -> list[Automation]:
    """Automations that report failed runs, the gate's verdicts, and pools without workers to the webhook and the
    notification block."""
    failed = EventTrigger(
        expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
        match_related=of_flows(flow_names(DEPLOYMENTS)),
        posture=Posture.Reactive,
        threshold=1,
    )
    judged = EventTrigger(expect={"retort.gate.*"}, posture=Posture.Reactive, threshold=1)
    deserted = EventTrigger(
        expect={"prefect.work-pool.not-ready"},
        match={"prefect.resource.id": "prefect.work-pool.*", "prefect.resource.name": list(POOLS)},
        posture=Posture.Reactive,
        threshold=1,
    )
    run_failed = (
        "{{ flow.name }} '{{ flow_run.name }}' ended as {{ flow_run.state.name }}: {{ flow_run.state.message }} -- "
        "To do: open it, mend the cause, Retry. What was made and paid for is kept."
    )
    gate_said = "{{ event.resource.name }}: {{ event.payload.text }}"
    no_worker = (
        "Work pool {{ work_pool.name }} has no worker any more, so its runs will not start. To do: look at why the "
        "last one ended and start it again (make worker POOL={{ work_pool.name }}; docker compose up --detach; "
        "kubectl -n retort rollout restart deployment/worker-{{ work_pool.name }})."
    )
    told = (
        ("a run failed", "Tells of runs that failed or crashed.", failed, run_failed, "{{ flow_run|ui_url }}"),
        ("the gate has judged", "Tells what became of a new student.", judged, gate_said, "{{ event.payload.report }}"),
        ("a pool has no worker", "Tells of pools that wait in vain.", deserted, no_worker, "{{ work_pool|ui_url }}"),
    )
    return [
        Automation(name=f"Retort: {what}", description=why, trigger=trigger, actions=actions)
        for what, why, trigger, text, link in told
        if (actions := await send_actions(options, text, link))
    ]


def of_flows(names: list[str]) -> dict[str, str | list[str]]:
    """What an event's related resources must be for it to be about a run of one of these flows."""
    return {"prefect.resource.role": "flow", "prefect.resource.name": names}


def flow_names(deployments: Path) -> list[str]:
    """The flows whose failures are worth a message; every deployment in prefect.yaml is named after its flow.

    Names, not tags: a run started without a deployment has no tags, and a trigger cannot exclude the parts by tag,
    because it matches if any one of a run's tags does.
    """
    listed = yaml.safe_load(deployments.read_text(encoding="utf-8"))["deployments"]
    tags = {deployment["name"]: set(deployment.get("tags", [])) for deployment in listed}
    return [name for name, its in tags.items() if PROJECT_TAG in its and not its & PART_TAGS]


async def send_actions(options: argparse.Namespace, text: str, link: str) -> list[ActionTypes]:
    """The actions that send a message to each place given on the command line."""
    actions: list[ActionTypes] = []
    if options.webhook:
        block = await Webhook(method="POST", url=options.webhook).save(WEBHOOK, overwrite=True)
        # As JSON values, so that no quote in a message ends its text and adds fields.
        payload = f'{{"text": {as_json(f"{text} {link}")}, "link": {as_json(link)}}}'
        actions.append(CallWebhook(block_document_id=UUID(str(block)), payload=payload))
    if options.notify:
        block_id = UUID(str((await Block.load(options.notify))._block_document_id))
        actions.append(SendNotification(block_document_id=block_id, subject="Retort", body=f"{text}\n{link}"))
    return actions


def as_json(template: str) -> str:
    """A template that renders as a JSON string."""
    return f"{{% filter tojson %}}{template}{{% endfilter %}}"


async def create_or_update(automation: Automation) -> None:
    """Create the automation, or update the one with the same name."""
    try:
        known = await Automation.aread(name=automation.name)
    except ValueError:
        await automation.acreate()
        print(f"automation '{automation.name}': made")
        return
    automation.id = known.id
    await automation.aupdate()
    print(f"automation '{automation.name}': up to date")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=("process", "kubernetes"), default="process", help="of the work pools")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that the workers of one machine share")
    parser.add_argument(
        "--webhook",
        default=os.environ.get("RETORT_WEBHOOK"),
        help="address that is told of failures and of the gate's verdicts; default: $RETORT_WEBHOOK",
    )
    parser.add_argument("--notify", help="notification block to tell, as TYPE/NAME, such as sendgrid-email/team")
    parser.add_argument("--silence-seconds", type=int, default=90, help="after which a run counts as crashed")
    options = parser.parse_args()
    if not 0 <= options.gpus <= 64:
        parser.error(f"--gpus {options.gpus}: must be 0 to 64")
    if options.silence_seconds < 2 * HEARTBEAT_SECONDS:
        parser.error(
            f"--silence-seconds {options.silence_seconds}: must be at least two heartbeats of {HEARTBEAT_SECONDS}"
        )
    asyncio.run(set_up(options))


if __name__ == "__main__":
    main()
