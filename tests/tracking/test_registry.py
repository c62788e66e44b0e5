"""Reading a real registry in each of the ways that there are, against one and the same database."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from retort.config import MckdConfig
from retort.errors import ConfigError, GateRefused, TrackingUnavailable
from retort.tracking import registry
from retort.tracking.address import is_current
from retort.tracking.promotion import promote, rollback
from retort.tracking.registry import ModelVersion, find_version, reigning_version, versions

WAYS = ["database", "client", "server"]


def _fill(client: Any) -> None:
    """`alpha`: versions 1 to 4, of which 2 is deleted; `beta`: not Retort's; `gamma`: without an alias."""
    run_id = client.create_run("0").info.run_id
    for model, count in (("alpha", 4), ("beta", 1), ("gamma", 1)):
        client.create_registered_model(model)
        for number in range(1, count + 1):
            tags = {"retort.key": f"{model}-{number}", "retort.artifact": f"s3://bucket/{model}/{number}", "n": "ü'\""}
            client.create_model_version(
                model, f"s3://bucket/{number}", run_id=run_id, tags={} if model == "beta" else tags
            )
    client.set_registered_model_alias("alpha", "champion", "1")
    client.set_registered_model_alias("alpha", "challenger", "4")
    client.set_registered_model_alias("alpha", "canary", "4")
    client.set_registered_model_alias("beta", "champion", "1")
    client.delete_model_version("alpha", "2")


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """By way; a server of its own process serves the same file."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    _fill(MlflowClient(uri, registry_uri=uri))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1", "--port", port]
    # Its job runner is one more process and keeps a core busy.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--no-serve-artifacts"], cwd=folder, stdout=log, stderr=log, env=environment
        )
    # MLflow takes this address for a database like any other; so do we, and leave it to MLflow's client.
    every = {"database": uri, "client": f"sqlite+pysqlite:///{folder}/mlflow.db", "server": f"http://127.0.0.1:{port}"}
    try:
        yield every
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(params=WAYS, scope="module")
def uri(request: pytest.FixtureRequest, addresses: dict[str, str]) -> str:
    address = addresses[request.param]
    if request.param == "server":
        _wait_for(f"{address}/health")
    return address


def _wait_for(address: str) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            httpx.get(address).raise_for_status()
        except httpx.HTTPError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


def test_versions_of_a_model_are_newest_first(uri: str) -> None:
    found = versions(uri, "alpha")
    assert [(v.version, v.key, v.aliases) for v in found] == [
        ("4", "alpha-4", ("canary", "challenger")),
        ("3", "alpha-3", ()),
        ("1", "alpha-1", ("champion",)),
    ]
    newest = found[0]
    assert (newest.model, newest.source, newest.artifact) == ("alpha", "s3://bucket/4", "s3://bucket/alpha/4")
    assert len(newest.run_id) == 32
    assert newest.tags["n"] == "ü'\""


def test_versions_of_every_model_leave_out_what_is_not_ours(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [("alpha", "4"), ("alpha", "3"), ("alpha", "1"), ("gamma", "1")]
    assert [(v.model, v.version) for v in versions(uri)] == every
    monkeypatch.setattr(registry, "AT_ONCE", 1)
    assert [(v.model, v.version) for v in versions(uri)] == every
    assert versions(uri, "nobody") == []


@pytest.mark.parametrize("prefix", ["", "models:/"])
@pytest.mark.parametrize(("name", "version"), [("alpha@champion", "1"), ("alpha@canary", "4"), ("alpha/3", "3")])
def test_find_version(uri: str, prefix: str, name: str, version: str) -> None:
    assert find_version(uri, prefix + name).version == version


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("alpha/2", "'alpha' has the aliases canary, challenger, champion and the versions 4, 3, 1"),
        ("alpha@none", "'alpha' has the aliases canary, challenger, champion and the versions 4, 3, 1"),
        ("models:/gamma@champion", "'gamma' has the aliases (none) and the versions 1"),
        ("nobody@champion", "there is no version of 'nobody'"),
        ("beta@champion", "version 1 of 'beta' was not registered by Retort"),
        ("alpha", "allowed: models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/alpha/latest", "allowed: models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("a' or name = 'b/1", "allowed: models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_what_names_no_student_is_one_sentence(uri: str, address: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_version(uri, address)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_who_reigns(uri: str) -> None:
    champion = reigning_version(uri, "alpha")
    assert champion is not None
    assert (champion.version, champion.key) == ("1", "alpha-1")
    assert reigning_version(uri, "gamma") is None
    assert reigning_version(uri, "nobody") is None
    with pytest.raises(ConfigError, match="version 1 of 'beta' was not registered by Retort"):
        reigning_version(uri, "beta")


def test_promotion_and_rollback(uri: str) -> None:
    values = {
        "name": "alpha",
        "problem": {"kind": "classification"},
        "data": {"labeled": "l.jsonl", "unlabeled": "u.jsonl", "test": "t.jsonl"},
        "teacher": {"kind": "finetuned"},
        "student": {"kind": "sequence-classification", "model": "m"},
        "tracking": {"uri": uri},
    }
    config = MckdConfig.model_validate(values)
    with pytest.raises(GateRefused, match="version 4 of 'alpha' has no verdict of the gate"):
        promote(config)
    promoted = promote(config, forced_because="to see it reign")
    assert (promoted.outcome, promoted.version, promoted.replaced) == ("forced", "4", "1")
    champion = reigning_version(uri, "alpha")
    assert champion is not None
    assert champion.aliases == ("canary", "challenger", "champion")
    assert champion.tags["promotion.replaced"] == "1"
    assert rollback(uri, "alpha", "enough of it now").version == "1"
    champion = reigning_version(uri, "alpha")
    assert champion is not None
    assert champion.version == "1"


def test_every_way_reads_the_same(addresses: dict[str, str]) -> None:
    _wait_for(f"{addresses['server']}/health")
    read: list[list[ModelVersion]] = [versions(addresses[way]) for way in WAYS]
    assert read[0] == read[1] == read[2]


def test_reading_takes_no_mlflow_and_expands_the_address(addresses: dict[str, str]) -> None:
    _wait_for(f"{addresses['server']}/health")
    program = (
        "import sys; from retort.tracking.registry import versions; "
        "print(len(versions('${DATABASE}')), len(versions('${SERVER}')), 'mlflow' in sys.modules)"
    )
    environment = {**os.environ, "DATABASE": addresses["database"], "SERVER": addresses["server"]}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "4", "False"]


def test_a_database_that_is_still_to_come_has_no_versions(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/mlflow.db"
    assert versions(address) == []
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "mlflow.db").write_bytes(b"")
    assert reigning_version(address, "alpha") is None


def test_what_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but a text that is long enough to look at" * 20)
    with pytest.raises(TrackingUnavailable, match=r"tracking\.uri = 'sqlite:///.*mlflow\.db' cannot be read: file is"):
        versions(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_server_that_is_away_or_no_mlflow_is_one_sentence_without_the_password(addresses: dict[str, str]) -> None:
    with pytest.raises(TrackingUnavailable, match=r"'http://127\.0\.0\.1:9' cannot be reached \(ConnectError\)"):
        versions("http://user:secret@127.0.0.1:9")
    _wait_for(f"{addresses['server']}/health")
    with pytest.raises(TrackingUnavailable, match=r"answers registered-models/get with 404 and no JSON"):
        versions(f"{addresses['server']}/elsewhere", "alpha")


def test_a_server_says_that_a_run_is_gone(addresses: dict[str, str]) -> None:
    _wait_for(f"{addresses['server']}/health")
    run_id = versions(addresses["server"], "alpha")[0].run_id
    for way in ("database", "server"):
        assert is_current(addresses[way], run_id)
        assert not is_current(addresses[way], "0" * 32)
