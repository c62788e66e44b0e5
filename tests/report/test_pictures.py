"""The pictures, and the facts that they are drawn from."""

import re
from pathlib import Path

import pytest

from retort.artifacts.reports import Picture
from retort.problems.classification import Classification
from retort.records.base import Score
from retort.report.base import as_key
from retort.report.course import ArmCost, Curve, Made, Span, arm_costs, spans
from retort.report.mistakes import HEAT_CLASSES, NOTHING, OTHERS, heat_map
from retort.report.pictures.canvas import drawn, named
from retort.report.pictures.course import draw_costs, draw_losses, draw_timeline
from retort.report.pictures.quality import draw_errors, draw_reliability, draw_slices
from retort.report.quality import Confusion, ErrorTable, NameErrors, Slice, reliability
from retort.report.slices import worst_slices
from retort.store import Manifest

HOSTILE = '<script>alert("&")</script> $x$ \x1b[31m'


def texts(path: Path) -> list[str]:
    """What is written in a picture."""
    return [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text()) if text.strip()]


def span(what: str, start: int, seconds: float, device: str = "CPU", host: str = "node") -> Span:
    moment = f"2026-11-29T{start // 3600:02}:{start % 3600 // 60:02}:{start % 60:02}+00:00"
    return Span(group="stage 1", what=what, host=host, device=device, started_at=moment, seconds=seconds)


def test_the_time_line_has_a_line_for_each_kind_of_work_and_a_color_for_each_device(tmp_path: Path) -> None:
    made = [span("student", 0, 60, "GPU 0"), span("student", 5, 60, "GPU 1"), span("merge", 70, 10)]
    (picture,) = draw_timeline(made, tmp_path)
    shown = texts(tmp_path / "timeline.svg")
    assert {"Time line of the run", "stage 1: student", "stage 1: merge", "GPU 0", "GPU 1", "CPU"} <= set(shown)
    assert "seconds since 29 Nov 2026 00:00 UTC" in shown
    assert picture.says == (
        "3 artifacts took 2 min 10 s of compute in 1 min 20 s of work, so 1.6 were made at once on average. The "
        "longest was stage 1: student, 1 min 0 s."
    )


def test_idle_time_is_cut_out_and_told(tmp_path: Path) -> None:
    nights = [span("student", hour * 3600, 60, host=f"node-{hour}") for hour in range(6)]
    (picture,) = draw_timeline(nights, tmp_path)
    shown = texts(tmp_path / "timeline.svg")
    assert "minutes since 29 Nov 2026 02:00 UTC, idle time cut out" in shown
    assert {"29 Nov 03:00", "29 Nov 05:00", "node-2 CPU"} <= set(shown)
    assert picture.says.endswith("2 older artifacts are not drawn.")
    assert "4 min 0 s of work on 4 machines in 4 stretches" in picture.says


def test_where_and_when_is_read_from_the_manifest_and_else_from_its_end() -> None:
    def manifest(**details: object) -> Manifest:
        return Manifest(
            kind="students", key="k", name="final/student", fingerprint={}, folder="", files=(), versions={},
            seconds=30.0, created_at="2026-11-29T00:01:00.000+00:00", details=details,
        )  # fmt: skip

    known = manifest(host="node-1", gpu="3", started_at="2026-11-29T00:00:29.000+00:00")
    before = [manifest(), manifest(device="cuda", device_name="H200"), manifest(device="cpu")]
    told = spans([Made("final student", one, "student") for one in (known, *before)])
    assert [(one.host, one.device, one.started_at[17:19]) for one in told] == [
        ("node-1", "GPU 3", "29"),
        ("", "", "30"),
        ("", "H200", "30"),
        ("", "CPU", "30"),
    ]


def test_an_arm_costs_all_that_it_rests_on_and_only_the_rest_is_its_own() -> None:
    def part(key: str, seconds: float, *inputs: str, money: float = 0.0) -> Made:
        manifest = Manifest(
            kind="students", key=key, name=key, fingerprint={"inputs": {"labels": list(inputs)}}, folder="", files=(),
            versions={}, seconds=seconds, created_at="", details={"spent": {"money": money}},
        )  # fmt: skip
        return Made("any", manifest, key)

    from retort.records.base import ArtifactRef

    parts = [part("data", 1), part("labels", 10, "data", money=2.5), part("a", 100, "labels"), part("b", 1000, "data")]
    refs = {name: [ArtifactRef(uri="", kind="students", key=key)] for name, key in (("A", "a"), ("B", "b"))}
    assert arm_costs(parts, refs) == (
        ArmCost(name="A", seconds=111, own_seconds=111, money=2.5),
        ArmCost(name="B", seconds=1001, own_seconds=1000, money=0.0),
    )


def test_money_has_a_picture_only_where_some_was_paid(tmp_path: Path) -> None:
    free = [
        ArmCost(name="A", seconds=111, own_seconds=111, money=0),
        ArmCost(name="B", seconds=9, own_seconds=9, money=0),
    ]
    assert [picture.key for picture in draw_costs(free, tmp_path)] == ["costs"]
    paid = [ArmCost(name="teacher", seconds=111, own_seconds=111, money=2.5), free[1]]
    pictures = draw_costs(paid, tmp_path)
    assert pictures[1].says.endswith("of 2.5 at most. Nothing is paid for B.")
    assert {"2.5", "paid to teachers, in the currency of teacher.prices"} <= set(texts(tmp_path / "money.svg"))


def test_losses_have_units_and_held_out_rows_are_told(tmp_path: Path) -> None:
    curve = Curve(group="final student", name="final/student", steps=(1, 2), losses=(2.0, 0.5))
    held = curve.model_copy(update={"held_out_steps": (2,), "held_out_losses": (0.7,)})
    assert "held out" not in draw_losses([curve], tmp_path)[0].says
    says = draw_losses([held], tmp_path)[0].says
    assert says.startswith("final/student went from 2 to 0.5 in 2 steps. Dotted: the loss on rows that were held out")
    assert {"optimizer steps", "loss per unit, nats", "final student"} <= set(texts(tmp_path / "losses.svg"))


def test_losses_that_fall_far_have_numbers_beside_them(tmp_path: Path) -> None:
    draw_losses([Curve(group="stage 1", name="student", steps=(1, 2, 3), losses=(2.0, 0.2, 0.007))], tmp_path)
    shown = texts(tmp_path / "losses.svg")
    assert {"0.01", "0.03", "0.1", "0.3", "1"} <= set(shown)
    assert not [text for text in shown if "$" in text]


def test_reliability_counts_as_the_calibration_error_does() -> None:
    import numpy as np

    from retort.metrics.calibration import expected_calibration_error

    chances = np.random.default_rng(0).dirichlet([1, 1, 1], size=200)
    gold = np.random.default_rng(1).integers(0, 3, size=200)
    right = (chances.argmax(axis=1) == gold).tolist()
    found = reliability("student", [*chances.max(axis=1).tolist(), None], [*right, True])
    assert found is not None
    assert found.error == pytest.approx(expected_calibration_error(chances, gold))
    assert sum(one.rows for one in found.bins) == 200
    assert reliability("constant", [1.0, 1.0], [True, False]) is None


def test_names_from_the_data_cannot_break_a_page_or_a_picture(tmp_path: Path) -> None:
    names = (HOSTILE, "中文类别")
    table = ErrorTable(
        title="Classes",
        names=tuple(NameErrors(name=name, precision=0.5, recall=0.5, f1=0.5, support=2, predicted=2) for name in names),
        confusions=(Confusion(gold=names[0], predicted=names[1], count=1, example=""),),
        heat=heat_map({(names[0], names[1]): 1, (names[1], names[1]): 2}, names),
    )
    assert [picture.key for picture in draw_errors([table], tmp_path)] == ["confusions", "by-name"]
    for key in ("confusions", "by-name"):
        drawn_text = (tmp_path / f"{key}.svg").read_text()
        assert "<script" not in drawn_text
        assert "\x1b" not in drawn_text
        assert "中文类别" in drawn_text
    assert "&lt;script&gt;" in (tmp_path / "by-name.svg").read_text()


def test_a_heat_map_shows_the_most_mistaken_and_puts_the_others_together() -> None:
    names = [f"n{number:02}" for number in range(30)]
    cells = {(name, name): 5 for name in names} | {("n29", "n28"): 7, ("n28", NOTHING): 1, ("n00", "n01"): 1}
    heat = heat_map(cells, names)
    assert heat is not None
    assert len(heat.gold) == HEAT_CLASSES + 1
    assert {"n00", "n01", "n28", "n29"} <= set(heat.gold)
    assert (heat.gold[-1], heat.predicted[-2:]) == (OTHERS, (OTHERS, NOTHING))
    assert sum(map(sum, heat.counts)) == sum(cells.values())
    assert heat_map({("a", "a"): 1}, ["a"]) is None


def test_the_worst_slices_come_first_and_small_ones_are_left_out() -> None:
    rows = [
        {"example_id": str(number), "text": "word " * (1 + number % 4), "gold": "ab"[number % 2], "predicted": "a"}
        for number in range(40)
    ]
    groups = {str(number): "small" if number < 9 else "large" for number in range(40)}
    found = worst_slices(Classification(["a", "b"]), "accuracy", rows, groups, by_class=True, resamples=100, seed=0)
    assert (found[0].name, found[0].score.value, found[0].score.n) == ("gold b", 0.0, 20)
    names = {one.name for one in found}
    assert names == {"gold a", "gold b", "group large", "1 word", "2 words", "3 words", "4 words"}
    errors = worst_slices(Classification(["a", "b"]), "accuracy", [], {}, by_class=True, resamples=100, seed=0)
    assert errors == ()


def test_lengths_are_in_characters_where_words_have_no_spaces() -> None:
    rows = [
        {"example_id": str(number), "text": "字" * (1 + number), "gold": "a", "predicted": "a"} for number in range(60)
    ]
    found = worst_slices(Classification(["a", "b"]), "accuracy", rows, {}, by_class=False, resamples=10, seed=0)
    assert {one.name for one in found} == {
        "up to 15 characters", "16 to 30 characters", "31 to 45 characters", "46 to 60 characters"
    }  # fmt: skip


@pytest.mark.parametrize(("high", "told"), [(0.4, "beyond both intervals"), (0.9, "which may be chance")])
def test_a_slice_is_told_with_what_chance_explains(tmp_path: Path, high: float, told: str) -> None:
    def scored(value: float, low: float, high: float) -> Score:
        return Score(metric="accuracy", value=value, low=low, high=high, n=20)

    slices = [Slice(name="a", score=scored(0.3, 0.2, high)), Slice(name="b", score=scored(0.7, 0.6, 0.8))]
    (picture,) = draw_slices(slices, scored(0.6, 0.5, 0.7), tmp_path)
    assert told in picture.says
    assert "accuracy, percent (in brackets: rows)" in texts(tmp_path / "slices.svg")


def test_reliability_of_long_labels_is_explained(tmp_path: Path) -> None:
    found = reliability("final student", [0.9, 0.8, 0.3], [True, False, False])
    assert found is not None
    (whole,) = draw_reliability([found], tmp_path)
    assert whole.says.endswith("so a long label is right less often than it says.")
    assert {"confidence, percent", "rows whose whole label is right, percent"} <= set(
        texts(tmp_path / "reliability.svg")
    )


def test_keys_are_prefects_and_names_fit() -> None:
    assert [as_key(name) for name in ("unseen-answers", "Numbers, to 5", "Slots test")] == [
        "unseen-answers", "numbers-to-5", "slots-test"
    ]  # fmt: skip
    others = [as_key(name) for name in ("测试", "验证")]
    assert others[0] != others[1]
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in others)
    assert named("SEARCH_SCREENING_EVENT", 18) == "SEARCH_SCREE…EVENT"


@pytest.mark.parametrize("letters", [4, 30])
def test_titles_of_axes_are_whole_beside_long_names_and_on_low_pictures(letters: int, tmp_path: Path) -> None:
    picture = Picture(key="slices", title="Worst slices", says="")
    with drawn(tmp_path, picture, 1.6) as axes:
        axes.plot([0, 1], [0, 1])
        axes.set_yticks([0, 1], ["W" * letters, "name"])
        axes.set_xlabel("accuracy, percent (in brackets: rows)")
        axes.set_ylabel("rows of the pool with gold, percent")
    figure = axes.figure
    for label in (axes.xaxis.label, axes.yaxis.label):
        box = label.get_window_extent()
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
    assert (axes.xaxis.label.get_horizontalalignment() == "right") == (letters > 4), "in the middle where there is room"


def test_a_picture_drawn_again_is_the_same(tmp_path: Path) -> None:
    def draw() -> tuple[bytes, bytes]:
        with drawn(tmp_path, Picture(key="one", title="One", says=""), 2.0) as axes:
            axes.plot([0, 1], [0, 1])
        return (tmp_path / "one.svg").read_bytes(), (tmp_path / "one.png").read_bytes()

    assert draw() == draw()
