"""Configs that somebody else wrote: nothing in them is run or takes the machine's memory, and no password is kept."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.config.loading import MOST_BYTES
from retort.errors import ConfigError
from retort.recipes import load_config

Command = Callable[..., tuple[int, str, str]]


def bomb(levels: int) -> str:
    """Ten to the power of `levels` values in a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.fixture
def little_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (bomb(30), "more than 100,000 values"),
        (f"{bomb(9)}\nproblem: {{kind: text, json_schema: {{enum: *a8}}}}", "more than 100,000 values"),
        ("a: &a {x: 1}\nb: &b {<<: [" + ", ".join(["*a"] * 60_000) + "]}", "more than 100,000 values"),
        ("name: &a [*a]", "a value contains itself"),
        ("problem: &a {kind: text, json_schema: *a}", "a value contains itself"),
        ("name: !!python/object/apply:os.system [touch mark]", "could not determine a constructor"),
        ("name: !!python/name:os.system", "could not determine a constructor"),
        ("name: !include /etc/passwd", "could not determine a constructor"),
        (f"name: 0x{'f' * 20_000}", "a number is too large"),
        (f"name: {'9' * 5000}", "not a YAML config"),
        ("name: " + "[" * 5000, "not a YAML config"),
        ("? [a]\n: b", "the name of a field is no text"),
        ("problem: {? {a: b} : c}", "the name of a field is no text"),
        (f"name: {'a' * MOST_BYTES}", "more than 4,194,304 bytes"),
        ("name: ../../etc/passwd", "name = '../../etc/passwd': must be 1 to 63 of a-z"),
        ("name: $(touch mark)", "name = '$(touch mark)': must be 1 to 63 of a-z"),
        ("name: ${HOME}", "name = '${HOME}': must be 1 to 63 of a-z"),
        ("name: \"{{ ''.__class__ }}\"", "must be 1 to 63 of a-z"),
    ],
    ids=lambda value: str(value)[:25],
)
@pytest.mark.usefixtures("little_memory")
def test_it_is_refused_in_a_sentence(tmp_path: Path, command: Command, text: str, sentence: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    code, _, err = command("doctor", path)
    assert code == 2
    assert sentence in err
    assert all(len(line) < 500 for line in err.splitlines())
    assert not (tmp_path / "mark").exists()
    assert not Path("mark").exists()


def test_a_device_is_not_read_to_its_end(command: Command) -> None:
    code, _, err = command("doctor", "/dev/zero")
    assert (code, err) == (2, f"error: /dev/zero: more than {MOST_BYTES:,} bytes, so it is no config\n")


def config(address: str, field: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "a",
        "problem": {"kind": "classification", "labels": ["a", "b"]},
        "data": {"labeled": "a.jsonl", "unlabeled": "b.jsonl", "test": "c.jsonl"},
        "teacher": {"kind": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m"},
        "student": {"kind": "sequence-classification", "model": "m"},
    }
    section, _, name = field.partition(".")
    return {**values, section: {**values.get(section, {}), name: address}}


FIELDS = ["tracking.uri", "teacher.url", "store.root", "store.endpoint_url", "data.labeled", "data.test"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "address",
    [
        "https://me:hunter22@host/v1",
        "http://hunter22@host",
        "postgresql://me:hunter22@host/db",
        "http://${ME}:hunter22@h",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path, field: str, address: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(address, field)))
    with pytest.raises(
        ConfigError, match=f"{field}( = .*)?: holds a user's password: put it into an environment"
    ) as caught:
        load_config(str(path))
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "address",
    [
        "https://${USER_AND_KEY}@host/v1",
        "http://me:${KEY}@host",
        "postgresql://me@host/db",
        "s3://b/x@y",
        "a:b@c/d",
        "${A}",
    ],
)
def test_an_address_without_one_is_taken(tmp_path: Path, field: str, address: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(address, field)))
    load_config(str(path))
