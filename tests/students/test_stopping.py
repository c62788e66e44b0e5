"""Trainings that end by the loss on rows which they are not trained on."""

import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retort.config import CausalConfig, Seq2SeqConfig, TextConfig
from retort.models.weights import Weights, find_weights
from retort.problems import problem_for
from retort.problems.slots import Slots, encode
from retort.store import Store
from retort.students.base import TrainingRow
from retort.students.checkpoints import StoredCheckpoint
from retort.students.classifier import Classifier
from retort.students.early_stopping import best_of
from retort.students.encoder import new_encoder
from retort.students.generative import new_generative_student
from watched_training import CPU, EPOCHS, STEPS, Rows, fitted, training

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"


def weights(rows: Rows) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in rows.model.parameters()]


def test_it_ends_after_its_patience_with_the_best_weights() -> None:
    rows = Rows()
    history = fitted(rows, training())
    losses = history.held_out_losses
    best = int(np.argmin(losses))
    assert history.ended_by == "patience"
    assert history.held_out_steps == [STEPS * epoch for epoch in range(1, len(losses) + 1)]
    assert len(losses) == best + 1 + 3 < EPOCHS
    assert history.kept_step == STEPS * (best + 1)
    assert Rows(2, rows.model).whole_loss() == pytest.approx(losses[best], rel=1e-5)
    assert history.steps[-1] <= history.held_out_steps[-1]


def test_more_patience_looks_further_and_never_keeps_worse() -> None:
    found = [fitted(Rows(), training(patience)).held_out_losses for patience in (1, 3, 1000)]
    assert [len(one) for one in found] == sorted({len(one) for one in found})
    assert found[0] == found[2][: len(found[0])], "looking changes nothing about the training"
    assert min(found[2]) <= min(found[1]) <= min(found[0])


@pytest.mark.parametrize(("epochs", "least", "steps"), [(1, 12, 12), (0.5, 3, 3), (5, 10, 15), (2, 6, 6), (2, 0, 6)])
def test_training_goes_on_past_its_epochs_until_there_were_enough_updates(
    epochs: float, least: int, steps: int
) -> None:
    """An epoch has three steps."""
    rows = Rows()
    history = fitted(rows, training(epochs=epochs, min_updates=least, stopping=None, warmup_share=0.5))
    assert (history.steps[-1], rows.calls) == (steps, steps)
    assert history.learning_rates[-1] == pytest.approx(0.03 * 2 / steps, rel=0.5), "the schedule is that of all steps"


def test_enough_updates_are_at_most_one_too_many() -> None:
    for least in (50, 101, 128):
        assert fitted(Rows(), training(epochs=1, min_updates=least, stopping=None)).steps[-1] == least


def test_early_stopping_looks_after_each_of_the_epochs_that_there_are() -> None:
    """Enough updates make more epochs to choose from; they are no reason to go on with what gets worse."""
    few, many = training(1000, epochs=2), training(1000, epochs=2, min_updates=12)
    assert fitted(Rows(), few).held_out_steps == [3, 6]
    history = fitted(Rows(), many)
    assert history.held_out_steps == [3, 6, 9, 12]
    assert history.ended_by == "epochs"
    impatient = fitted(Rows(), training(1, epochs=2, min_updates=3 * EPOCHS))
    assert impatient.ended_by == "patience"
    assert impatient.held_out_losses == fitted(Rows(), training(1)).held_out_losses


def test_where_patience_lasts_all_epochs_come_and_the_best_is_kept() -> None:
    rows = Rows()
    history = fitted(rows, training(1000))
    assert history.ended_by == "epochs"
    assert len(history.held_out_losses) == EPOCHS
    assert history.kept_step is not None
    assert history.kept_step < STEPS * EPOCHS
    assert Rows(2, rows.model).whole_loss() == pytest.approx(min(history.held_out_losses), rel=1e-5)


def test_the_steps_are_those_of_a_training_that_nobody_watches() -> None:
    """Until the step that is kept: early stopping draws no random number and leaves the model in training."""
    watched = Rows()
    history = fitted(watched, training(1000))
    assert history.kept_step is not None
    plain = fitted(Rows(), training(stopping=None))
    assert plain.held_out_losses == []
    assert plain.kept_step is None
    assert history.losses == plain.losses


KILLED = """
    import sys
    import torch
    from watched_training import Rows, fitted, training
    from retort.store import Store
    from retort.students.checkpoints import StoredCheckpoint
    torch.set_num_threads(1)
    rows = Rows()
    rows.die_at = int(sys.argv[2])
    fitted(rows, training(), checkpoint=StoredCheckpoint(Store(sys.argv[1]), "k" * 64, seconds_between=0))
"""


@pytest.mark.parametrize("after_best", [-1, 1, 4])
def test_killed_and_resumed_gives_the_same_bytes_and_the_same_history(tmp_path: Path, after_best: int) -> None:
    """Killed before the best epoch and after it, when the best weights are no longer the model's."""
    whole = Rows()
    expected = fitted(whole, training())
    assert expected.kept_step is not None
    die_at = expected.kept_step + after_best
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(die_at)]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=600)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    resumed = Rows()
    history = fitted(resumed, training(), checkpoint=StoredCheckpoint(Store(str(tmp_path)), "k" * 64))
    assert resumed.calls < whole.calls
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    for name in ("steps", "losses", "held_out_steps", "held_out_losses", "kept_step", "ended_by"):
        assert getattr(history, name) == getattr(expected, name), name


def test_a_fraction_of_an_epoch_is_looked_at_too() -> None:
    history = fitted(Rows(), training(1000, epochs=2.5))
    assert history.held_out_steps == [3, 6, 8]


def test_a_training_that_ends_before_the_first_hundredth_has_a_loss() -> None:
    """Ten of 1000 epochs are a hundredth."""
    history = fitted(Rows(), training(1, epochs=1000))
    assert history.ended_by == "patience"
    assert history.steps[-1] == history.held_out_steps[-1]
    assert math.isfinite(history.losses[-1])


def test_what_is_no_number_is_never_the_best() -> None:
    assert best_of([math.nan, 2.0, 1.0, 1.0, math.nan]) == 2
    assert best_of([math.nan, math.nan]) == 0


def test_an_encoder_is_watched_by_its_own_objective(tiny_encoder: Path) -> None:
    """Rows that contradict what is learned: the first epoch is the best, and what it gave is kept."""
    problem = Slots({"PLAY": ["ARTIST"], "ASK": []})

    def rows(right: bool) -> list[TrainingRow]:
        tags = ["B-ARTIST", "O"] if right else ["O", "B-ARTIST"]
        return [TrainingRow(f"{word} film", encode("PLAY", tags)) for word in ("great", "good", "dull", "awful")]

    torch.manual_seed(0)
    encoder = new_encoder(
        "token-classification", Weights(str(tiny_encoder), ""), pretrained=True, problem=problem, max_length=32
    )
    config = training(2, epochs=20, batch_tokens=64, learning_rate=3e-3, freeze_embeddings=False)
    history = Classifier(encoder, problem).train(rows(True), config, seed=0, device=CPU, held_out=rows(False)).history
    assert history.ended_by == "patience"
    assert len(history.held_out_losses) < 20
    assert history.held_out_losses[-1] > min(history.held_out_losses)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_writer_is_watched_and_its_best_weights_are_kept(kind: str, request: pytest.FixtureRequest) -> None:
    """The held-out loss, computed again from what was kept, is the lowest of the history."""
    folder = str(request.getfixturevalue({"causal": "tiny_causal", "seq2seq": "tiny_t5"}[kind]))
    config = training(1, epochs=30, batch_tokens=128, learning_rate=1e-2, freeze_embeddings=False)
    given = {"model": folder, "target": "text", "training": config}
    settings = CausalConfig(kind="causal", **given) if kind == "causal" else Seq2SeqConfig(kind="seq2seq", **given)
    torch.manual_seed(0)
    student = new_generative_student(
        settings, find_weights(settings), pretrained=True, problem=problem_for(TextConfig(kind="text"))
    )
    rows = [TrainingRow(f"play {word}", f"time {word}") for word in ("yellow", "clocks", "creep", "rome", "oslo")]
    others = [TrainingRow(f"play {word}", f"time {word[::-1]}") for word in ("yellow", "rome")]
    history = student.train(rows, config, seed=0, device=CPU, held_out=others).history
    assert history.ended_by == "patience"
    assert len(history.held_out_losses) < 30
    assert history.held_out_losses[-1] > min(history.held_out_losses)
    again = config.model_copy(update={"learning_rate": 1e-30, "epochs": 1})
    kept = student.train(rows, again, seed=0, device=CPU, held_out=others).history.held_out_losses[0]
    assert kept == pytest.approx(min(history.held_out_losses), rel=1e-4)
