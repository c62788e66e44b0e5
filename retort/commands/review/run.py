"""The two halves of `retort review`: rows go out to people, and answers come in."""

import json
from dataclasses import asdict
from pathlib import Path

from retort.commands.review.answers import append_gold, read_answers, scores_of
from retort.commands.review.choose import most_disputed, most_telling, predictions_of, test_predictions
from retort.commands.review.files import ENDINGS, Answer, Format, answers_in, label_studio_config, written
from retort.commands.review.last_run import last_run
from retort.commands.review.record import Purpose, find, keep
from retort.config import MckdConfig, RecipeConfig
from retort.data.bad_rows import BadRow
from retort.errors import ConfigError
from retort.metrics.format import TITLES, with_interval
from retort.recipes import recipe_of
from retort.records.base import Record, Score
from retort.serving.student import load_student
from retort.store.opening import refusals, usable_store

ASIDE = ".set-aside.jsonl"
"""Ending of the file with the answers that cannot be used, beside that with the answers."""


GOLD = "gold.jsonl"


class Exported(Record):
    review_id: str
    purpose: Purpose
    rows: int
    population: int
    """The rows that they were chosen from."""
    set_aside: int = 0
    """Rows of `--from` that cannot be used."""
    files: tuple[str, ...]


class Imported(Record):
    review_id: str
    purpose: Purpose
    gold: int
    """Rows with a label that can be used."""
    open: int
    """Rows without a label."""
    set_aside: dict[str, int]
    """Answers that cannot be used, by reason."""
    set_aside_file: str | None = None
    appended: int = 0
    """Rows that were appended to the file of gold rows."""
    known: int = 0
    """Rows that were there before."""
    people: tuple[str, ...]
    scores: tuple[Score, ...] = ()
    """Estimates of the student's scores on all test rows."""
    used: int = 0
    """The labels that they were made from."""
    population: int
    next_row: str | None = None
    """The first row without a label, if that keeps later ones out of the estimate."""


def export_rows(
    config: RecipeConfig, count: int, purpose: Purpose, form: Format, out: Path | None, source: str | None
) -> Exported:
    """Raises ConfigError or DataError before a student is loaded."""
    path = out or Path(f"review{ENDINGS[form]}")
    if source is not None and purpose != "estimate":
        raise ConfigError("--from names test rows, and goes with --for estimate")
    if path.exists():
        raise ConfigError(f"--out '{path}': exists already; give another file, or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"--out '{path}': '{path.parent}' is no folder")
    with refusals():
        store = usable_store(config)
        run = last_run(config, store)
        assert isinstance(config, MckdConfig), "other recipes have no last run"
        aside = 0
        if purpose == "disagreement":
            review = most_disputed(config, run, load_student(run.student, config.execution.device), count)
        else:
            predicted = test_predictions(run)
            if source is not None:
                predicted, aside = predictions_of(config, source, load_student(run.student, config.execution.device))
            review = most_telling(config, run, config.metrics, predicted, count)
        if not review.rows:
            raise ConfigError("the labelers agree on every row that is not gold yet: there is nothing to review")
        keep(store, config.name, review)
    files = [path]
    path.write_text(written(review, form), encoding="utf-8")
    if form == "label-studio":
        files.append(path.with_suffix(".xml"))
        files[-1].write_text(label_studio_config(review.problem), encoding="utf-8")
    return Exported(
        review_id=review.review_id,
        purpose=purpose,
        rows=len(review.rows),
        population=review.population,
        set_aside=aside,
        files=tuple(map(str, files)),
    )


def import_answers(config: RecipeConfig, file: Path, by: str | None, gold_file: Path | None) -> Imported:
    """Raises ConfigError or DataError for a file that is no answer to a review of this config."""
    if not isinstance(config, MckdConfig):
        raise ConfigError(
            f"kind = '{recipe_of(config).kind}': only runs of the recipe mckd have rows for people to review"
        )
    answers = list(answers_in(file))
    with refusals():
        review = find(usable_store(config), config.name, _review_id(file, answers))
    found = read_answers(review, answers, by)
    gold = list(found.gold.values())
    told = Imported(
        review_id=review.review_id,
        purpose=review.purpose,
        gold=len(gold),
        open=found.open,
        set_aside=found.reasons,
        people=tuple(sorted({name for one in gold for name in one.by})),
        population=review.population,
    )
    if found.bad:
        aside = file.with_name(file.name + ASIDE)
        aside.write_text("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in found.bad))
        told = told.model_copy(update={"set_aside_file": str(aside)})
    if review.purpose == "disagreement" and gold_file is None:
        gold_file = Path(GOLD)
    if gold_file is not None:
        appended, known = append_gold(config, review, gold, gold_file)
        told = told.model_copy(update={"appended": appended, "known": known})
    if review.purpose == "estimate":
        scores, used, gap = scores_of(config, review, found.gold)
        told = told.model_copy(update={"scores": tuple(scores), "used": used, "next_row": gap})
    return told


def _review_id(file: Path, answers: list[Answer | BadRow]) -> str:
    ids = {one.review_id for one in answers if isinstance(one, Answer) and one.review_id}
    if len(ids) != 1:
        what = f"answers of {len(ids)} reviews ({', '.join(sorted(ids))})" if ids else "no row with a column 'review'"
        raise ConfigError(f"--import '{file}': holds {what}; needed are the answers of one, as it was exported")
    return ids.pop()


def export_lines(told: Exported) -> list[str]:
    what = {
        "disagreement": f"the {told.rows} rows of {told.population:,} that the labelers disagree on most",
        "estimate": f"{told.rows} of {told.population:,} test rows, drawn where the student is likely to err",
    }
    lines = [f"{', '.join(told.files)}: {what[told.purpose]}"]
    if told.set_aside:
        lines.append(f"{told.set_aside} rows cannot be used and were left out.")
    if told.purpose == "estimate":
        lines.append("Label them in the order of the file: the first ones are an estimate already.")
    return [*lines, "When they are labeled: retort review CONFIG --import FILE --by NAME"]


def import_lines(told: Imported, gold_file: Path | None) -> list[str]:
    lines = [f"{told.gold} labels by {', '.join(told.people) or 'nobody'}; {told.open} rows have none"]
    if told.set_aside:
        reasons = ", ".join(f"{reason} {count}" for reason, count in told.set_aside.items())
        lines.append(f"{sum(told.set_aside.values())} answers were set aside ({reasons}): {told.set_aside_file}")
    if told.purpose == "disagreement" or gold_file is not None:
        path = gold_file or Path(GOLD)
        known = f", {told.known} were there before" if told.known else ""
        lines.append(f"{path}: {told.appended} rows appended{known}; name it in data.labeled")
    for score in told.scores:
        lines.append(f"{TITLES[score.metric]}: {with_interval(score)} on {told.population:,} test rows, estimated")
    if told.next_row is not None:
        lines.append(f"from the first {told.used} labels; row '{told.next_row}' is the next one without a label")
    return lines
