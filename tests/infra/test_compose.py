"""compose.yaml: valid according to the Compose Specification, and safe and startable as it is."""

import configparser
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from retort.serving.server import DRAIN_SECONDS

ROOT = Path(__file__).parents[2]


def login() -> dict[str, str]:
    """What MLflow's login is set to."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "infra" / "mlflow" / "basic_auth.ini", encoding="utf-8")
    return dict(parser["mlflow"])


DOCKER = ROOT / "docker"
SOURCE = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(SOURCE)
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "compose-spec.json").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LOGIN = login()
EXAMPLE = (DOCKER / ".env.example").read_text(encoding="utf-8")
VARIABLES = re.compile(r"(?<!\$)\$\{(\w+)(:[?-])?([^}]*)\}")
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING")
DROPS_ROOT_ITSELF = {"s3"}
"""Services whose entrypoint starts as root, hands a volume to an unprivileged user and continues as that user."""

every_service = pytest.mark.parametrize("name", SERVICES)


def waited_for(condition: str) -> set[str]:
    """Services that some other service waits for with this condition."""
    waits = [service.get("depends_on", {}) for service in SERVICES.values()]
    return {name for wait in waits for name, how in wait.items() if how["condition"] == condition}


ONE_SHOT = waited_for("service_completed_successfully")


def test_it_is_valid_by_the_specification() -> None:
    jsonschema.validate(COMPOSE, SCHEMA)


def test_the_specification_refuses_what_it_does_not_know() -> None:
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validate({"services": {"s3": {**SERVICES["s3"], "helthcheck": {}}}}, SCHEMA)


@every_service
def test_an_image_is_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    if image.startswith("retort/"):
        version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        assert image.endswith(f":${{RETORT_VERSION:-{version}}}")
    else:
        assert re.search(r":\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?$", image), image


def test_every_variable_has_a_value_or_is_demanded() -> None:
    bare = {name for name, how, _ in VARIABLES.findall(SOURCE) if not how}
    # These occur in comments, about variables that configs use.
    assert bare <= {"S3_ENDPOINT_URL", "RETORT_BUCKET", "VAR"}


def test_secrets_are_demanded_and_have_no_default() -> None:
    demanded = {name for name, how, _ in VARIABLES.findall(SOURCE) if how == ":?"}
    defaulted = {name for name, how, _ in VARIABLES.findall(SOURCE) if how == ":-"}
    assert {name for name in demanded | defaulted if SECRET.search(name)} == demanded
    assert re.findall(r"^(\w+)=$", EXAMPLE, re.MULTILINE) == sorted(demanded, key=EXAMPLE.index)


@every_service
def test_no_secret_is_written_down(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRET.search(variable):
            assert ":?" in str(value), variable


def test_the_example_names_every_variable() -> None:
    known = set(re.findall(r"^#?(\w+)=", EXAMPLE, re.MULTILINE))
    assert {name for name, how, _ in VARIABLES.findall(SOURCE) if how} == known


@every_service
def test_it_says_when_it_is_ready(name: str) -> None:
    service = SERVICES[name]
    checks = service.get("healthcheck", {})
    if name in ONE_SHOT:
        assert service["restart"].startswith("on-failure")
        assert checks == {"disable": True}
    elif "command" in service or "build" not in service:
        assert checks.get("test"), "the image's own check, if any, is for another command"
    else:
        assert not checks  # the worker's check is in the Dockerfile


@every_service
def test_it_waits_for_what_it_needs_to_be_ready(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        ended = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
        assert how["condition"] == ended


@every_service
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@every_service
def test_it_runs_with_as_few_rights_as_it_can(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert bool(service.get("cap_add")) == (name in DROPS_ROOT_ITSELF)
    if "build" not in service and name not in DROPS_ROOT_ITSELF:
        assert not service["user"].startswith("0")
        assert service["user"] != "root"


@pytest.mark.parametrize("name", ["prefect", "mlflow", "serve"])
def test_a_servers_image_cannot_be_changed(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    scratch = dict(one.split(":", 1) for one in service["tmpfs"])
    assert set(scratch) == {"/tmp", "/home/retort"}
    assert all("size=" in options for options in scratch.values())
    assert "uid=1001" in scratch["/home/retort"]


def test_gpus_are_asked_for_in_the_gpu_profile_only() -> None:
    def asks(service: dict[str, Any]) -> bool:
        return "devices" in service.get("deploy", {}).get("resources", {}).get("reservations", {})

    by_profile = {name for name, service in SERVICES.items() if service.get("profiles") == ["gpu"]}
    assert by_profile == {name for name, service in SERVICES.items() if asks(service)}
    assert by_profile == {"worker-gpu-teacher", "worker-gpu-student"}
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {*by_profile, "serve"}


def test_the_scorer_is_watched_inside_and_asked_with_a_token() -> None:
    serve = SERVICES["serve"]
    (port,) = serve["ports"]
    assert port.endswith(":8000"), "the metrics' port needs no token, so it is not published"
    assert "127.0.0.1:9000/readyz" in serve["healthcheck"]["test"][-1]
    assert serve["command"][-2:] == ["--metrics-port", "9000"]
    # An empty one is refused by `retort serve`; a demanded one would keep the other services from starting.
    assert serve["environment"]["RETORT_SERVE_TOKEN"] == "${RETORT_SERVE_TOKEN:-}"
    assert float(serve["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS


def test_every_pool_has_a_worker() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    pools = {deployment["work_pool"]["name"] for deployment in deployments}
    assert {f"worker-{pool}" for pool in pools} == {name for name in SERVICES if name.startswith("worker-")}


def test_what_must_outlive_a_container_is_in_a_volume() -> None:
    used = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if not volume.startswith("$")
    }
    assert used == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", ["prefect", "mlflow", "s3"])
def test_what_is_published_asks_for_a_password(name: str) -> None:
    """And what asks has it: workers and set-up."""
    environment = SERVICES[name]["environment"]
    published = {name for name, service in SERVICES.items() if service.get("ports")}
    assert published == {"prefect", "mlflow", "s3", "serve"}
    clients = [service["environment"] for name, service in SERVICES.items() if name.startswith("worker-")]
    match name:
        case "prefect":
            assert environment["PREFECT_SERVER_API_AUTH_STRING"].startswith("admin:${PREFECT_PASSWORD:?")
            asks = [*clients, SERVICES["setup"]["environment"]]
            assert all(one["PREFECT_API_AUTH_STRING"] == environment["PREFECT_SERVER_API_AUTH_STRING"] for one in asks)
        case "mlflow":
            assert "--app-name=basic-auth" in SERVICES[name]["command"]
            assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"].startswith("${MLFLOW_PASSWORD:?")
            for one in clients:
                assert one["MLFLOW_TRACKING_PASSWORD"] == environment["MLFLOW_AUTH_ADMIN_PASSWORD"]
                assert one["MLFLOW_TRACKING_USERNAME"] == LOGIN["admin_username"]
        case "s3":
            assert environment["AWS_SECRET_ACCESS_KEY"].startswith("${AWS_SECRET_ACCESS_KEY:?")


def test_mlflows_login_has_no_password_of_its_own_and_keeps_its_users() -> None:
    assert "admin_password" not in LOGIN
    mlflow = SERVICES["mlflow"]
    volumes = dict(volume.split(":") for volume in mlflow["volumes"])
    database = Path(LOGIN["database_uri"].removeprefix("sqlite:///"))
    assert str(database.parent) in volumes.values()
    assert mlflow["environment"]["MLFLOW_AUTH_CONFIG_PATH"] == "/opt/retort/infra/mlflow/basic_auth.ini"


def test_no_command_line_holds_a_secret() -> None:
    """Every user of a machine sees the others' command lines."""
    commands = " ".join(str(service.get("command", "")) for service in SERVICES.values())
    assert not re.search(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|WEBHOOK", commands)


def docker_compose() -> list[str] | None:
    """The command of Compose v2 or newer, which can resolve a file without an engine."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
            if re.match(r"v?([2-9]|\d\d)\.", asked.stdout):
                return command
    return None


@pytest.mark.skipif(docker_compose() is None, reason="Docker Compose v2 is not installed")
def test_compose_resolves_it_with_passwords_and_refuses_without(tmp_path: Path) -> None:
    command = [*(docker_compose() or []), "--file", str(DOCKER / "compose.yaml"), "--profile", "gpu"]
    filled = tmp_path / "filled.env"
    filled.write_text(re.sub(r"^(\w+)=$", r"\1=0123abcd", EXAMPLE, flags=re.MULTILINE), encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    asked = {"capture_output": True, "text": True, "env": environment, "check": False}
    resolved = subprocess.run([*command, "--env-file", str(filled), "config", "--format", "json"], **asked)
    assert set(json.loads(resolved.stdout)["services"]) == set(SERVICES), resolved.stderr
    refused = subprocess.run([*command, "--env-file", str(DOCKER / ".env.example"), "config"], **asked)
    assert refused.returncode != 0
    assert "set it in docker/.env" in refused.stderr


def test_files_with_secrets_are_kept_from_git_and_from_images() -> None:
    files = [entry["path"] for service in SERVICES.values() for entry in service.get("env_file", [])]
    kept_out = (DOCKER / ".gitignore").read_text(encoding="utf-8").split()
    assert {".env", *files} == set(kept_out)
    ignored = subprocess.run(["git", "check-ignore", "--quiet", "docker/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
