from dataclasses import replace

import numpy as np
import pytest
import torch

from retort.errors import ConfigError, DataError
from retort.students.tiny import training as module
from retort.students.tiny.bags import EncodedRows
from retort.students.tiny.network import initial, layout, logits, predict, unflatten
from retort.students.tiny.shape import Setting, TinyRows

TOLERANCE = 1e-4
"""Tolerance of a weight of about 0.3 after four epochs: a stack sums in another order than a single student."""

SETTINGS = [
    Setting(0),
    Setting(0, soft_weight=2.0, distillation_temperature=3.0),
    Setting(1, soft_weight=1.0, soft_weight_end=0.0),
    Setting(1, soft_weight=1.0, hard=False),
    Setting(2, soft_weight=1.0, only_where_right=True),
    Setting(2, rows=tuple(range(0, 300, 2))),
    Setting(3, rows=tuple(range(1, 300, 2))),
    Setting(3, rows=tuple(range(0, 298, 2))),
]


def test_side_by_side_they_become_what_each_becomes_alone(lesson):
    together = lesson.train(*SETTINGS, patience=1)
    for setting, student in zip(SETTINGS, together, strict=True):
        (alone,) = lesson.train(setting, patience=1)
        assert student.setting == setting
        assert (student.epoch, len(student.history)) == (alone.epoch, len(alone.history))
        for name, array in alone.weights.items():
            np.testing.assert_allclose(student.weights[name], array, atol=TOLERANCE)
    assert len({len(student.history) for student in together}) > 1, "none stopped early, so that was not tested"


def test_many_are_cut_into_stacks(lesson, monkeypatch):
    whole = lesson.train(*SETTINGS, epochs=1)
    monkeypatch.setattr(module, "STACK", 2)
    same = []
    for one, other in zip(whole, lesson.train(*SETTINGS, epochs=1), strict=True):
        same.append(one.setting == other.setting)
        np.testing.assert_allclose(one.weights["read"], other.weights["read"], atol=TOLERANCE)
    assert all(same)


def test_it_learns_what_only_reference_and_answer_together_tell(lesson):
    (student,) = lesson.train(Setting(0), epochs=12)
    assert student.dev_accuracy > 0.95
    shape = replace(lesson.shape, overlap=False)
    (blind,) = replace(lesson, shape=shape).train(Setting(0), epochs=12)
    assert blind.dev_accuracy < 0.75


def test_the_same_seed_gives_the_same_student_and_another_one_another(lesson):
    first, again, other = lesson.train(Setting(0), Setting(0), Setting(1), epochs=2)
    np.testing.assert_array_equal(first.weights["words"], again.weights["words"])
    assert not np.allclose(first.weights["words"], other.weights["words"])


def test_its_dev_scores_are_those_of_the_weights_that_it_keeps(lesson):
    (student,) = lesson.train(Setting(0))
    probabilities = np.concatenate(list(predict(student.weights, lesson.dev.texts)))
    assert student.dev_accuracy == (probabilities.argmax(1) == lesson.dev.gold).mean()
    loss = -np.log(probabilities[np.arange(90), lesson.dev.gold]).mean()
    assert student.dev_loss == pytest.approx(loss, abs=1e-5)
    assert student.history[student.epoch - 1] == (student.dev_accuracy, student.dev_loss)
    assert student.dev_accuracy == max(accuracy for accuracy, _ in student.history)


def test_one_epoch_is_adamw_on_the_papers_loss(lesson):
    """Against torch's AdamW, torch's losses and a network that is asked for one student."""
    temperature, weight = 2.0, 3.0
    setting = Setting(5, soft_weight=weight, distillation_temperature=temperature)
    (student,) = lesson.train(setting, epochs=1, word_dropout=0.0)
    sizes = layout(lesson.shape, lesson.vocabulary.size, 2)
    flat = initial(sizes, 5)[None].requires_grad_()
    given = replace(lesson.training, epochs=1, word_dropout=0.0)
    optimizer = torch.optim.AdamW([flat], lr=given.learning_rate, weight_decay=given.weight_decay)
    texts, teacher = lesson.data.texts, torch.from_numpy(lesson.data.probabilities).float()
    gold = torch.from_numpy(lesson.data.gold)
    plan = list(module._batches(texts, 5, None, given, 0))
    assert sorted(np.concatenate([rows for rows, _ in plan])) == list(range(300))
    for step, (rows, _) in enumerate(plan):
        for group in optimizer.param_groups:
            group["lr"] = given.learning_rate * (1 - step / len(plan))
        bags = texts.bags(rows, overlap=True)
        (found,) = logits(unflatten(flat, sizes), *(part[None] for part in bags.parts))
        hard = torch.nn.functional.cross_entropy(found, gold[rows])
        softened = (teacher[rows].log() / temperature).softmax(-1)
        soft = torch.nn.functional.cross_entropy(found / temperature, softened)
        optimizer.zero_grad()
        (hard + weight * temperature**2 * soft).backward()
        optimizer.step()
    for name, part in unflatten(flat.detach(), sizes).items():
        np.testing.assert_allclose(student.weights[name], part[0].numpy(), atol=TOLERANCE)


def test_a_student_of_the_teacher_alone_follows_it_against_the_gold_labels(lesson):
    against = replace(lesson.data, probabilities=np.where(np.eye(2)[1 - lesson.data.gold] == 1, 0.9, 0.1))
    (student,) = lesson.train(Setting(0, soft_weight=1.0, hard=False), data=against, epochs=8, patience=20)
    assert student.history[-1][0] < 0.1
    assert student.dev_accuracy == max(accuracy for accuracy, _ in student.history)


def test_the_gold_labels_of_a_student_without_them_do_not_count(lesson):
    setting = Setting(0, soft_weight=1.0, hard=False)
    hidden = replace(lesson.data, gold=np.full(300, -1))
    (one,), (other,) = lesson.train(setting, epochs=1), lesson.train(setting, data=hidden, epochs=1)
    np.testing.assert_array_equal(one.weights["words"], other.weights["words"])


def test_only_where_right_listens_to_no_row_where_the_teacher_is_wrong(lesson):
    assert lesson.data.probabilities is not None
    wrong = lesson.data.probabilities.argmax(1) != lesson.data.gold
    assert wrong.any()
    silenced = lesson.data.probabilities.copy()
    silenced[wrong] = np.nan  # a teacher that says nothing
    careful = Setting(0, soft_weight=1.0, only_where_right=True)
    (one,) = lesson.train(careful, epochs=1)
    (other,) = lesson.train(Setting(0, soft_weight=1.0), data=replace(lesson.data, probabilities=silenced), epochs=1)
    np.testing.assert_allclose(one.weights["words"], other.weights["words"], atol=1e-6)


def test_lambda_that_ends_at_0_ends_there():
    setting = Setting(0, soft_weight=4.0, soft_weight_end=0.0)
    assert [module._soft_weight(setting, epoch, 5) for epoch in range(5)] == [4.0, 3.0, 2.0, 1.0, 0.0]
    assert module._soft_weight(Setting(0, soft_weight=4.0), 4, 5) == 4.0


def test_more_rows_without_gold_labels_teach_by_their_probabilities(lesson):
    """Ten labeled rows and the teacher's word for the rest do better than the ten alone."""
    few = replace(lesson.data, gold=np.where(np.arange(300) < 10, lesson.data.gold, -1))
    alone = Setting(0, rows=tuple(range(10)))
    distilled, undistilled = lesson.train(Setting(0, soft_weight=1.0), alone, data=few, epochs=12, patience=20)
    assert distilled.dev_accuracy > undistilled.dev_accuracy + 0.1


def test_progress_counts_up_to_all_epochs(lesson):
    seen = []
    module.train_students(
        lesson.data,
        lesson.dev,
        [Setting(0)],
        lesson.vocabulary,
        lesson.shape,
        lesson.training,
        num_classes=2,
        progress=lambda done, total, note: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (Setting(0, soft_weight=-1.0), "lambda is a number from 0 up"),
        (Setting(0, soft_weight=float("nan")), "lambda is a number from 0 up"),
        (Setting(0, soft_weight=1.0, distillation_temperature=0.0), "must be above 0"),
        (Setting(0, hard=False), "teaches nothing"),
        (Setting(0, rows=()), "0 to 299"),
        (Setting(0, rows=(300,)), "0 to 299"),
    ],
)
def test_a_setting_out_of_range_is_refused(lesson, setting, said):
    with pytest.raises(ConfigError, match=said):
        lesson.train(setting)


def test_arrays_that_do_not_fit_are_refused(lesson):
    with pytest.raises(ConfigError, match="needs a teacher's probabilities"):
        lesson.train(Setting(0, soft_weight=1.0), data=replace(lesson.data, probabilities=None))
    with pytest.raises(DataError, match="300 training texts with 299 labels"):
        lesson.train(Setting(0), data=replace(lesson.data, gold=lesson.data.gold[1:]))
    with pytest.raises(DataError, match=r"shape \(300, 1\)"):
        lesson.train(Setting(0), data=replace(lesson.data, probabilities=np.ones((300, 1))))
    with pytest.raises(DataError, match="class 5"):
        lesson.train(Setting(0), data=replace(lesson.data, gold=np.full(300, 5)))
    empty = TinyRows(EncodedRows([], lesson.vocabulary), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="0 training texts"):
        lesson.train(Setting(0), data=empty)
    with pytest.raises(DataError, match="every dev row"):
        replace(lesson, dev=replace(lesson.dev, gold=-np.ones(90, np.int64))).train(Setting(0))
