"""Whole runs on a real S3 server behind a proxy that spoils a share of the answers."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import s3fs

from chaos_runs import contents, impatient, run
from fault_proxy import Fault, FaultProxy

HEALING: list[Fault] = [
    FaultProxy.internal_error,
    FaultProxy.unavailable,
    FaultProxy.slow_down,
    FaultProxy.reset,
    FaultProxy.short,
    FaultProxy.empty,
    FaultProxy.absent,
    FaultProxy.stale,
]
SHARE = 0.04
STARTS = 6
"""A run may fail with a sentence, and is then started again; so often at most."""


@pytest.fixture
def proxy(s3_rclone: tuple[str, str]) -> Iterator[FaultProxy]:
    with FaultProxy(s3_rclone[0]) as proxy:
        yield proxy


@pytest.mark.slow
@pytest.mark.usefixtures("only_whole")
def test_a_run_on_a_spoiled_bucket_ends_right(
    chaos: Any,
    proxy: FaultProxy,
    s3_rclone: tuple[str, str],
    figures: Counter[str],
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, faults in enumerate([HEALING, *([fault] for fault in HEALING), [FaultProxy.hang]]):
        prefix = f"{s3_rclone[1]}/{uuid4().hex}"
        values = chaos.config(f"s3://{prefix}", store={"endpoint_url": proxy.url})
        before = chaos.server.answered.total()
        proxy.fail_often(SHARE if faults != [FaultProxy.hang] else SHARE / 4, faults, seed=number)
        for _ in range(STARTS):
            ended = run(values, spoil=impatient)
            if ended.exit_code == 0:
                break
            figures["runs on a spoiled bucket that ended with one sentence, and were started again"] += 1
            assert ended.exit_code in (1, 2), ended
            assert len(ended.told.splitlines()) == 1, ended
        proxy.heal()
        assert ended.exit_code == 0, ended
        figures["runs on a spoiled bucket that ended right"] += 1
        figures["completions asked again on a spoiled bucket"] += chaos.server.answered.total() - before - 64
        local = tmp_path / f"store-{number}"
        s3fs.S3FileSystem(endpoint_url=s3_rclone[0], use_listings_cache=False).get(prefix, str(local), recursive=True)
        assert contents(local) == chaos.undisturbed
    for name, count in proxy.faults.items():
        figures[f"answers spoiled: {name}"] += count
