"""Nights, one after the other: what is new is labeled, the gate judges, and the champion stands in the registry."""

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from retort.config import StoreConfig
from retort.store.opening import open_store
from retort.tracking.registry import reigning_version

Build = Callable[..., dict[str, Any]]
POOL = 60
BAD = {"epochs": 1, "learning_rate": 1e-6}


@pytest.mark.slow
def test_nights_with_new_rows_a_refusal_a_promotion_and_nothing_new(
    asked_classes: dict[str, Any],
    endpoint_server: Any,
    configured: Build,
    night: Callable[..., Any],
    artifact: Callable[[str, str], str],
    tmp_path: Path,
) -> None:
    pool = tmp_path / "pool" / "day1.jsonl"
    pool.parent.mkdir()
    pool.write_text(Path(asked_classes["data"]["unlabeled"]).read_text())
    tracking = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    fields = {f"student__training__{name}": value for name, value in BAD.items()}
    values = configured(
        asked_classes, tmp_path / "store", name="nights", tracking=tracking, method__stages=1,
        data__unlabeled=str(pool.parent), **fields,
    )  # fmt: skip
    path = tmp_path / "nights.yaml"
    path.write_text(yaml.safe_dump(values))

    # The first night: everything is new, and nobody reigns.
    first = night(path)
    assert first.changes == {"unlabeled": (POOL, 0, 0, 0)}
    assert first.promotion.outcome == "promoted"
    reigning = reigning_version(tracking["uri"], "nights")
    assert reigning.version == "1"
    client = MlflowClient(tracking["uri"])
    tracked = client.get_run(reigning.run_id)
    rows = open_store(StoreConfig(root=str(tmp_path / "store"))).latest("nights", "ingest/unlabeled")
    assert rows is not None
    assert tracked.info.start_time / 1000 <= datetime.fromisoformat(rows.created_at).timestamp()
    assert client.get_model_version("nights", "1").description == tracked.data.tags["retort.reason"]

    # 5 % new rows: these alone are asked about, and a student that is no better does not reign.
    endpoint_server.asked.clear()
    texts = [f"the film number{number} was {word}" for number, word in enumerate(("good", "dull", "great"))]
    rows = [{"id": f"new-{number}", "text": text} for number, text in enumerate(texts)]
    (pool.parent / "day2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = night(path)
    assert second.changes == {"unlabeled": (3, 0, 0, POOL)}
    assert sorted(endpoint_server.asked) == sorted(f"Input: {text}\nOutput:" for text in texts)
    assert endpoint_server.asked.total() == 3
    assert second.promotion.outcome == "refused"
    assert reigning_version(tracking["uri"], "nights").version == "1"
    told = artifact(second.finished.run_id, "night")
    assert "3 new rows, 0 changed, 0 gone, 60 as before" in told
    assert "did not pass the gate" in told

    # Other settings: no row is asked about, and the better student reigns.
    endpoint_server.asked.clear()
    better = ["student.training.epochs=30", "student.training.learning_rate=0.003"]
    third = night(path, overrides=better)
    assert endpoint_server.asked.total() == 0
    assert third.promotion.outcome == "promoted", third.promotion.text
    assert third.promotion.replaced == "1"
    champion = reigning_version(tracking["uri"], "nights")
    assert champion.tags["gate.outcome"] == "passed"
    assert float(champion.tags["gate.gain"]) > 0

    # Nothing new, twice: the first of these still has to say that the student reigns now.
    night(path, overrides=better)
    started = time.monotonic()
    last = night(path, overrides=better)
    assert last.changes == {"unlabeled": (0, 0, 0, POOL + 3)}
    assert {stage.status for stage in last.finished.stages} == {"HIT"}
    assert last.promotion.outcome == "reigns"
    assert reigning_version(tracking["uri"], "nights").version == champion.version
    assert "nothing new" in artifact(last.finished.run_id, "night")
    assert time.monotonic() - started < 300
