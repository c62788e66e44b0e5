"""A pool with rows that cannot be used, as `doctor` and the checks before a run see it."""

import json
from typing import Any

import pytest

from retort.artifacts.examples import Examples
from retort.errors import DataError
from retort.recipes import load_config, recipe_of
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.steps import ingest
from retort.store.opening import open_store


def spoil(desk: Any, *numbers: int) -> str:
    """Empty the text of these rows of the pool."""
    rows = desk.read("unlabeled.jsonl")
    return str(
        desk.write("unlabeled.jsonl", [{**row, "text": ""} if at in numbers else row for at, row in enumerate(rows)])
    )


def checked(desk: Any, *overrides: str) -> Any:
    config = load_config(desk.save(), overrides)
    return recipe_of(config).check(config)


def detail_of(command: Any, desk: Any, what: str, *options: str) -> tuple[str, str]:
    _, out, _ = command("doctor", desk.save(), "--json", *options)
    return next((one["verdict"], one["detail"]) for one in json.loads(out)["findings"] if one["what"] == what)


def test_bad_rows_within_the_bound_are_set_aside(slots: Any, command: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = spoil(slots, 3, 7)
    config = checked(slots, "data.max_bad_share=0.05")
    told = "data.unlabeled: 2 of 40 rows (5.00%) cannot be used: empty-text 2"
    assert told in caplog.text
    pool = Examples.open(open_store(config.store), made_or_found(config, ingest(config, "unlabeled")))
    assert pool.manifest.rows == 38
    assert list(pool.set_aside_rows()) == [
        {
            "place": f"{path}, line {line}",
            "reason": "empty-text",
            "detail": f"{path}, line {line}: the text ('text') is empty",
            "raw": json.dumps({"id": f"u{line - 1}", "text": ""}),
            "example_id": f"u{line - 1}",
        }
        for line in (4, 8)
    ]
    found = detail_of(command, slots, "data.unlabeled", "--set", "data.max_bad_share=0.05")
    places = f"(empty-text: {path}, line 4, {path}, line 8)"
    assert found == ("note", f"38 rows; {told.removeprefix('data.unlabeled: ')} {places}")
    teacher = detail_of(command, slots, "teacher", "--set", "data.max_bad_share=0.05")
    assert teacher == ("ok", "38 of the pool's 38 rows have a recorded completion, 38 of them a label")


def test_the_bound_holds_for_rows_that_are_in_the_store_already(slots: Any) -> None:
    path = spoil(slots, 3, 7)
    checked(slots, "data.max_bad_share=0.05")
    with pytest.raises(DataError) as caught:
        checked(slots)
    assert str(caught.value) == (
        "data.unlabeled: 2 of 40 rows (5.00%) cannot be used: empty-text 2; data.max_bad_share = 0.01 allows no more "
        f"than 0; the first: {path}, line 4: the text ('text') is empty"
    )


def test_a_pool_without_one_good_row(slots: Any) -> None:
    path = spoil(slots, *range(40))
    with pytest.raises(DataError) as caught:
        checked(slots, "data.max_bad_share=1")
    assert str(caught.value) == (
        f"data.unlabeled = {path}: 40 of 40 rows (100.00%) cannot be used: empty-text 40; the first: {path}, line 1: "
        "the text ('text') is empty"
    )


def test_a_completion_of_a_row_whose_id_cannot_be_read(slots: Any) -> None:
    data = slots.file("unlabeled.jsonl").read_bytes()
    slots.write("unlabeled.jsonl", data.replace(b'{"id": "u3"', b"{", 1))
    checked(slots, "data.max_bad_share=0.05")
    rows = slots.read("completions.jsonl")
    slots.write("completions.jsonl", [*rows, {**rows[0], "custom_id": "u999"}, {**rows[0], "custom_id": "u998"}])
    with pytest.raises(DataError, match=r"completion\(s\) for ids that the pool does not have"):
        checked(slots, "data.max_bad_share=0.05")


@pytest.mark.parametrize("role", ["labeled", "test"])
def test_no_other_rows_are_set_aside(slots: Any, role: str) -> None:
    rows = slots.read(f"{role}.jsonl")
    path = slots.write(f"{role}.jsonl", [rows[0], {**rows[1], "text": ""}, *rows[2:]])
    with pytest.raises(DataError) as caught:
        checked(slots, "data.max_bad_share=1")
    assert str(caught.value) == f"{path}, line 2: the text ('text') is empty"


def with_pool(answers: Any, *bad: str) -> str:
    rows = "".join(json.dumps({"id": f"p{n}", "answer": f"pool {n}", "reference": "red"}) + "\n" for n in range(20))
    answers.values["data"]["unlabeled"] = str(answers.write("pool.jsonl", rows + "".join(bad)))
    answers.values["arms"] = ["hard", "with-pool"]
    return str(answers.file("pool.jsonl"))


def test_the_pool_of_answers(answers: Any, command: Any) -> None:
    path = with_pool(answers, '{"id": "x"}\n')
    with pytest.raises(DataError, match=r"data.unlabeled: 1 of 21 rows \(4.76%\) cannot be used: no-text 1; "):
        checked(answers)
    verdict, detail = detail_of(command, answers, "data.unlabeled", "--set", "data.max_bad_share=0.05")
    assert verdict == "note"
    assert detail == f"20 rows; 1 of 21 rows (4.76%) cannot be used: no-text 1 (no-text: {path}, line 21)"


def test_folds_of_the_training_rows_are_not_set_aside(answers: Any) -> None:
    rows = [{**row, "fold": at % 3} for at, row in enumerate(answers.read("train.jsonl"))]
    answers.values["data"] |= {"unlabeled": {"folds": [2]}, "max_bad_share": 1}
    path = answers.write("train.jsonl", [*rows, {"id": "x", "fold": 2}])
    with pytest.raises(DataError) as caught:
        checked(answers)
    assert str(caught.value).startswith(f"{path}, line 13: no column 'answer' for the text")


def test_probabilities_are_not_joined_by_an_id_of_two_rows(answers: Any) -> None:
    train, dev = answers.read("train.jsonl"), answers.read("dev.jsonl")
    answers.write("dev.jsonl", [{**row, "id": other["id"]} for row, other in zip(dev, train, strict=True)])
    with pytest.raises(DataError) as caught:
        checked(answers)
    assert str(caught.value) == (
        f"teacher.probabilities = '{answers.file('said.jsonl')}': the id 'train0' is that of two rows, of train "
        "('answer: train answer 0 / reference: red') and of dev ('answer: dev answer 0 / reference: red'), and the "
        "file does not say which of them it is for; give every row of train, dev and tests an id of its own"
    )
    answers.write("dev.jsonl", dev)
    with_pool(answers)
    pool = answers.read("pool.jsonl")
    answers.write("pool.jsonl", [{**pool[0], "id": "train0"}, *pool[1:]])
    with pytest.raises(DataError, match=r"of train .* and of unlabeled "):
        checked(answers)
    answers.values["arms"] = ["hard"]
    checked(answers)


def test_probabilities_with_a_class_twice(answers: Any) -> None:
    path = answers.write(
        "said.jsonl", '{"id": "train0", "probabilities": {"wrong": 0.5, "right": 0.5, "wrong": 0.5}}\n'
    )
    with pytest.raises(DataError) as caught:
        checked(answers)
    assert str(caught.value) == f"{path}, line 1: 'wrong' is written twice"
