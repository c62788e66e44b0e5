"""A run whose pool has rows that cannot be used: it ends, with exact counts, and a mended row alone is asked about."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.bad_rows import WAYS, write_pool, write_rest
from retort.report.mckd.terminal import render_terminal
from retort.tracking.logging import set_aside_points

Build = Callable[..., dict[str, Any]]


def test_a_pool_broken_in_ten_ways_runs_to_its_end(
    tiny_encoder: Path, run_here: Callable[..., Any], manifests: Callable[[Path], dict[str, bytes]], tmp_path: Path
) -> None:
    expected = write_pool(tmp_path / "pool", 400, each=2)
    assert (expected.total(), WAYS) == (20, 10)
    values = {**write_rest(tmp_path, 400, tiny_encoder), "tracking": None}
    values["method"]["stages"] = 1
    summary = run_here(values).summary
    aside = summary.set_aside
    assert (aside.read, Counter(aside.reasons)) == (400, expected)
    assert summary.labels[0].rows == 380
    points = {point.metric: point.value for point in set_aside_points(summary)}
    assert points["rows_set_aside"] == 20
    assert points["rows_set_aside_not_utf8"] == 4
    assert len(points) == 1 + len(expected)
    told = "20 of 400 rows (5.00%) cannot be used: not-utf8 4, duplicate-id 2, "
    console = Console(width=400)
    with console.capture() as shown:
        console.print(render_terminal(summary, console.width))
    assert told in shown.get()
    made = json.loads(manifests(tmp_path / "store")["report"])
    (folder,) = (tmp_path / "store" / made["kind"]).glob(f"??/{made['key']}")
    for page in ("report.md", "report.html"):
        text = next(folder.rglob(page)).read_text()
        assert told in text
        assert "1.jsonl, line 2: the text (" in text
    assert "g\\xf6\\xf6d" in next(folder.rglob("report.md")).read_text()


def test_a_mended_row_alone_is_asked_about(
    asked_classes: dict[str, Any], endpoint_server: Any, configured: Build, run_here: Callable[..., Any], tmp_path: Path
) -> None:
    pool, line = Path(asked_classes["data"]["unlabeled"]).read_text(), '{"id": "new", "text": "the film anew was dull"}'
    path = tmp_path / "pool.jsonl"
    values = configured(asked_classes, tmp_path / "store", data__unlabeled=str(path))
    path.write_text(line[:20] + "\n" + pool)
    assert run_here(values).summary.set_aside.reasons == {"not-json": 1}
    endpoint_server.asked.clear()
    path.write_text(line + "\n" + pool)
    assert run_here(values).summary.set_aside is None
    assert list(endpoint_server.asked) == ["Input: the film anew was dull\nOutput:"]
