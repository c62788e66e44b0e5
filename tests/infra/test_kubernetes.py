"""The job templates, rendered as Prefect's worker does, against Kubernetes' own schemas; and the other manifests."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders

from infra import setup_server

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
POOLS = {"cpu": "orchestrator", "gpu-teacher": "teacher", "gpu-student": "student"}
VERSION = "1.37"


def template(pool: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{pool}.json").read_text(encoding="utf-8"))
    return loaded


def rendered(pool: str, **variables: Any) -> dict[str, Any]:
    """The manifest of a run's job: variables' defaults but for those given, what is not set left out."""
    properties = template(pool)["variables"]["properties"]
    defaults = {name: rule["default"] for name, rule in properties.items() if rule.get("default") is not None}
    values = {**defaults, "name": "blue-cat", "labels": {}, "annotations": {}, **variables}
    manifest = apply_values(template(pool)["job_configuration"]["job_manifest"], values, remove_notset=True)
    assert isinstance(manifest, dict)
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container.setdefault("args", ["prefect", "flow-run", "execute"])
    return manifest


def validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)


every_pool = pytest.mark.parametrize("pool", POOLS)


@every_pool
def test_a_job_is_valid(pool: str) -> None:
    manifest = rendered(pool)
    # Prefect's worker insists on these two at a place where Kubernetes ignores them.
    pod = manifest["spec"]["template"]["spec"]
    assert (pod.pop("parallelism"), pod.pop("completions"), pod["restartPolicy"]) == (1, 1, "Never")
    validate(manifest)


def test_the_schema_refuses_what_kubernetes_would() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(rendered("cpu"))
    manifest = rendered("gpu-teacher", tolerations=[{"key": 5}])
    for name in ("parallelism", "completions"):
        del manifest["spec"]["template"]["spec"][name]
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(manifest)


@every_pool
def test_every_placeholder_is_a_variable_and_every_variable_is_used(pool: str) -> None:
    whole = template(pool)
    placeholders = {placeholder.name for placeholder in find_placeholders(whole["job_configuration"])}
    assert placeholders == set(whole["variables"]["properties"])


@every_pool
def test_defaults_are_what_the_server_lets_through(pool: str) -> None:
    variables = template(pool)["variables"]
    jsonschema.Draft202012Validator.check_schema({**variables, "definitions": {}})
    defaults = {name: rule["default"] for name, rule in variables["properties"].items() if "default" in rule}
    jsonschema.validate(defaults, variables)


@every_pool
def test_a_job_runs_the_pools_image_with_as_few_rights_as_it_can(pool: str) -> None:
    pod = rendered(pool)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert re.fullmatch(rf"retort/{POOLS[pool]}:\d+\.\d+\.\d+", container["image"])
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@every_pool
def test_secrets_come_from_a_secret_and_caches_from_a_claim(pool: str) -> None:
    pod = rendered(pool, secret_name="team-a", cache_claim="team-a-cache")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "team-a"}}]
    assert not [entry for entry in container["env"] if re.search("PASSWORD|SECRET|TOKEN|AUTH", entry["name"])]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == "team-a-cache"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts["/home/retort/.cache"] == "cache"
    assert mounts["/tmp"] == "scratch"
    assert set(mounts.values()) == set(volumes)


@pytest.mark.parametrize("pool", [pool for pool in POOLS if pool.startswith("gpu")])
def test_a_gpu_job_asks_for_gpus_and_shared_memory(pool: str) -> None:
    pod = rendered(pool, gpus=4)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [container["resources"][kind]["nvidia.com/gpu"] for kind in ("requests", "limits")] == [4, 4]
    assert pod["tolerations"]
    assert pod["nodeSelector"]
    (shm,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"]["medium"] == "Memory"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_a_cpu_job_asks_for_no_gpu() -> None:
    assert "nvidia" not in json.dumps(rendered("cpu"))


def test_templates_are_those_that_the_set_up_looks_for() -> None:
    assert {file.stem for file in FOLDER.glob("*.json")} == set(setup_server.POOLS)
    for pool in POOLS:
        assert setup_server.template_of(pool, "kubernetes", 0) == template(pool)
        environment = template(pool)["variables"]["properties"]["env"]["default"]
        assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(setup_server.HEARTBEAT_SECONDS)


def manifests() -> list[dict[str, Any]]:
    return [
        manifest
        for file in sorted(FOLDER.glob("*.yaml"))
        for manifest in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(
    "manifest", manifests(), ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}"
)
def test_a_manifest_is_valid(manifest: dict[str, Any]) -> None:
    validate(manifest)
    assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "retort"


@every_pool
def test_what_a_job_names_is_made_by_a_manifest(pool: str) -> None:
    made = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests()}
    job = rendered(pool)
    pod = job["spec"]["template"]["spec"]
    claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert ("Namespace", job["metadata"]["namespace"]) in made
    assert ("ServiceAccount", pod["serviceAccountName"]) in made
    assert {("PersistentVolumeClaim", claim["claimName"]) for claim in claims} <= made
