"""The synthetic run of the report's tests, projected into MLflow."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from retort.artifacts.reports import TRACKED, Tracked, write_tracked
from retort.config import ExecutionConfig, MckdConfig, TrackingConfig
from retort.errors import ConfigError, TrackingUnavailable
from retort.recipes.mckd.steps import track
from retort.steps.context import StepContext
from retort.store import StepOutput
from retort.tracking.address import check_reachable, is_current, without_secrets
from retort.tracking.logging import flattened
from retort.tracking.step import Track
from synthetic_run import Run, crowned, synthetic

ORIGIN = {"git.commit": "abc123", "prefect.flow_run_id": "run-1", "started_at": "2026-01-02T03:04:05+00:00"}


def track_step(run: Run, uri: str, origin: dict[str, str] = ORIGIN) -> Track:
    config: MckdConfig = run.config.model_copy(update={"tracking": TrackingConfig(uri=uri)})
    return track(config, run.distilled, run.report, origin)


class Tracking:
    """A run, a database, and what projecting the one into the other gave."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, synthetic(folder, pictures=True)
        self.uri = f"sqlite:///{folder}/db/mlflow.db"

    def project(self, name: str, origin: dict[str, str] = ORIGIN) -> StepOutput:
        (self.folder / name).mkdir()
        context = StepContext(self.run.store, self.folder / name, ExecutionConfig(), 0, lambda *_: None)
        return track_step(self.run, self.uri, origin).run(context)

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    tracking = Tracking(tmp_path_factory.mktemp("tracking"))
    tracking.project("first")
    return tracking


@pytest.fixture(scope="module")
def parent(tracking: Tracking) -> Any:
    return tracking.client.get_run(_tracked(tracking)["run_id"])


def _tracked(tracking: Tracking) -> dict[str, str]:
    tracked: dict[str, str] = json.loads((tracking.folder / "first" / TRACKED).read_text())
    return tracked


def _children(tracking: Tracking, parent: Any) -> dict[str, Any]:
    filter_string = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    runs = tracking.client.search_runs([parent.info.experiment_id], filter_string)
    return {run.info.run_name: run for run in runs}


def test_one_parent_and_a_child_for_each_student(tracking: Tracking, parent: Any) -> None:
    assert tracking.client.get_experiment(parent.info.experiment_id).name == "tiny"
    assert (parent.info.run_name, parent.info.status) == ("tiny", "FINISHED")
    children = _children(tracking, parent)
    assert sorted(children) == [
        "final/student",
        "stage1/student-0",
        "stage1/student-1",
        "stage2/student-0",
        "stage2/student-1",
        "supervised/student",
        "vanilla-kd/student",
    ]
    assert {child.info.status for child in children.values()} == {"FINISHED"}


def test_params_and_tags_of_the_parent(parent: Any) -> None:
    assert parent.data.params["method.stages"] == "3"
    assert parent.data.params["problem.intents.PLAY"] == '["ARTIST", "TRACK"]'
    tags = parent.data.tags
    assert tags["mlflow.source.git.commit"] == tags["retort.git.commit"] == "abc123"
    assert tags["retort.prefect.flow_run_id"] == "run-1"
    assert tags["retort.kept_stage"] == "1"
    assert tags["retort.reason"].startswith("The final student scores 57.1 slot F1: +0.0 over the teacher")
    assert "The labels of stage 1 were rejected" in tags["retort.reason"]
    assert len(tags["retort.config_hash"]) == len(tags["retort.data_digest"]) == 64
    assert parent.info.start_time == 1767323045000


def test_metrics_of_the_parent_have_step_equal_stage(tracking: Tracking, parent: Any) -> None:
    def history(metric: str) -> dict[int, Any]:
        points = tracking.client.get_metric_history(parent.info.run_id, metric)
        return {point.step: pytest.approx(point.value) for point in points}

    assert history("test_slot_f1") == {1: 0.875, 2: 4 / 7}
    assert history("judge_slot_f1") == {1: 1.0, 2: 0.0}
    assert history("label_exact_match") == {0: 4 / 9, 1: 4 / 9}
    assert history("changed_share") == {1: 0.5}
    assert history("final_exact_match") == {1: 0.5}
    assert history("supervised_slot_f1") == {0: 1.0}
    assert history("stage_seconds") == {1: 10.0, 2: 7.0}
    metrics = parent.data.metrics
    assert metrics["final_slot_f1_low"] <= metrics["final_slot_f1"] <= metrics["final_slot_f1_high"]
    assert metrics["compute_seconds"] == 27.0


def test_a_child_has_its_loss_curve_scores_and_artifact(tracking: Tracking, parent: Any) -> None:
    child = _children(tracking, parent)["stage1/student-0"]
    losses = tracking.client.get_metric_history(child.info.run_id, "loss")
    assert [(point.step, point.value) for point in losses] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert child.data.metrics["test_exact_match"] == 0.75
    assert child.data.metrics["judge_exact_match"] == 1.0
    ref = tracking.run.distilled.rounds[0].students[0]
    assert (child.data.tags["retort.key"], child.data.tags["retort.artifact"]) == (ref.key, ref.uri)
    assert child.data.params["training.epochs"] == "4.0"
    assert child.info.end_time - child.info.start_time == 1000


def test_data_sets_are_inputs(parent: Any) -> None:
    inputs = {item.dataset.name: item.dataset for item in parent.inputs.dataset_inputs}
    assert sorted(inputs) == ["labeled", "test", "unlabeled"]
    assert json.loads(inputs["unlabeled"].profile) == {"num_rows": 10, "num_gold": 9}
    assert json.loads(inputs["test"].source)["uri"].endswith("/test.jsonl")
    assert all(len(dataset.digest) == 36 for dataset in inputs.values())


def test_the_report_lies_beside_the_database(tracking: Tracking, parent: Any) -> None:
    names = {file.path for file in tracking.client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/report.html", "report/report.md", "report/scores.png", "report/timeline.png"} <= names
    assert (tracking.folder / "db" / "mlartifacts").is_dir()


def test_the_final_student_is_a_version(tracking: Tracking, parent: Any) -> None:
    version = tracking.client.get_model_version_by_alias("tiny", "challenger")
    final = tracking.run.distilled.final_student
    assert (version.source, version.run_id) == (f"{parent.info.artifact_uri}/model", parent.info.run_id)
    assert version.tags["retort.artifact"] == final.uri
    assert (version.tags["retort.key"], version.tags["exact_match"]) == (final.key, "0.500000")


def test_a_second_projection_changes_nothing_but_tags(tracking: Tracking, parent: Any) -> None:
    def everything() -> Any:
        runs = tracking.client.search_runs([parent.info.experiment_id])
        histories = {
            (run.info.run_id, metric): len(tracking.client.get_metric_history(run.info.run_id, metric))
            for run in runs
            for metric in run.data.metrics
        }
        times = {run.info.run_id: (run.info.start_time, run.info.end_time, run.data.params) for run in runs}
        inputs = {run.info.run_id: len(run.inputs.dataset_inputs) for run in runs}
        return histories, times, inputs, len(tracking.client.search_model_versions("name = 'tiny'"))

    before = everything()
    again = tracking.project("second", {**ORIGIN, "prefect.flow_run_id": "run-2"})
    assert again.details == _tracked(tracking)
    assert everything() == before
    assert tracking.client.get_run(parent.info.run_id).data.tags["retort.prefect.flow_run_id"] == "run-2"


def test_a_projection_that_was_killed_is_finished_by_the_next(tracking: Tracking, parent: Any) -> None:
    child = _children(tracking, parent)["final/student"]
    tracking.client.delete_run(child.info.run_id)
    tracking.client.update_run(parent.info.run_id, status="RUNNING")
    tracking.project("after-kill")
    assert tracking.client.get_run(parent.info.run_id).info.status == "FINISHED"
    assert len(_children(tracking, parent)) == 7


def test_is_current_until_the_run_or_the_database_is_gone(tracking: Tracking, tmp_path: Path) -> None:
    run_id = _tracked(tracking)["run_id"]
    assert is_current(tracking.uri, run_id)
    assert not is_current(f"sqlite:///{tmp_path}/none.db", run_id)
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "empty.db").write_bytes(b"")
    assert not is_current(f"sqlite:///{tmp_path}/empty.db", run_id)
    assert not is_current(tracking.uri, "0" * 32)


@pytest.fixture
def server() -> Iterator[str]:
    """A tracking server that knows one run, deleted or not."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.startswith("/api/2.0/mlflow/runs/get?run_id=known")
            stage = "deleted" if self.path.endswith("-deleted") else "active"
            self.send_response(200 if known else 404)
            self.end_headers()
            run, unknown = {"run": {"info": {"lifecycle_stage": stage}}}, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
            self.wfile.write(json.dumps(run if known else unknown).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.parametrize(("run_id", "current"), [("known", True), ("known-deleted", False), ("other", False)])
def test_is_current_on_a_server(server: str, run_id: str, current: bool) -> None:
    assert is_current(server, run_id) is current


def test_a_server_that_is_away_is_one_sentence_without_the_password() -> None:
    uri = "http://user:secret@127.0.0.1:9"
    with pytest.raises(TrackingUnavailable, match=r"tracking.uri = 'http://127.0.0.1:9' cannot be reached") as caught:
        check_reachable(uri)
    assert "secret" not in str(caught.value)
    with pytest.raises(TrackingUnavailable, match=r"tracking.uri = 'http://127.0.0.1:9' cannot be reached") as caught:
        is_current(uri, "known")
    assert "secret" not in str(caught.value)


def test_a_server_that_lets_nobody_in_is_told_before_a_run() -> None:
    class Closed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:right").decode()
            self.send_response(200 if allowed else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    with HTTPServer(("127.0.0.1", 0), Closed) as http, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{http.server_port}"
        patch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
        with pytest.raises(
            ConfigError, match=r"refuses its login .HTTP status 401.: set MLFLOW_TRACKING_USER"
        ) as caught:
            check_reachable(uri)
        assert "hunter22" not in str(caught.value)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
        check_reachable(uri)
        http.shutdown()


def test_a_file_that_is_no_database_is_one_sentence(tracking: Tracking, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but a text that is long enough to look at" * 20)
    step = track_step(tracking.run, f"sqlite:///{tmp_path}/mlflow.db", {})
    (tmp_path / "out").mkdir()
    with pytest.raises(TrackingUnavailable, match=r"tracking\.uri = 'sqlite:///.*mlflow\.db'"):
        step.run(StepContext(tracking.run.store, tmp_path / "out", ExecutionConfig(), 0, lambda *_: None))


class Nights:
    """Runs of one config, tracked in one real database; each night tells what the version's tags are after it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._uri = folder, f"sqlite:///{folder}/nights.db"
        self._tracked: dict[str, tuple[Run, Track]] = {}

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self._uri)

    def stands(self, name: str) -> bool:
        """Whether a later run would find the night tracked, and not track it again."""
        run, step = self._tracked[name]
        return step.is_projected(run.store)

    def night(self, name: str, seed: int, reigning: Any = None) -> tuple[Run, dict[str, str]]:
        settings = {"name": "nights", "method": {"stages": 1, "seed": seed}, "baselines": []}
        run = synthetic(self._folder, reigning=reigning, tracking={"uri": self._uri}, **settings)
        step = track_step(run, self._uri)
        step.refresh(run.store)
        (self._folder / name).mkdir()
        output = step.run(StepContext(run.store, self._folder / name, ExecutionConfig(), 0, lambda *_: None))
        run.store.publish(step, self._folder / name, output, 1.0, run.config.name)
        self._tracked[name], tracked = (run, step), output.details
        tags = self.client.get_model_version("nights", tracked["version"]).tags
        told = {tag.removeprefix("gate."): value for tag, value in tags.items() if tag.startswith("gate.")}
        metrics = self.client.get_run(tracked["run_id"]).data.metrics
        assert self.stands(name)
        return run, {**told, "version": tracked["version"], **{k: v for k, v in metrics.items() if "gate" in k}}


def test_each_night_tags_the_version_with_its_verdict(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    first, told = nights.night("first", seed=0)
    assert (told["version"], told["outcome"], told["accepted"]) == ("1", "first", "true")
    assert told["reasons"] == "No champion reigns yet, so there is none to beat."
    assert not told.keys() & {"champion", "gain", "low", "high", "p_value", "gate_gain"}
    assert (told["gate_accepted"], told["gate_latency_ms"]) == (1.0, 2.5)

    champion = crowned(first, "1")
    _, told = nights.night("second", seed=1, reigning=champion)
    assert (told["version"], told["outcome"], told["accepted"], told["champion"]) == ("2", "refused", "false", "1")
    assert float(told["gain"]) == pytest.approx(4 / 7 - 2 / 7, abs=1e-6) == told["gate_gain"]
    assert float(told["low"]) <= float(told["gain"]) <= float(told["high"])
    assert float(told["p_value"]) == 1.0 == told["gate_p_value"]
    assert told["reasons"].startswith(
        "The final student scores 57.1 slot F1 against the champion's 28.6 on 4 test rows"
    )

    # A night without news: the version of the first night gets tonight's verdict, and is the one that stands for it.
    _, told = nights.night("third", seed=0, reigning=champion)
    assert (told["version"], told["outcome"], told["champion"], told["gain"]) == ("1", "reigns", "1", "0.000000")
    assert str(nights.client.get_model_version_by_alias("nights", "challenger").version) == "1"

    # The same student as in the first night, but its version tells another verdict by now.
    assert not nights.stands("first")
    assert not nights.stands("second")  # whose student is no challenger any more

    # The champion was taken away: what it was compared with then goes too.
    _, told = nights.night("fourth", seed=0)
    assert (told["outcome"], "gain" in told, "champion" in told) == ("first", False, False)


def test_flattened_names_are_legal_and_values_text() -> None:
    nested = {"method": {"stages": 3}, "a/b": [1, 2], "none": None, "address": "${S3}/x"}
    assert flattened(nested) == {"method.stages": "3", "a_b": "[1, 2]", "none": "null", "address": "${S3}/x"}


def test_addresses_lose_their_secrets() -> None:
    assert without_secrets("https://user:pass@host:1/x") == "https://host:1/x"
    assert without_secrets("sqlite:////tmp/mlflow.db") == "sqlite:////tmp/mlflow.db"


def test_while_mlflow_does_not_answer_the_artifact_stays(tracking: Tracking, tmp_path: Path) -> None:
    class Proxy(BaseHTTPRequestHandler):
        answer = (0, b"")

        def do_GET(self) -> None:
            status, body = Proxy.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    store = tracking.run.store
    write_tracked(tmp_path, Tracked(experiment_id="1", run_id="known", url="", open_with="", model="m", version="1"))
    with HTTPServer(("127.0.0.1", 0), Proxy) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        step = track_step(tracking.run, f"http://127.0.0.1:{http.server_port}")
        store.publish(step, tmp_path, StepOutput(rows=1), 1.0, "run")
        for Proxy.answer in ((503, b"away"), (502, b"{}"), (404, b"no such backend"), (200, b"starting")):
            with pytest.raises(TrackingUnavailable, match=r"tracking\.uri = 'http://127"):
                step.refresh(store)
            assert store.find(step.artifact_kind, step.key)

        Proxy.answer = (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')
        step.refresh(store)
        assert not store.find(step.artifact_kind, step.key), "the run is gone"
        store.publish(step, tmp_path, StepOutput(rows=1), 1.0, "run")
        http.shutdown()
    with pytest.raises(TrackingUnavailable, match="cannot be reached"):
        step.refresh(store)
    assert store.find(step.artifact_kind, step.key)


def test_a_database_that_cannot_be_read_does_not_say_that_a_run_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("this is no database, but a text that is long enough to look at" * 20)
    with pytest.raises(TrackingUnavailable, match=r"tracking\.uri = 'sqlite:///.*mlflow\.db' cannot be read"):
        is_current(f"sqlite:///{file}", "known")
