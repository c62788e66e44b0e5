"""The job templates, rendered like Prefect's worker does, and the other manifests, against Kubernetes' schemas."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders
from typer.testing import CliRunner

from infra import setup_server
from retort.cli import app
from retort.serving.metrics import PROBES
from retort.serving.server import DRAIN_SECONDS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
POOLS = {"cpu": "orchestrator", "gpu-teacher": "teacher", "gpu-student": "student"}
VERSION = "1.37"


def template(pool: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{pool}.json").read_text(encoding="utf-8"))
    return loaded


def rendered(pool: str, **variables: Any) -> dict[str, Any]:
    """The manifest of a run's job, with the variables' defaults unless given; unset ones are left out."""
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
    # Prefect's worker requires these two in a place where Kubernetes ignores them.
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
    assert re.fullmatch(rf"\S+/{POOLS[pool]}:\d+\.\d+\.\d+(@sha256:\S+)?", container["image"])
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


@every_pool
def test_no_autoscaler_evicts_a_run(pool: str) -> None:
    annotations = rendered(pool)["spec"]["template"]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    # A node for it may have to be started first, and its image be pulled.
    seconds = template(pool)["variables"]["properties"]["pod_watch_timeout_seconds"]["default"]
    assert seconds >= (1800 if pool.startswith("gpu") else 600)


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in manifests() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


DEPLOYMENTS = [one["metadata"]["name"] for one in manifests() if one["kind"] == "Deployment"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployments_pods_have_as_few_rights_as_they_can_and_say_how_they_are(name: str) -> None:
    pod = named("Deployment", name)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 1001)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    resources = container["resources"]
    assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["requests"])
    assert {"memory", "ephemeral-storage"} <= set(resources["limits"])
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)


def test_the_scorer_is_probed_where_clients_do_not_reach_and_ends_what_it_began() -> None:
    pod = named("Deployment", "retort-serve")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    program, subcommand, model, *options = container["command"]
    assert (program, subcommand) == ("retort", "serve")
    assert f"--metrics-port={ports['metrics']}" in options
    assert f"--port={ports['http']}" in options
    known = CliRunner().invoke(app, ["serve", "--help"]).output
    assert all(option.split("=")[0] in known for option in options)
    assert model == "models:/$(RETORT_SERVE_MODEL)@champion"
    assert "RETORT_SERVE_MODEL" in {entry["name"] for entry in container["env"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["port"], asked["path"] in PROBES) == ("metrics", True)
    assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > wait + DRAIN_SECONDS
    served = named("Service", "retort-serve")["spec"]
    assert {port["targetPort"] for port in served["ports"]} == set(ports)


def test_an_autoscaler_alone_says_how_many_pods_there_are() -> None:
    """A number in the Deployment would undo it at every `kubectl apply`."""
    scaled = [one["spec"]["scaleTargetRef"]["name"] for one in manifests() if one["kind"] == "HorizontalPodAutoscaler"]
    assert scaled
    assert all("replicas" not in named("Deployment", name)["spec"] for name in scaled)


def policies() -> list[dict[str, Any]]:
    return [one for one in manifests() if one["kind"] == "NetworkPolicy"]


def labels_of_pods() -> set[str]:
    """`app.kubernetes.io/name` of everything that runs in the namespace."""
    charts = {"prefect-server", "prefect-worker"}
    jobs = {rendered(pool)["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] for pool in POOLS}
    deployed = {
        one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for one in manifests()
        if one["kind"] == "Deployment"
    }
    return charts | jobs | deployed


def test_nobody_is_called_but_by_those_who_need_to() -> None:
    assert any(one["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]} for one in policies())
    selected = {one["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name") for one in policies()}
    assert selected == {None, "prefect-server", "mlflow", "retort-job", "retort-serve"}
    text = (FOLDER / "network.yaml").read_text(encoding="utf-8")
    # Names that no pod has would let nobody in, or select nothing, without a word.
    used = set(re.findall(r"app\.kubernetes\.io/name: ([\w-]+)", text))
    used |= {name for given in re.findall(r"values: \[(.*?)\]", text) for name in given.split(", ")}
    assert used <= labels_of_pods()


@pytest.mark.parametrize("name", ["retort-job", "retort-serve", "mlflow"])
def test_what_calls_out_may_not_ask_for_the_nodes_credentials(name: str) -> None:
    (policy,) = [one for one in policies() if one["metadata"]["name"] == name]
    for rule in policy["spec"]["egress"]:
        for place in rule.get("to", []):
            if "ipBlock" in place:
                assert place["ipBlock"]["except"] == ["169.254.0.0/16"]
        if "to" not in rule:
            assert {port["port"] for port in rule["ports"]} == {53}, "only names may be asked of anybody"


def test_the_ports_of_policies_are_those_that_listen() -> None:
    listening = {
        one["metadata"]["name"]: {
            port["containerPort"] for port in one["spec"]["template"]["spec"]["containers"][0]["ports"]
        }
        for one in manifests()
        if one["kind"] == "Deployment"
    }
    for policy in policies():
        allowed = {port["port"] for rule in policy["spec"].get("ingress", []) for port in rule["ports"]}
        assert allowed == listening.get(policy["metadata"]["name"], {4200} if "prefect" in policy["metadata"]["name"]
                                        else set())  # fmt: skip
