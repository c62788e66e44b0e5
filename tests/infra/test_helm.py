"""The values for Prefect's charts, checked against the part of each chart's values that they set.

Helm checks the charts' own schemas at installation, but silently ignores an unknown name if a schema allows additional
ones; here it fails. The schemas below follow the values and schemas of prefect-server and prefect-worker in the
repository PrefectHQ/prefect-helm (Apache-2.0), as of November 2026.
"""

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
HELM = ROOT / "infra" / "helm"
TEXT, FLAG = {"type": "string"}, {"type": "boolean"}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


AMOUNT = closed(cpu=TEXT, memory=TEXT)
RESOURCES = closed(requests=AMOUNT, limits=AMOUNT)
SECONDS = {"type": "integer"}
PROBE = closed(
    enabled=FLAG,
    config=closed(
        initialDelaySeconds=SECONDS,
        periodSeconds=SECONDS,
        timeoutSeconds=SECONDS,
        failureThreshold=SECONDS,
        successThreshold=SECONDS,
    ),
)
POD_SECURITY = closed(seccompProfile=closed(type={"enum": ["RuntimeDefault", "Unconfined", "Localhost"]}))
CONTAINER_SECURITY = closed(capabilities=closed(drop={"type": "array"}))
ENVIRONMENT = {"type": "array", "items": {"type": "object", "required": ["name"]}}
CHARTS = {
    "prefect-server": closed(
        **{
            "global": closed(
                prefect=closed(image=closed(repository=TEXT, prefectTag=TEXT, pullSecrets={"type": "array"}))
            )
        },
        server=closed(
            basicAuth=closed(enabled=FLAG, existingSecret=TEXT),
            uiConfig=closed(prefectUiApiUrl=TEXT),
            env=ENVIRONMENT,
            resources=RESOURCES,
            livenessProbe=PROBE,
            readinessProbe=PROBE,
            podSecurityContext=POD_SECURITY,
            containerSecurityContext=CONTAINER_SECURITY,
        ),
        postgresql=closed(enabled=FLAG),
        secret=closed(create=FLAG, name=TEXT),
    ),
    "prefect-worker": closed(
        worker=closed(
            image=closed(repository=TEXT, prefectTag=TEXT, pullSecrets={"type": "array"}),
            config=closed(workPool=TEXT, type=TEXT, installPolicy=TEXT),
            apiConfig={"enum": ["cloud", "selfHostedCloud", "server"]},
            serverApiConfig=closed(apiUrl=TEXT, uiUrl=TEXT),
            extraEnvVars=ENVIRONMENT,
            resources=RESOURCES,
            livenessProbe=PROBE,
            podSecurityContext=POD_SECURITY,
            containerSecurityContext=CONTAINER_SECURITY,
        ),
    ),
}


def values(chart: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((HELM / f"{chart}.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("chart", CHARTS)
def test_values_are_ones_that_the_chart_has(chart: str) -> None:
    jsonschema.validate(values(chart), CHARTS[chart])
    assert {file.stem for file in HELM.glob("*.yaml")} == set(CHARTS)


def test_both_run_the_prefect_that_is_locked() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    tags = [values("prefect-server")["global"]["prefect"]["image"], values("prefect-worker")["worker"]["image"]]
    for tag in (image["prefectTag"] for image in tags):
        assert f"\nprefect=={tag.split('-')[0]}\n" in lock


def test_the_server_asks_for_a_password_and_has_no_database_of_its_own() -> None:
    server = values("prefect-server")
    assert server["server"]["basicAuth"]["enabled"]
    assert server["postgresql"] == {"enabled": False}
    assert server["server"]["basicAuth"]["existingSecret"] == server["secret"]["name"]


def test_the_server_is_not_killed_while_it_migrates_its_database() -> None:
    """There is no startup probe in the chart, which by itself asks after 10 s and kills after 3 refusals."""
    assert values("prefect-server")["server"]["livenessProbe"]["config"]["initialDelaySeconds"] >= 120


@pytest.mark.parametrize("chart", CHARTS)
def test_its_pods_meet_the_restricted_standard(chart: str) -> None:
    """With what the charts set themselves: a user that is not root, no privileges, a read-only image."""
    pods = values(chart)[chart.removeprefix("prefect-")]
    assert pods["podSecurityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pods["containerSecurityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"requests", "limits"} == set(pods["resources"])


def test_no_password_is_in_the_values_nor_in_a_jobs_manifest() -> None:
    environment = {entry["name"]: entry for entry in values("prefect-worker")["worker"]["extraEnvVars"]}
    source = environment["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]
    for part in ("name", "key"):
        setting = f"PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_{part.upper()}"
        assert environment[setting]["value"] == source[part]


@pytest.mark.parametrize("entry", values("prefect-worker")["worker"]["extraEnvVars"], ids=lambda entry: entry["name"])
def test_variables_are_valid_in_a_pod(entry: dict[str, Any]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "worker"},
        "spec": {"containers": [{"name": "worker", "env": [entry]}]},
    }
    kubernetes_validate.validate(pod, "1.37", strict=True)
