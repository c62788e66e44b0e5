"""The Prefect UI as a person uses it, in a real browser. `RETORT_SCREENSHOTS=docs/images make test-stack` renews the
pictures of the documentation.
"""

import copy
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paper_method import PAPER

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    assert program, "no Chromium here: apt-get install chromium"
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("RETORT_SCREENSHOTS")
    folder = Path(wanted) if wanted else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_run_from_the_form_with_a_wrong_value_and_an_override(
    stack: Any, page: Any, pictures: Path, tiny_slots: dict[str, Any], tmp_path: Path
) -> None:
    stack.ensure_worker("parents", "cpu")
    values = copy.deepcopy(tiny_slots) | {"name": "from-the-form", "store": {"root": str(tmp_path / "store")}}
    values["tracking"] = {"uri": stack.mlflow}
    deployment = stack.ask("deployments/name/mckd/mckd")["id"]
    page.goto(f"{stack.ui}/deployments/deployment/{deployment}/run")
    field(page, "config").locator("textarea").fill(stack.write_config(values))
    number = field(page, "stages").locator("input")
    number.fill("-2")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("less than the minimum").first.wait_for()
    page.screenshot(path=pictures / "prefect-wrong-value.png")
    before = len(stack.runs_of("mckd"))

    number.fill("1")
    field(page, "overrides").get_by_role("button", name="Add item").click()
    field(page, "overrides").locator("textarea").fill("student.training.epochs=20")
    page.screenshot(path=pictures / "prefect-form.png", full_page=True)
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="View run").first.wait_for()

    runs = stack.runs_of("mckd")
    assert len(runs) == before + 1, "the wrong value had started a run"
    run = stack.end_of(runs[0]["id"])
    assert run["state_type"] == "COMPLETED", stack.told(run)
    assert run["parameters"]["stages"] == 1
    assert run["parameters"]["overrides"] == ["student.training.epochs=20"]

    page.goto(f"{stack.ui}/runs/flow-run/{run['id']}")
    page.get_by_text("final/student").first.wait_for()
    page.screenshot(path=pictures / "prefect-run.png")
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("report", exact=True).first.click()
    page.get_by_text("slot F1").first.wait_for()
    page.screenshot(path=pictures / "prefect-report.png")


def test_a_failed_stage_is_retried_with_the_button(
    stack: Any, wait_until: Any, page: Any, pictures: Path, tiny_slots: dict[str, Any], tmp_path: Path
) -> None:
    stack.ensure_worker("parents", "cpu")
    stack.ensure_worker("student-a", "gpu-student")
    values = copy.deepcopy(tiny_slots) | {"name": "one-stage", "store": {"root": str(tmp_path / "store")}}
    values["method"] = {**PAPER, "stages": 1}
    values["student"]["training"]["epochs"] = 300
    values["execution"] = {"device": "cpu", "student_pool": "gpu-student"}
    parent = stack.start_run("mckd/mckd", config=stack.write_config(values))
    wait_until("the student trains", lambda: stack.at_work("student-a"))
    child = stack.children(parent)["final/student"]
    os.kill(int(stack.run(child["id"])["infrastructure_pid"].rpartition(":")[2]), signal.SIGKILL)
    assert stack.end_of(child["id"])["state_type"] == "CRASHED"
    assert stack.end_of(parent)["state_type"] == "FAILED"

    # Prefect 3.8.8: a worker that is given a run again while it still cleans up after it ends itself.
    wait_until("the worker has cleaned up", lambda: stack.is_idle("student-a"))
    time.sleep(2)
    page.goto(f"{stack.ui}/runs/flow-run/{child['id']}")
    page.get_by_role("button", name="Retry").click()
    page.screenshot(path=pictures / "prefect-retry.png")
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    wait_until("the child is on its way again", lambda: stack.run(child["id"])["state_type"] != "CRASHED")
    retried = stack.end_of(child["id"])
    assert retried["state_type"] == "COMPLETED", stack.told(retried)
    page.goto(f"{stack.ui}/runs/flow-run/{parent}")
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    wait_until("the parent is on its way again", lambda: stack.run(parent)["state_type"] != "FAILED")
    done = stack.end_of(parent)
    assert done["state_type"] == "COMPLETED", stack.told(done)
    assert {name: run["run_count"] for name, run in stack.children(parent).items()} == {
        "final/student": 2,
        "final/test": 1,
    }


def field(page: Any, name: str) -> Any:
    """The part of the form with this parameter."""
    label = page.locator(".schema-form-property__label", has_text=name)
    return page.locator(".schema-form-properties > .schema-form-property").filter(has=label)
