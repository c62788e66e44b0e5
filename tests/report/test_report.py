"""The report on a run whose figures were worked out by hand (see support/synthetic_run.py)."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from retort.artifacts.reports import Report
from retort.config import ClassificationConfig
from retort.metrics.format import p_text, percent, seconds_text, signed
from retort.metrics.scores import mean_scores, score
from retort.problems.classification import Classification
from retort.report.mckd.stage_pictures import draw_label_flow
from retort.report.mckd.summary import MckdSummary, table
from retort.report.mckd.terminal import render_terminal
from retort.report.mistakes import NOTHING, error_tables
from synthetic_run import PLAY_TRACK, Run, crowned, synthetic


def report_of(run: Run) -> Report:
    return Report.open(run.store, run.report)


def summary_of(run: Run) -> MckdSummary:
    return report_of(run).summary(MckdSummary)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return synthetic(tmp_path_factory.mktemp("run"), pictures=True)


@pytest.fixture(scope="module")
def folder(run: Run) -> Path:
    return report_of(run).folder


@pytest.fixture(scope="module")
def summary(run: Run) -> MckdSummary:
    return summary_of(run)


def test_rows_are_in_order_with_what_they_were_measured_on(summary: MckdSummary) -> None:
    rows = [(row.name, row.role, row.measured_on, row.num_students, row.rejected) for row in summary.systems]
    assert rows == [
        ("teacher", "teacher", "pool", 1, False),
        ("stage 1", "stage", "test", 2, False),
        ("stage 2", "stage", "test", 2, True),
        ("final student", "final", "test", 1, False),
        ("vanilla-kd", "baseline", "test", 1, False),
        ("supervised", "baseline", "test", 1, False),
    ]


def test_scores_are_means_over_students(summary: MckdSummary) -> None:
    stage1 = summary.systems[1].scores
    assert stage1["slot_f1"].value == pytest.approx((3 / 4 + 1) / 2)  # one student errs on one of four spans
    assert stage1["exact_match"].value == pytest.approx((3 / 4 + 1) / 2)
    assert stage1["intent_accuracy"].value == 1.0
    assert stage1["slot_f1"].n == 4
    assert stage1["slot_f1"].low < stage1["slot_f1"].value <= stage1["slot_f1"].high
    assert summary.final.scores["exact_match"].value == 0.5
    assert summary.systems[1].judge_scores["slot_f1"].value == 1.0
    assert summary.systems[2].judge_scores["slot_f1"].value == 0.0


def test_teacher_is_measured_by_its_labels_where_rows_without_one_are_wrong(summary: MckdSummary) -> None:
    # 9 pool rows have gold; p1 p4 p6 are labeled wrong, p8 p9 not at all.
    teacher = summary.systems[0].scores
    assert teacher["exact_match"].n == 9
    assert teacher["exact_match"].value == pytest.approx(4 / 9)


def test_changes_are_counted_against_gold(summary: MckdSummary) -> None:
    teacher, stage1 = summary.labels
    assert teacher.change is None
    assert teacher.rows == stage1.rows == 8
    assert (teacher.used, stage1.used) == ("final student", "rejected")
    change = stage1.change
    assert change is not None
    assert (change.changed, change.known) == (4, 3)  # p7 has no gold
    assert (change.fixed, change.broken, change.still_wrong) == (1, 1, 1)
    assert stage1.changed_share == 0.5


def test_labels_flow_from_state_to_state_where_gold_is_known(summary: MckdSummary, tuned: Report) -> None:
    def flows(change: Any) -> dict[tuple[str, str], int]:
        return {(flow.before, flow.after): flow.rows for flow in change.flows}

    # Nine rows have gold. The teacher is wrong on p1, p4 and p6, and has no label for p8 and p9.
    first = flows(summary.labels[1].change)
    assert first == {("right", "right"): 3, ("right", "wrong"): 1, ("wrong", "right"): 1, ("wrong", "wrong"): 2,
                     ("none", "none"): 2}  # fmt: skip
    last = flows(tuned.summary(MckdSummary).labels[2].change)
    assert (last["wrong", "right"], last["none", "right"], last["none", "none"]) == (1, 1, 1)
    assert sum(last.values()) == 9


def test_the_flow_is_told_and_drawn(folder: Path, summary: MckdSummary, tmp_path: Path) -> None:
    (flow,) = (one for one in json.loads((folder / "pictures.json").read_text()) if one["key"] == "label-flow")
    assert flow["says"].startswith("Stage 1 mended 1 wrong labels and broke 1 right ones of 9.")
    without_gold = summary.model_copy(
        update={
            "labels": tuple(
                labels.model_copy(update={"change": labels.change and labels.change.model_copy(update={"flows": ()})})
                for labels in summary.labels
            )
        }
    )
    (picture,) = draw_label_flow(without_gold, tmp_path)
    assert picture.says.startswith("Of the labels, stage 1 changed 50.0 %. The pool has no gold")
    assert "labels, percent" in (tmp_path / "label-flow.svg").read_text()


def test_every_picture_is_on_the_page_with_its_sentence(folder: Path) -> None:
    pictures = json.loads((folder / "pictures.json").read_text())
    assert [one["key"] for one in pictures] == [
        "scores-0", "scores-1", "scores-2", "stages", "label-flow", "confusions-slots", "by-name-slots",
        "confusions-intents", "by-name-intents", "losses", "timeline", "costs",
    ]  # fmt: skip
    html = (folder / "report.html").read_text()
    assert html.count("<svg") == html.count("<figcaption>") == len(pictures)
    for one in pictures:
        assert one["says"], one["key"]
        assert f'aria-label="{one["title"]}"' in html
        assert (folder / f"{one['key']}.png").exists()


def test_a_summary_of_before_the_pictures_can_still_be_read(summary: MckdSummary) -> None:
    new = {"spans", "curves", "arm_costs", "reliability", "slices"}
    old = MckdSummary.model_validate(summary.model_dump(exclude=new))
    assert (old.spans, old.slices, old.conclusion) == ((), {}, summary.conclusion)


def test_examples_that_changed_most_come_first(summary: MckdSummary) -> None:
    change = summary.labels[1].change
    assert change is not None
    assert change.order == "parts-changed"
    first = change.examples[0]  # the intent and the slot changed: four parts
    assert (first.example_id, first.num_parts_changed, first.verdict) == ("p4", 4, "still wrong")
    assert (first.old, first.new) == ("[IN:PLAY [SL:TRACK queen ] ]", "[IN:WEATHER [SL:CITY queen ] ]")
    assert first.gold == "[IN:PLAY [SL:ARTIST queen ] ]"
    verdicts = {example.example_id: example.verdict for example in change.examples}
    assert verdicts == {"p0": "broken", "p1": "fixed", "p4": "still wrong", "p7": None}


def test_with_probabilities_the_least_probable_old_label_comes_first(tmp_path: Path) -> None:
    soft = synthetic(tmp_path, method={"stages": 2, "scheme": "leave-one-out", "cross_labels": "soft"}, baselines=[])
    change = summary_of(soft).labels[1].change
    assert change is not None
    assert change.order == "old-label-probability"
    # Of three units (the intent and two words), p7 differs in one and p4 in two. What a unit gives to classes that it
    # cannot have, the intent to tags and a word to intents, does not count.
    by_id = {example.example_id: example.old_probability for example in change.examples}
    classes = 7 + 2  # O, B and I of three slots; two intents

    def shares(right: float) -> float:
        """The product over the units of the share that their own classes have."""
        other = (1 - right) / (classes - 1)
        return (right + other) * (right + 6 * other) ** 2

    assert by_id["p7"] == pytest.approx((0.99**2 * 0.01 / (classes - 1) / shares(0.99)) ** (1 / 3), rel=0.002)
    assert by_id["p4"] == pytest.approx((0.9 * (0.1 / (classes - 1)) ** 2 / shares(0.9)) ** (1 / 3), rel=0.002)
    probabilities = [example.old_probability or 0.0 for example in change.examples]
    assert probabilities == sorted(probabilities)


def test_the_reason_of_a_rejection(summary: MckdSummary) -> None:
    assert summary.kept_stage == 1
    assert summary.reason.startswith(
        "The labels of stage 1 were rejected: students trained on them scored 0.0 slot F1 against 100.0 of those "
        "trained on the labels before, on the 2 judging rows (gain -100.0, 95 % interval -100.0 to -100.0"
    )
    # Two students on each side and two rows: each of the four answers is right before and wrong after.
    assert (
        "; McNemar on whole labels: 4 answers only the old got right, 0 only the new, p = 0.125). So" in summary.reason
    )
    assert summary.reason.endswith("So the final student is trained on the labels of stage 0, the teacher's.")


@pytest.mark.parametrize(
    ("method", "beginning"),
    [
        ({"stages": 1}, "One stage was asked for (vanilla distillation)"),
        ({"stages": 2, "selection": {"kind": "always"}}, "Labels need not prove themselves (method.selection: always)"),
    ],
)
def test_the_reason_without_a_verdict(tmp_path: Path, method: dict[str, Any], beginning: str) -> None:
    other = synthetic(tmp_path, method=method, baselines=[])
    assert summary_of(other).reason.startswith(beginning)


def test_the_reason_of_an_acceptance(tmp_path: Path) -> None:
    wrong = {"stage1/judge": {"l0": "[IN:PLAY ]", "l1": "[IN:PLAY ]"}}
    other = synthetic(tmp_path, wrong, method={"stages": 2}, baselines=[])
    summary = summary_of(other)
    assert summary.kept_stage == 2
    assert summary.reason.startswith("The labels of stage 1 were accepted: students trained on them scored 100.0")
    assert summary.reason.endswith("So the final student is trained on them.")
    assert [labels.used for labels in summary.labels] == ["replaced", "final student"]


def test_the_final_student_is_compared_with_each_other_baseline(summary: MckdSummary, folder: Path) -> None:
    vanilla, supervised = summary.systems[4], summary.systems[5]
    assert vanilla.final_gain is None  # the same student
    assert summary.rivals == (supervised,)
    gain = supervised.final_gain
    assert gain is not None
    assert (gain.only_baseline, gain.only_final, gain.p_value) == (2, 0, 0.5)  # it errs on t1 and t3
    assert gain.value == pytest.approx(4 / 7 - 1)  # two of four spans found, one too many
    assert -1 <= gain.low < gain.value < gain.high <= 0
    line = f"-42.9 [{signed(gain.low)}, {signed(gain.high)}]"
    assert f"| supervised | {line} | 0 | 2 | p = 0.500 |" in (folder / "report.md").read_text()
    assert "-42.9 <span" in (folder / "report.html").read_text()


TUNED = {"stages": 2, "selection": {"kind": "always"}, "fine_tuning": {"kind": "better", "folds": 2}}
BAD_BEFORE = {"stage1/judge": {"l0": "[IN:PLAY ]", "l1": "[IN:PLAY ]"}}
"""On both judging rows the students are wrong before fine-tuning and right after it."""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Report:
    wrong = {**BAD_BEFORE, "fine-tuning/test-1": {"t0": PLAY_TRACK.format("cher")}, "supervised": {"t1": "[IN:PLAY ]"}}
    folder = tmp_path_factory.mktemp("tuned")
    return report_of(synthetic(folder, wrong, pictures=True, method=TUNED, baselines=["vanilla-kd", "supervised"]))


def test_fine_tuned_students_have_a_row_after_the_stages(tuned: Report) -> None:
    summary = tuned.summary(MckdSummary)
    names = ["teacher", "stage 1", "fine-tuned", "final student", "vanilla-kd", "supervised"]
    assert [row.name for row in summary.systems] == names
    row = summary.systems[2]
    assert (row.role, row.num_students, row.measured_on, row.judge_scores) == ("stage", 2, "test", {})
    assert row.scores["slot_f1"].value == pytest.approx((3 / 4 + 1) / 2)
    assert row.note == "those of stage 1, on the labeled set"
    assert summary.final.note == "labels of the fine-tuned students, fine-tuned"
    # Two parts of the judgement, the whole and its verdict; of two students the training, scores and cross-labels;
    # labels and their quality.
    assert row.seconds == 4 + 2 * 3 + 2


def test_the_final_student_s_training_before_fine_tuning_is_part_of_its_cost(tuned: Report) -> None:
    final = tuned.summary(MckdSummary).final
    assert final.seconds == 3, "before, after, and scores"


def test_labels_of_fine_tuned_students_follow_those_that_they_replace(tuned: Report) -> None:
    summary = tuned.summary(MckdSummary)
    told = [(labels.name, labels.used, labels.rows) for labels in summary.labels]
    assert told == [("0 (teacher)", "replaced", 8), ("1", "replaced", 8), ("1, fine-tuned", "final student", 9)]
    change = summary.labels[2].change
    assert change is not None
    assert (change.changed, change.new, change.fixed, change.broken) == (1, 1, 1, 0)
    assert [example.example_id for example in change.examples] == ["p0"]
    exact = [labels.quality["exact_match"].value for labels in summary.labels[1:]]
    assert exact == [pytest.approx(4 / 9), pytest.approx(6 / 9)]
    assert "| 1, fine-tuned | 9 | final student | 1 (11.1 %) |" in (tuned.folder / "report.md").read_text()


def test_the_reason_of_fine_tuning(tuned: Report, tmp_path: Path) -> None:
    reason = tuned.summary(MckdSummary).reason
    assert (
        "Fine-tuning on the labeled set was accepted: it changed a student's slot F1 on 2 judging rows that it had not "
        "seen by +100.0 (95 % interval +100.0 to +100.0; better in 100% of resamples, 10% needed). So the students "
        "that relabel the pool last and the final student had it."
    ) in reason
    worse = {"fine-tuning/judge-": {"l0": "[IN:PLAY ]", "l1": "[IN:PLAY ]"}}
    rejected = summary_of(synthetic(tmp_path, worse, method=TUNED, baselines=[]))
    assert "Fine-tuning on the labeled set was rejected: it changed a student's slot F1 on 2 judg" in rejected.reason
    assert rejected.final.note == "labels of stage 1"
    assert [row.name for row in rejected.systems] == ["teacher", "stage 1", "final student"]
    assert [labels.used for labels in rejected.labels] == ["replaced", "final student"]


def test_the_reason_of_fine_tuning_without_a_proof(tmp_path: Path) -> None:
    summary = summary_of(synthetic(tmp_path, method={"stages": 1, "fine_tuning": {"kind": "always"}}, baselines=[]))
    assert summary.reason.endswith(
        "Fine-tuning on the labeled set needs no proof (method.fine_tuning: always), so the final student had it."
    )
    assert summary.final.note == "labels of stage 0, fine-tuned"
    assert [labels.used for labels in summary.labels] == ["final student"]


def test_what_the_final_student_gains_is_told_first(tuned: Report, summary: MckdSummary, tmp_path: Path) -> None:
    told, gain = tuned.summary(MckdSummary), tuned.summary(MckdSummary).systems[-1].final_gain
    assert gain is not None
    teacher = told.systems[0].scores["slot_f1"].value
    assert told.gained == (
        f"The final student scores 100.0 slot F1: {signed(1 - teacher)} over the teacher ({percent(teacher)} on the "
        f"pool); +0.0 (+0.0 to +0.0) over vanilla-kd; {signed(gain.value)} ({signed(gain.low)} to {signed(gain.high)}) "
        "over supervised."
    )
    assert told.conclusion == f"{told.gained} {told.reason}"
    assert told.conclusion in (tuned.folder / "report.md").read_text().replace("&#39;", "'")
    assert "vanilla-kd" not in summary.gained, "it is the same student"
    other = synthetic(tmp_path, teacher={"kind": "finetuned"}, method={"stages": 1}, baselines=[])
    assert summary_of(other).gained == (
        "The final student scores 57.1 slot F1: -42.9 over the teacher (100.0 on the test rows)."
    )


def test_the_terminal_shows_the_fine_tuned_students(tuned: Report) -> None:
    console = Console(width=200, file=StringIO(), record=True)
    summary = tuned.summary(MckdSummary)
    console.print(render_terminal(summary, console.width))
    text = " ".join(console.export_text().split())
    assert "fine-tuned (2 students)" in text
    assert summary.gained in text


def test_failures_keep_reason_and_raw_text(summary: MckdSummary) -> None:
    assert summary.failures.reasons == {"missing": 1, "words-not-in-request": 1}
    raws = {failure.example_id: failure.raw for failure in summary.failures.examples}
    assert raws == {"p9": "", "p8": "[IN:PLAY [SL:ARTIST <b>bowie</b> ] ]"}


def test_slot_errors_of_the_final_student(summary: MckdSummary) -> None:
    slots, intents = summary.errors
    assert {row.name: (row.support, row.predicted, row.f1) for row in slots.names} == {
        "ARTIST": (1, 2, pytest.approx(2 / 3)),  # t0 right; t1's track taken for one
        "TRACK": (1, 0, 0.0),
        "CITY": (2, 1, pytest.approx(2 / 3)),
    }
    assert {(c.gold, c.predicted, c.count) for c in slots.confusions} == {("TRACK", "ARTIST", 1), ("CITY", NOTHING, 1)}
    assert intents.matrix == ((2, 0, 0), (1, 1, 0))


def test_cost_counts_each_artifact_once(summary: MckdSummary) -> None:
    """One second each: 3 data sets and their hygiene; labels and quality; 10 of stage 1; 7 of stage 2; 2 final; 2
    supervised."""
    assert summary.compute_seconds == 27.0
    assert [row.seconds for row in summary.systems] == [2, 10, 7, 2, 0, 2]
    assert summary.systems[4].note == "the same student as the final one"
    assert sum(timing.seconds for timing in summary.timings) == 27.0
    trained = [t for t in summary.timings if (t.group, t.what) == ("stage 1", "student")]
    assert [(t.count, t.examples_per_second) for t in trained] == [(2, 250.0)]
    crossed = [t for t in summary.timings if (t.group, t.what) == ("stage 1", "cross-labels")]
    assert [t.count for t in crossed] == [2]


def test_hygiene_of_the_rows(summary: MckdSummary, folder: Path) -> None:
    """Students contradict four labels as confidently as they confirm the others; no text repeats another."""
    assert summary.hygiene is not None
    assert (summary.hygiene.within.rows, summary.hygiene.leaked.rows, summary.hygiene.drift) == (0, 0, None)
    suspicious = summary.hygiene.suspicious
    assert suspicious is not None
    assert (suspicious.rows, suspicious.compared) == (4, 8)
    for page in ("report.md", "report.html"):
        text = (folder / page).read_text()
        assert "4 of 8 labels of the teacher (50.0%) are confidently contradicted" in text
        assert "[IN:PLAY [SL:ARTIST thriller ] ]" in text


def test_a_finetuned_teacher_is_measured_on_the_test_rows(tmp_path: Path) -> None:
    other = synthetic(tmp_path, teacher={"kind": "finetuned"}, method={"stages": 1}, baselines=[])
    summary = summary_of(other)
    assert (summary.systems[0].measured_on, summary.systems[0].scores["exact_match"].value) == ("test", 1.0)
    assert summary.failures.reasons == {}


def test_html_needs_nothing_else_and_escapes_data(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert "<svg" in html
    assert "<script" not in html
    assert "<b>bowie</b>" not in html
    assert "&lt;b&gt;bowie&lt;/b&gt;" in html
    assert not any(attribute in html for attribute in ('src="', 'href="http', "@import"))


def test_pictures_are_there(folder: Path) -> None:
    assert (folder / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "scores.svg").read_text()


def test_markdown_has_the_table(folder: Path, summary: MckdSummary) -> None:
    text = (folder / "report.md").read_text()
    for row in table(summary).rows:
        assert f"| {' | '.join(row)} |" in text
    for system in summary.systems:  # below the table, since the Prefect UI cuts wide ones off
        students = f"{system.num_students} students; " if system.role == "stage" else ""
        assert not system.note or f"\n- {system.name}: {students}{system.note}\n" in text
    assert all(table(summary).columns), "the Prefect UI leaves out a column without a name"


@pytest.mark.parametrize(("width", "left_out"), [(60, 3), (80, 2), (100, 0)])
def test_the_terminal_has_one_line_per_arm(summary: MckdSummary, width: int, left_out: int) -> None:
    console = Console(width=width, file=StringIO(), record=True)
    console.print(render_terminal(summary, console.width))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    arm = next(line for line in lines if line.startswith(" stage 1 (2 students)"))
    assert arm.split()[4:8] == ["87.5", "[62.5,", "100.0]", "+30.4"]
    assert [line.split()[0] for line in lines if "in the report" in line] == ([str(left_out)] if left_out else [])
    assert "The run cost 27.0 s of compute." in lines


def test_the_terminal_shows_errors_in_their_unit_and_gains_as_how_much_less_they_are(summary: MckdSummary) -> None:
    errors = MckdSummary.model_validate_json(summary.model_dump_json().replace('"slot_f1"', '"rmse"'))
    console = Console(width=120, file=StringIO(), record=True)
    console.print(render_terminal(errors, console.width))
    told = console.export_text()
    assert "scores in percent, errors in the unit of the labels, on " in told
    arm = next(line for line in told.splitlines() if line.startswith(" stage 1 (2 students)"))
    assert arm.split()[4:8] == ["0.875", "[0.625,", "1]", "-0.304"]


TRACKED = {"tracking": {"uri": "sqlite:///never-opened.db"}, "method": {"stages": 1}, "baselines": []}
"""A config with a registry to promote in."""
MUSIC = {"name": "music | <b>", "label": "PLAY", "metric": "exact_match", "floor": 0.9, "min_rows": 2}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a second night: other labels, a champion with one mistake more, too little to be sure."""
    folder = tmp_path_factory.mktemp("nights")
    champion = crowned(synthetic(folder, **TRACKED), "4")
    other = {**TRACKED, "method": {"stages": 1, "seed": 1}, "gate": {"slices": [MUSIC], "max_latency_ms": 5}}
    return report_of(synthetic(folder, reigning=champion, **other))


def test_the_champion_has_a_row_of_its_own(refused: Report) -> None:
    summary = refused.summary(MckdSummary)
    final, champion = summary.systems[-2:]
    assert (champion.role, champion.name, champion.note) == ("champion", "champion", "version 4")
    assert (final.scores["exact_match"].value, champion.scores["exact_match"].value) == (0.5, 0.25)
    # Its own training was another night's; here it was scored.
    assert champion.seconds == 1
    assert {(t.group, t.what) for t in summary.timings} >= {("champion", "test"), ("gate", "gate")}


def test_the_summary_has_the_gates_figures(refused: Report) -> None:
    summary = refused.summary(MckdSummary)
    verdict = summary.gate
    assert verdict is not None
    assert (summary.champion, verdict.outcome, verdict.accepted, verdict.n) == ("4", "refused", False, 4)
    assert verdict.contest is not None
    # Of four spans the final student finds two and says one that is wrong; the champion finds one and says two.
    assert verdict.contest.gain == pytest.approx(4 / 7 - 2 / 7)
    assert (verdict.contest.only_final, verdict.contest.only_champion) == (1, 0)
    (music,) = verdict.slices
    assert music.score is not None
    assert (music.n, music.score.value, music.passed) == (2, 0.5, False)
    assert [reason in verdict.refusals for reason in verdict.reasons] == [True, True, False]


def test_pages_tell_the_verdict(refused: Report) -> None:
    markdown, html = ((refused.folder / name).read_text() for name in ("report.md", "report.html"))
    sentence = (
        "The gate does not let the final student take the place of the champion, version 4: 2 of 3 checks failed."
    )
    assert sentence in markdown
    assert f'<p class="verdict refused">{sentence}</p>' in html
    assert "- Failed: The final student scores 57.1 slot F1 against the champion's 28.6 on 4 test rows" in markdown
    assert "| music \\| &lt;b&gt; | exact match | 50.0 [" in markdown
    assert "(a machine) | 2.5 ms | 5 ms |" in markdown
    assert "music | &lt;b&gt;" in html
    assert "music | <b>" not in html
    assert '<tr class="champion"><td>champion</td>' in html


def test_the_terminal_tells_the_verdict(refused: Report) -> None:
    console = Console(width=200, file=StringIO(), record=True)
    console.print(render_terminal(refused.summary(MckdSummary), console.width))
    text = " ".join(console.export_text().split())
    assert "champion, version 4: 2 of 3 checks failed. - The final student scores 57.1 slot F1 against" in text
    assert "version 4" in text


def test_without_a_registry_nothing_is_said_of_a_gate(folder: Path, summary: MckdSummary) -> None:
    assert (summary.gate, summary.champion) == (None, None)
    assert "## Gate" not in (folder / "report.md").read_text()
    assert "<h2>Gate</h2>" not in (folder / "report.html").read_text()


def test_a_champion_that_is_the_final_student_is_told_once(tmp_path: Path) -> None:
    first = synthetic(tmp_path, **TRACKED)
    told = summary_of(first)
    assert told.gate is not None
    assert (told.gate.outcome, told.champion) == ("first", None)
    second = synthetic(tmp_path, reigning=crowned(first, "1"), **TRACKED)
    summary = summary_of(second)
    assert summary.gate is not None
    assert summary.gate.outcome == "reigns"
    assert summary.systems[-1].note == "version 1, the same student as the final one"
    assert summary.compute_seconds == told.compute_seconds
    console = Console(width=200, file=StringIO(), record=True)
    console.print(render_terminal(summary, console.width))
    assert "The final student is the champion already, version 1." in console.export_text()


def test_a_report_made_again_is_the_same(run: Run, folder: Path, tmp_path: Path) -> None:
    from retort.config import ExecutionConfig
    from retort.recipes.mckd.steps import report
    from retort.steps.context import StepContext

    step = report(run.config, run.distilled)
    step.run(StepContext(run.store, tmp_path, ExecutionConfig(), 0, lambda done, total, note: None))
    for name in ("summary.json", "report.html", "report.md", "scores.svg"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_numbers_as_people_read_them() -> None:
    assert [percent(value) for value in (0.896, 1.0, -0.0001)] == ["89.6", "100.0", "0.0"]
    assert [signed(value) for value in (0.021, -0.1, -0.0001)] == ["+2.1", "-10.0", "+0.0"]
    assert [p_text(value) for value in (1.0, 0.0346, 0.0004)] == ["p = 1.000", "p = 0.035", "p < 0.001"]
    assert [seconds_text(value) for value in (4.26, 200, 7300)] == ["4.3 s", "3 min 20 s", "2 h 1 min"]


def test_classes_get_a_confusion_matrix_with_a_column_for_no_prediction() -> None:
    config = ClassificationConfig(kind="classification", labels=["low", "mid", "high"])
    rows: list[dict[str, Any]] = [
        {"text": "a", "gold": "low", "predicted": "low"},
        {"text": "b", "gold": "low", "predicted": "high"},
        {"text": "c", "gold": "high", "predicted": None},
    ]
    (errors,) = error_tables(config, Classification(["low", "mid", "high"]), rows)
    assert [row.name for row in errors.names] == ["low", "high"]
    assert errors.matrix == ((1, 1, 0), (0, 0, 1))
    assert [(c.gold, c.predicted) for c in errors.confusions] == [("low", "high"), ("high", NOTHING)]


def test_the_mean_of_equal_systems_is_the_score_of_one() -> None:
    problem = Classification(["a", "b"])
    golds, predicted = ["a", "b", "a", "b", "a"], ["a", "a", "a", "b", None]
    one = score(problem, "accuracy", golds, predicted, 500, 0)
    assert mean_scores(problem, ["accuracy"], golds, [predicted, predicted], 500, 0) == {"accuracy": one}
    opposite = [{"a": "b", "b": "a"}[gold] for gold in golds]
    half = mean_scores(problem, ["accuracy"], golds, [golds, opposite], 500, 0)["accuracy"]
    assert np.allclose((half.value, half.low, half.high), 0.5)  # on any rows one is right where the other is wrong
