"""The Dockerfile, read stage by stage: pinned, non-root, healthy, and copying only files that exist."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TARGETS = {"orchestrator": "cpu", "student": "gpu-student", "teacher": "gpu-teacher"}
"""The work pool that each image's worker serves."""


@dataclass
class Stage:
    name: str
    origin: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(instruction, the rest of the line)"""


def stages() -> dict[str, Stage]:
    """The stages by name, in order. Continued lines are joined, comments dropped."""
    source = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            origin, _, name = rest.split()
            found[name] = Stage(name, origin.partition("@")[0])  # without a digest
        else:
            list(found.values())[-1].steps.append((instruction, rest))
    return found


STAGES = stages()


def last(stage: Stage, instruction: str) -> str | None:
    """The value of an instruction in the image, which may be inherited from earlier stages."""
    for step, rest in reversed(stage.steps):
        if step == instruction:
            return rest
    return last(STAGES[stage.origin], instruction) if stage.origin in STAGES else None


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_it_starts_from_a_pinned_image(stage: Stage) -> None:
    earlier = list(STAGES)[: list(STAGES).index(stage.name)]
    assert stage.origin in (*earlier, "scratch") or re.search(r":v?\d+\.\d+\.\d+[\w.-]*$", stage.origin)


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_not_root_and_says_how_it_is(target: str) -> None:
    user = last(STAGES[target], "USER")
    assert user is not None
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    health = last(STAGES[target], "HEALTHCHECK")
    assert health is not None
    assert "http://127.0.0.1:8080/health" in health


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_the_worker_of_its_pool(target: str) -> None:
    command = json.loads(last(STAGES[target], "CMD") or "")
    assert command[:5] == ["prefect", "worker", "start", "--pool", TARGETS[target]]
    assert "--with-healthcheck" in command  # otherwise nothing answers on port 8080


def test_no_image_lacks_a_pool_and_no_pool_an_image() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert {deployment["work_pool"]["name"] for deployment in deployments} == set(TARGETS.values())


def sources() -> list[str]:
    """The paths copied from the checkout."""
    copies = [rest for stage in STAGES.values() for step, rest in stage.steps if step in ("COPY", "ADD")]
    return sorted({source for rest in copies if "--from" not in rest for source in rest.split()[:-1]})


@pytest.mark.parametrize("source", sources())
def test_what_is_copied_is_there_and_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    ignore = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert f"!{source}" in ignore


def test_nothing_is_sent_to_the_builder_but_what_is_copied() -> None:
    ignore = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sources()


def test_every_copy_between_stages_names_one() -> None:
    names = re.findall(r"--from=(\S+)", "\n".join(rest for stage in STAGES.values() for _, rest in stage.steps))
    assert names
    assert set(names) <= set(STAGES)


def installs(stage: Stage) -> list[str]:
    """The arguments of each `uv pip install`."""
    runs = [rest for step, rest in stage.steps if step == "RUN" and "uv pip install" in rest]
    return [part.split("uv pip install")[1].strip() for run in runs for part in run.split("&&") if "uv pip" in part]


INSTALLING = {stage.name: installs(stage) for stage in STAGES.values() if installs(stage)}


def test_packages_are_installed_by_hash() -> None:
    """But for torch's build for the CPU, which is none of PyPI's files, and Retort itself."""
    assert set(INSTALLING) == {"environment-cpu", "environment-cuda", "environment-teacher"}
    for name, (packages, *others) in INSTALLING.items():
        lock = "cuda" if name == "environment-cuda" else "cpu"
        assert packages == f"--require-hashes --no-deps --requirements {lock}.lock"
        torch = [f"--torch-backend cpu --no-deps torch=={pins('requirements.lock')['torch']}"] if lock == "cpu" else []
        assert others == [*torch, "--no-build-isolation --no-deps --editable ."]


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", ["cpu", "cuda"])
def test_every_package_of_a_lock_has_hashes_and_the_version_that_is_tested(lock: str) -> None:
    text = (ROOT / "docker" / f"{lock}.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 150
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    tested, locked = pins("requirements.lock"), pins(f"docker/{lock}.lock")
    assert {name: version for name, version in locked.items() if tested.get(name, version) != version} == {}
    for name in (
        "hatchling",
        "prefect",
        "mlflow",
        *(("boto3", "psycopg2-binary", "flask-wtf") if lock == "cpu" else ()),
    ):
        assert name in locked
    cuda = {"torch", "triton", "nvidia-cublas", "nvidia-nccl-cu13"}
    assert cuda & set(locked) == (cuda if lock == "cuda" else set())


def test_versions_agree_with_the_locks_and_the_makefile() -> None:
    gpu = (ROOT / "requirements-teacher-gpu.lock").read_text(encoding="utf-8")
    vllm = re.search(r"^vllm==(\S+)$", gpu, re.MULTILINE)
    uv = re.search(r"uv==([\d.]+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert vllm is not None
    assert STAGES["teacher"].origin == f"vllm/vllm-openai:v{vllm[1]}"
    assert STAGES["environment-teacher"].origin == STAGES["teacher"].origin
    assert uv is not None
    assert STAGES["uv"].origin.endswith(f":{uv[1]}")


def test_the_teacher_finds_its_interpreter_where_configs_look_by_default() -> None:
    from retort.config import VllmConfig

    place = VllmConfig.model_fields["python"].default
    runs = [rest for step, rest in STAGES["teacher"].steps if step == "RUN"]
    assert any(f"/opt/retort/{place}" in run for run in runs)


def test_no_secret_is_baked_in() -> None:
    settings = [rest for stage in STAGES.values() for step, rest in stage.steps if step in ("ENV", "ARG")]
    assert not re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH_STRING", "\n".join(settings))
