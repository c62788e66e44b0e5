"""`retort plan`: every stage with HIT or MISS and why, and nothing touched. Nothing is trained for it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.artifacts.reports import Tracked
from retort.commands.plan import Plan, differences, plan, repair
from retort.recipes import load_config, recipe_of
from retort.recipes.execute import make
from retort.recipes.walk import walk
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.store import StepOutput
from retort.store.opening import open_store

STUDENTS_AND_AFTER = (
    "train-student",
    "cross-label",
    "evaluate",
    "merge-labels",
    "select",
    "hygiene",
    "gate",
    "report",
    "track",
)

EVERY_STAGE = [
    "ingest/labeled",
    "ingest/unlabeled",
    "ingest/test",
    "stage0/pseudolabels",
    "stage1/student-0",
    "stage1/student-1",
    "stage1/judge-0",
    "stage1/judge-1",
    "stage1/test-0",
    "stage1/test-1",
    "stage1/cross-labels-0",
    "stage1/cross-labels-1",
    "stage1/pseudolabels",
    "stage2/student-0",
    "stage2/student-1",
    "stage2/judge-0",
    "stage2/judge-1",
    "stage2/test-0",
    "stage2/test-1",
    "stage2/selection",
    "final/student",
    "final/test",
    "stage0/label-quality",
    "stage1/label-quality",
    "hygiene",
    "report",
]


def planned(desk: Any, *overrides: str) -> Plan:
    return asyncio.run(plan(load_config(desk.save(), overrides)))


def misses(made: Plan) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.changed for stage in made.stages if stage.status == "MISS"}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*"))
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def publish_all(desk: Any) -> None:
    """As after a run: ingest and the teacher really made, all else as a file of one line."""
    config = load_config(desk.save())
    recipe = recipe_of(config)
    config = recipe.check(config)
    store = open_store(config.store)

    def look(step: Step) -> ArtifactRef:
        found = store.find(step.artifact_kind, step.key)
        if found:
            store.point(config.name, step)
            return store.ref(found)
        if step.kind not in STUDENTS_AND_AFTER:
            return make(config, step, 0, lambda *_: None)
        folder: Path = desk.folder / "dummy"
        folder.mkdir(exist_ok=True)
        (folder / "made.txt").write_text(step.name)
        return store.publish(step, folder, StepOutput(rows=1), 0.1, config.name)

    asyncio.run(walk(recipe, config, look))


@pytest.fixture
def done(slots: Any) -> Any:
    publish_all(slots)
    return slots


def test_before_the_first_run_everything_is_new(slots: Any) -> None:
    stages = planned(slots).stages
    assert [stage.name for stage in stages] == EVERY_STAGE
    assert {(stage.status, stage.changed) for stage in stages} == {("MISS", ("new",))}
    assert not slots.store.exists()


def test_fine_tuning_is_planned_as_if_it_were_accepted(slots: Any) -> None:
    judged = planned(slots, "method.fine_tuning.kind=better").stages
    end = [
        *("fine-tuning/judge-0", "fine-tuning/judge-1", "fine-tuning/judge", "fine-tuning/selection"),
        *(f"fine-tuning/{what}-{index}" for what in ("student", "test", "cross-labels") for index in (0, 1)),
        *("fine-tuning/pseudolabels", "fine-tuning/label-quality", "final/before-fine-tuning"),
    ]
    place = EVERY_STAGE.index("final/student")
    assert [stage.name for stage in judged] == [*EVERY_STAGE[:place], *end, *EVERY_STAGE[place:]]
    always = [stage.name for stage in planned(slots, "method.fine_tuning.kind=always").stages]
    assert always == [*EVERY_STAGE[:place], *end[4:], *EVERY_STAGE[place:]]


def test_fine_tuning_after_a_run_keeps_all_but_the_final_student(done: Any) -> None:
    missed = misses(planned(done, "method.fine_tuning.kind=better", "method.fine_tuning.epochs=3"))
    assert not {name for name in missed if name.startswith(("ingest", "stage"))}
    assert missed["final/student"][0] == "inputs.labels"
    publish = misses(planned(done, "method.fine_tuning.kind=better", "method.fine_tuning.folds=3"))
    assert publish["fine-tuning/judge"] == ("new",)


def test_tracking_is_the_last_stage(slots: Any) -> None:
    slots.values["tracking"] = {"uri": f"sqlite:///{slots.folder}/mlflow.db"}
    assert [stage.name for stage in planned(slots).stages] == [*EVERY_STAGE[:-1], "gate", "report", "tracking"]
    assert not slots.file("mlflow.db").exists()


def test_after_a_run_everything_is_there(done: Any) -> None:
    assert misses(planned(done)) == {}


def test_plan_writes_nothing(done: Any) -> None:
    before = files(done.folder)
    planned(done)
    planned(done, "student.training.epochs=8")
    saved = str(done.path)
    after = files(done.folder)
    assert {path for path in before if path != saved} == {path for path in after if path != saved}
    assert all(after[path] == before[path] for path in before if path not in (saved, str(done.folder)))


def test_field_of_the_training_misses_students_and_what_follows(done: Any) -> None:
    missed = misses(planned(done, "student.training.epochs=8"))
    untouched = {"ingest/labeled", "ingest/unlabeled", "ingest/test", "stage0/pseudolabels", "stage0/label-quality"}
    assert missed.keys() == set(EVERY_STAGE) - untouched
    assert missed["stage1/student-0"] == ("training.epochs: 4.0 -> 8.0",)
    assert missed["final/student"] == ("inputs.labels", "training.epochs: 4.0 -> 8.0")
    assert missed["stage1/test-0"] == ("inputs.student",)


def test_one_more_stage_keeps_the_others(done: Any) -> None:
    missed = misses(planned(done, "method.stages=3"))
    kept = {name for name in EVERY_STAGE if name.startswith(("ingest", "stage0", "stage1", "stage2"))}
    assert missed.keys() >= {"stage2/cross-labels-0", "stage3/student-0", "final/student", "report"}
    assert not missed.keys() & kept
    assert missed["stage3/student-0"] == ("new",)


def test_changed_file_is_named_where_it_is_read(done: Any) -> None:
    done.write("test.jsonl", [{**row, "id": f"new-{row['id']}"} for row in done.read("test.jsonl")])
    missed = misses(planned(done))
    assert missed["ingest/test"] == ("content",)
    assert missed["final/test"] == ("inputs.gold",)
    scored = {name for name in EVERY_STAGE if "/test" in name}
    assert missed.keys() == {*scored, "hygiene", "report"}


def test_changed_completions_are_named(done: Any) -> None:
    rows = done.read("completions.jsonl")
    done.write("completions.jsonl", rows[:-1])
    missed = misses(planned(done))
    assert missed["stage0/pseudolabels"] == ("completions",)
    assert missed["stage1/student-0"] == ("inputs.labels",)
    assert not any(name.startswith("ingest") for name in missed)


@pytest.mark.parametrize(
    "override",
    [
        "execution.parallel_students=1",
        "execution.device=cpu",
        "execution.stage_timeout_seconds=60",
        "teacher.min_success_ratio=0.1",
    ],
)
def test_knob_changes_no_stage_that_costs_anything(done: Any, override: str) -> None:
    assert misses(planned(done, override)).keys() <= {"report"}  # which prints the config


def test_execution_changes_nothing_at_all(done: Any) -> None:
    assert misses(planned(done, "execution.parallel_students=1", "execution.device=cpu")) == {}


def test_same_data_at_another_place(done: Any) -> None:
    moved = done.file("elsewhere.jsonl")
    moved.write_bytes(done.file("unlabeled.jsonl").read_bytes())
    assert misses(planned(done, f"data.unlabeled={moved}")).keys() == {"report"}


def test_finetuned_teacher(slots: Any) -> None:
    slots.values["teacher"] = {"kind": "finetuned"}
    made = planned(slots)
    assert [stage.name for stage in made.stages][3:6] == ["teacher/student", "stage0/pseudolabels", "teacher/test"]
    assert made.teacher == {"kind": "finetuned", "requests": 0, "money": 0.0}


def test_baselines_share_with_the_main_run(slots: Any) -> None:
    slots.values["baselines"] = ["vanilla-kd", "supervised"]
    more = [stage.name for stage in planned(slots).stages if stage.name not in EVERY_STAGE]
    assert more
    assert all(name.startswith(("baseline", "vanilla-kd", "supervised")) for name in more)


def test_tracking_run_that_is_gone(slots: Any) -> None:
    slots.values["tracking"] = {"uri": f"sqlite:///{slots.folder}/mlflow.db"}
    publish_all(slots)
    manifest = open_store(load_config(slots.save()).store).latest("desk", "tracking")
    assert manifest is not None
    tracked = Tracked(experiment_id="1", run_id="gone", url="", open_with="", model="desk", version="1")
    for path in slots.store.rglob(f"tracking/*/{manifest.key}/manifest.json"):
        told = json.loads(path.read_text())
        told["files"] = []
        path.write_text(json.dumps(told))
        (path.parent / manifest.folder / "tracking.json").write_text(tracked.model_dump_json())
    assert misses(planned(slots)) == {"tracking": ("the tracking run is gone",)}


def test_plan_of_bad_data(slots: Any, command: Any) -> None:
    slots.file("unlabeled.jsonl").unlink()
    code, out, err = command("plan", slots.save())
    assert (code, out) == (2, "")
    assert err == f"error: {slots.file('unlabeled.jsonl')}: there is no such file or folder\n"


def test_json_has_the_promised_shape(done: Any, command: Any) -> None:
    code, out, err = command("plan", done.save(), "--json", "--set", "student.training.epochs=8")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told.keys() == {"stages", "teacher"}
    assert told["stages"][0] == {"name": "ingest/labeled", "status": "HIT", "changed": []}
    assert told["stages"][4] == {
        "name": "stage1/student-0",
        "status": "MISS",
        "changed": ["training.epochs: 4.0 -> 8.0"],
    }
    assert told["teacher"] == {
        "kind": "recorded",
        "requests": 0,
        "money": 0.0,
        "completions": str(done.file("completions.jsonl")),
    }


def test_text_for_people(done: Any, command: Any) -> None:
    code, out, err = command("plan", done.save(), "--set", "student.training.epochs=8")
    assert (code, err) == (0, "")
    said = [line.split(maxsplit=2) for line in out.splitlines()]
    assert said[0] == ["HIT", "ingest/labeled"]
    assert said[4] == ["MISS", "stage1/student-0", "training.epochs: 4.0 -> 8.0"]
    assert out.splitlines()[-2:] == ["21 of 26 stages would be made.", "teacher (recorded): 0 requests, 0.00 to pay"]


def damage(desk: Any, kind: str, spoil: Callable[[Path], object]) -> str:
    """Spoil a file of the last artifact of a kind; its stage's name."""
    manifest_path = sorted((desk.store / kind).rglob("manifest.json"))[0]
    told = json.loads(manifest_path.read_text())
    spoil(manifest_path.parent / told["folder"] / told["files"][0]["path"])
    return str(told["name"])


@pytest.mark.parametrize("kind", ["examples", "pseudolabels", "students", "reports"])
@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_bytes(b"x"), lambda path: path.write_bytes(b"")]
)
def test_repair_forgets_only_what_is_damaged(done: Any, kind: str, spoil: Callable[[Path], object]) -> None:
    name = damage(done, kind, spoil)
    config = load_config(done.save())
    (told,) = asyncio.run(repair(config))
    assert told.startswith(f"{name}: artifact ")
    assert ": file '" in told
    assert misses(planned(done)).keys() == {name}
    assert asyncio.run(repair(config)) == []


def test_repair_forgets_a_manifest_that_cannot_be_read(done: Any) -> None:
    path = sorted((done.store / "students").rglob("manifest.json"))[0]
    name = json.loads(path.read_text())["name"]
    path.write_text("{")
    (told,) = asyncio.run(repair(load_config(done.save())))
    assert told.startswith(f"{name}: {path}")
    assert misses(planned(done)).keys() == {name}


def test_repair_of_a_sound_store(done: Any) -> None:
    before = files(done.store)
    assert asyncio.run(repair(load_config(done.save()))) == []
    assert files(done.store) == before


def test_differences() -> None:
    before = {"version": 1, "params": {"a": {"b": 1}, "content": "x" * 64, "gone": "y" * 50}, "inputs": {"pool": ["k"]}}
    after = {"version": 2, "params": {"a": {"b": None}, "content": "z" * 64}, "inputs": {"pool": ["l"]}}
    assert differences(before, after) == (
        "inputs.pool",
        "a.b: 1 -> None",
        "content",
        f"gone: {'y' * 37}... -> None",
        "version: 1 -> 2",
    )
    assert differences(before, before) == ()
