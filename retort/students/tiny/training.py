"""Training of many tiny students together in one process, with their weights stacked.

Students are independent: each has its own weights, optimizer state, batches and best epoch, and ends up as if it had
been trained alone, up to rounding. Seeds, lambdas, temperatures and row subsets may all differ. A single student would
spend most of its time launching operations that are too small for the machine.

A batch contains rows of similar length, and the order of lengths depends on the epoch only. So the batches of different
students have a similar number of words at each step, and the stack needs little padding.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.errors import ConfigError, DataError
from retort.records.base import Progress
from retort.students.losses import cross_entropy, scoring_loss
from retort.students.tiny.bags import Bags, EncodedRows, Indices
from retort.students.tiny.network import initial, layout, logits, unflatten
from retort.students.tiny.shape import Setting, TinyRows, TinyShape, TinyTraining, TrainedStudent
from retort.students.tiny.vocabulary import Vocabulary

STACK = 64
"""Maximum number of students trained at once; bounds memory."""

_JITTER_WORDS = 6.0
"""Lengths are perturbed by up to this many words before rows are sorted into batches, so that batches vary."""

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def train_students(
    data: TinyRows,
    dev: TinyRows,
    settings: Sequence[Setting],
    vocabulary: Vocabulary,
    shape: TinyShape,
    training: TinyTraining,
    *,
    num_classes: int,
    progress: Progress = lambda done, total, note: None,
) -> list[TrainedStudent]:
    """Trains one student per setting and returns them in order; `progress` counts epochs of stacks.

    Raises DataError if array shapes do not match, ConfigError if a setting is out of range or needs probabilities that
    are not given.
    """
    _check(data, dev, settings, num_classes)
    rows, judged = _Rows.of(data, shape, num_classes), _Rows.of(dev, shape, num_classes)
    sizes = layout(shape, vocabulary.size, num_classes)
    stacks = list(_stacks(settings, len(data.texts), training.batch_rows))
    trained: dict[int, TrainedStudent] = {}
    for number, members in enumerate(stacks):
        stack = _Stack.new([settings[i] for i in members], sizes)
        for epoch in range(training.epochs):
            _train_epoch(stack, rows, training, epoch)
            stack.judge(judged, epoch + 1)
            progress(number * training.epochs + epoch + 1, len(stacks) * training.epochs, f"{len(stack)} students")
            if epoch + 1 < training.epochs:
                stack = stack.still_learning(epoch + 1, training.patience)
            if not len(stack):
                break
        trained.update(zip(members, stack.results(), strict=True))
    return [trained[i] for i in range(len(settings))]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Training or dev rows, ready to draw batches from."""

    texts: EncodedRows
    overlap: bool
    gold: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    """`(rows, classes)`: the teacher's, NaN for rows without any."""

    @classmethod
    def of(cls, rows: TinyRows, shape: TinyShape, num_classes: int) -> "_Rows":
        probabilities = rows.probabilities
        if probabilities is None:
            probabilities = np.broadcast_to(np.float32(math.nan), (len(rows.gold), num_classes))
        return cls(rows.texts, shape.overlap, rows.gold, np.asarray(probabilities, dtype=np.float32))

    def bags(self, rows: Indices, dropped: NDArray[np.bool_] | None = None) -> Bags:
        return self.texts.bags(rows, overlap=self.overlap, dropped=dropped)

    def targets(self, rows: Indices) -> "_Targets":
        """Of rows `(...)`."""
        gold = torch.from_numpy(self.gold[rows]).long()
        probabilities = torch.from_numpy(self.probabilities[rows])
        has_teacher = (~probabilities.isnan().any(-1)).float()
        right = has_teacher * ((probabilities.argmax(-1) == gold) | (gold < 0))
        return _Targets(gold, probabilities, has_teacher, right)


class _Targets(NamedTuple):
    """What rows teach, `(...)` each."""

    gold: Tensor
    probabilities: Tensor
    """`(..., classes)`: the teacher's, NaN for rows without any."""
    has_teacher: Tensor
    """1 for rows with the teacher's probabilities, else 0."""
    right: Tensor
    """1 where the teacher also agrees with the gold label or there is none, else 0."""


@dataclass(frozen=True, slots=True)
class _Best:
    epoch: int
    accuracy: float
    loss: float
    flat: Tensor


@dataclass(slots=True)
class _Stack:
    """The students that are still being trained, with the results of those that have stopped."""

    settings: list[Setting]
    sizes: dict[str, tuple[int, ...]]
    flat: Tensor
    """All weights, `(students, parameters)`."""
    moments: tuple[Tensor, Tensor]
    """Adam's first and second moments, shaped like `flat`."""
    places: list[int]
    """Each student's index in the initial stack."""
    best: dict[int, _Best]
    """The best epoch by place, including students that have stopped."""
    histories: dict[int, list[tuple[float, float]]]
    """(Dev accuracy, dev loss) of each epoch, by place."""
    begun: list[Setting]
    """The settings of the initial stack, by place."""
    steps: int = 0

    @classmethod
    def new(cls, settings: list[Setting], sizes: dict[str, tuple[int, ...]]) -> "_Stack":
        starts = {seed: initial(sizes, seed) for seed in {setting.seed for setting in settings}}
        flat = torch.stack([starts[setting.seed] for setting in settings])
        places = list(range(len(settings)))
        moments = torch.zeros_like(flat), torch.zeros_like(flat)
        return cls(settings, sizes, flat, moments, places, {}, {place: [] for place in places}, settings)

    def __len__(self) -> int:
        return len(self.settings)

    def step(self, loss: Tensor, leaf: Tensor, rate: float, decay: float) -> None:
        """One AdamW step (Loshchilov and Hutter 2019). The gradient of the summed losses is each student's own."""
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = leaf.grad
        assert gradient is not None
        self.steps += 1
        first, second = self.moments
        first.lerp_(gradient, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        scale = (second / (1 - _BETAS[1] ** self.steps)).sqrt_().add_(_EPSILON)
        self.flat.mul_(1 - rate * decay).addcdiv_(first, scale, value=-rate / (1 - _BETAS[0] ** self.steps))

    @torch.no_grad()
    def judge(self, dev: _Rows, epoch: int) -> None:
        """Measures dev accuracy and loss, and stores the weights of students with a new best accuracy (ties: loss)."""
        weights = unflatten(self.flat, self.sizes)
        right, lost = torch.zeros(len(self)), torch.zeros(len(self))
        for rows in np.array_split(np.arange(len(dev.gold)), math.ceil(len(dev.gold) / 256)):
            bags = dev.bags(rows)
            found = logits(weights, *(part.expand(len(self), *part.shape) for part in bags.parts))
            gold = dev.targets(rows).gold.expand(len(self), -1)
            right += (found.argmax(-1) == gold).sum(1)
            lost += cross_entropy(found.flatten(0, 1), gold.flatten()).view(len(self), -1).sum(1)
        for index, place in enumerate(self.places):
            accuracy, loss = float(right[index]) / len(dev.gold), float(lost[index]) / len(dev.gold)
            self.histories[place].append((accuracy, loss))
            before = self.best.get(place)
            if before is None or (accuracy, -loss) > (before.accuracy, -before.loss):
                self.best[place] = _Best(epoch, accuracy, loss, self.flat[index].clone())

    def still_learning(self, epoch: int, patience: int) -> "_Stack":
        """The stack without the students that have not improved for `patience` epochs."""
        kept = [index for index, place in enumerate(self.places) if epoch - self.best[place].epoch < patience]
        if len(kept) == len(self):
            return self
        first, second = (moment[kept] for moment in self.moments)
        return replace(
            self,
            settings=[self.settings[index] for index in kept],
            flat=self.flat[kept],
            moments=(first, second),
            places=[self.places[index] for index in kept],
        )

    def results(self) -> list[TrainedStudent]:
        """The results of all students of the initial stack."""
        students = []
        for place, setting in enumerate(self.begun):
            best = self.best[place]
            weights = {name: part[0].numpy().copy() for name, part in unflatten(best.flat[None], self.sizes).items()}
            history = self.histories[place]
            students.append(TrainedStudent(setting, weights, best.epoch, best.accuracy, best.loss, history))
        return students


def _train_epoch(stack: _Stack, rows: _Rows, training: TinyTraining, epoch: int) -> None:
    courses = list(dict.fromkeys((setting.seed, setting.rows) for setting in stack.settings))
    course_of = torch.tensor([courses.index((setting.seed, setting.rows)) for setting in stack.settings])
    plans = [_batches(rows.texts, seed, subset, training, epoch) for seed, subset in courses]
    temperatures = torch.tensor([setting.distillation_temperature for setting in stack.settings])
    weight = torch.tensor([_soft_weight(setting, epoch, training.epochs) for setting in stack.settings])
    hard = torch.tensor([setting.hard for setting in stack.settings])[:, None]
    only_where_right = torch.tensor([setting.only_where_right for setting in stack.settings])[:, None]
    steps = _num_batches(stack.settings[0], len(rows.texts), training.batch_rows)
    for step, batches in enumerate(zip(*plans, strict=True)):
        index, is_real = _side_by_side([rows_of for rows_of, _ in batches])
        real = is_real[course_of]
        bags = _stacked_bags([rows.bags(*batch) for batch in batches], index.shape[1])
        leaf = stack.flat.detach().requires_grad_()
        found = logits(unflatten(leaf, stack.sizes), *(part[course_of] for part in bags))
        gold, probabilities, has_teacher, right = (part[course_of] for part in rows.targets(index))
        gold = gold.masked_fill(~(hard & real), -1)
        soft_weights = torch.where(only_where_right, right, has_teacher) * real
        losses = scoring_loss(found, gold, probabilities, weight, temperatures, soft_weights)
        rate = training.learning_rate * (1 - (epoch + step / steps) / training.epochs)
        stack.step((losses.sum(1) / real.sum(1)).sum(), leaf, rate, training.weight_decay)


def _batches(
    texts: EncodedRows, seed: int, subset: tuple[int, ...] | None, training: TinyTraining, epoch: int
) -> Iterator[tuple[Indices, NDArray[np.bool_]]]:
    """Yield the batches of one student's epoch, which are independent of the other students in the stack: row indices
    `(batch,)`, and which of their words are dropped, `(batch, longest row of all)`."""
    generator = np.random.default_rng([seed, epoch])
    ordered = _by_length(texts, subset, generator)
    starts = range(0, len(ordered), training.batch_rows)
    for place in np.random.default_rng(epoch).permutation(len(starts)).tolist():
        batch = ordered[starts[place] : starts[place] + training.batch_rows].astype(np.int64)
        yield batch, generator.random((len(batch), texts.longest), dtype=np.float32) < training.word_dropout


def _by_length(texts: EncodedRows, subset: tuple[int, ...] | None, generator: np.random.Generator) -> NDArray[np.int32]:
    """The rows of an epoch, sorted by their perturbed lengths; there are fewer than 2^31."""
    lengths = texts.lengths if subset is None else texts.lengths[list(subset)]
    keys = lengths + generator.uniform(-_JITTER_WORDS, _JITTER_WORDS, len(lengths))
    order = np.argsort(keys, kind="stable").astype(np.int32)
    return order if subset is None else np.array(subset, dtype=np.int32)[order]


def _side_by_side(batches: Sequence[Indices]) -> tuple[Indices, Tensor]:
    """Pads batches of similar size with their first row: row indices and a mask of real rows, `(batches, most)`."""
    most = max(map(len, batches))
    index = np.stack([np.append(batch, np.repeat(batch[:1], most - len(batch))) for batch in batches])
    real = np.arange(most) < np.array([len(batch) for batch in batches])[:, None]
    return index, torch.from_numpy(real)


def _stacked_bags(bags: Sequence[Bags], num_rows: int) -> tuple[Tensor, ...]:
    """The parts of `Bags`, stacked on a leading axis. Padding words occur in no row; padding rows contain the first
    word, because a row needs at least one."""
    most = max(len(one.word_ids) for one in bags)

    def wider(part: Tensor, *sides: int) -> Tensor:
        return torch.nn.functional.pad(part, sides)

    spare = [most - len(one.word_ids) for one in bags]
    words = torch.stack([wider(one.word_ids, 0, more) for one, more in zip(bags, spare, strict=True)])
    features = torch.stack([wider(one.features, 0, 0, 0, more) for one, more in zip(bags, spare, strict=True)])
    counts = torch.stack(
        [wider(one.counts, 0, more, 0, num_rows - len(one.counts)) for one, more in zip(bags, spare, strict=True)]
    )
    counts[..., 0] += counts.sum(-1) == 0
    longest = max(one.members.shape[1] for one in bags)
    members = torch.stack([_longer(one.members, longest, num_rows) for one in bags])
    return words, features, counts, members


def _longer(members: Tensor, longest: int, num_rows: int) -> Tensor:
    """Pads each row with its first word, and the batch with rows of word kind 0: `(num_rows, longest)`."""
    filled = torch.cat([members, members[:, :1].expand(-1, longest - members.shape[1])], dim=1)
    return torch.nn.functional.pad(filled, (0, 0, 0, num_rows - len(filled)))


def _soft_weight(setting: Setting, epoch: int, epochs: int) -> float:
    if setting.soft_weight_end is None or epochs == 1:
        return setting.soft_weight
    share = epoch / (epochs - 1)
    return (1 - share) * setting.soft_weight + share * setting.soft_weight_end


def _stacks(settings: Sequence[Setting], num_rows: int, batch_rows: int) -> Iterator[list[int]]:
    """Indices of settings that are trained together: at most STACK, with the same number of steps per epoch."""
    by_steps: dict[int, list[int]] = defaultdict(list)
    for place, setting in enumerate(settings):
        by_steps[_num_batches(setting, num_rows, batch_rows)].append(place)
    for places in by_steps.values():
        yield from (places[start : start + STACK] for start in range(0, len(places), STACK))


def _num_batches(setting: Setting, num_rows: int, batch_rows: int) -> int:
    """Steps of an epoch."""
    return math.ceil((num_rows if setting.rows is None else len(setting.rows)) / batch_rows)


def _check(data: TinyRows, dev: TinyRows, settings: Sequence[Setting], num_classes: int) -> None:
    for name, rows in (("training", data), ("dev", dev)):
        if not len(rows.texts) or len(rows.texts) != len(rows.gold):
            raise DataError(
                f"{len(rows.texts)} {name} texts with {len(rows.gold)} labels: both must be as many, and some"
            )
        if rows.gold.max() >= num_classes:
            raise DataError(f"a {name} row has class {rows.gold.max()}; allowed are 0 to {num_classes - 1}")
    if (dev.gold < 0).any():
        raise DataError("every dev row needs a gold label: it is what the best epoch is chosen by")
    given = data.probabilities
    if given is not None and given.shape != (len(data.texts), num_classes):
        raise DataError(f"probabilities of shape {given.shape} for {len(data.texts)} rows of {num_classes} classes")
    for setting in settings:
        _check_setting(setting, len(data.texts), has_teacher=given is not None)


def _check_setting(setting: Setting, num_rows: int, *, has_teacher: bool) -> None:
    ends = (setting.soft_weight, setting.soft_weight_end or 0.0)
    if not all(0 <= weight < math.inf for weight in ends):
        raise ConfigError(f"soft_weight = {ends}: lambda is a number from 0 up")
    if not 0 < setting.distillation_temperature < math.inf:
        raise ConfigError(f"distillation_temperature = {setting.distillation_temperature}: must be above 0")
    if max(ends) > 0 and not has_teacher:
        raise ConfigError(f"soft_weight = {setting.soft_weight} needs a teacher's probabilities, and there are none")
    if not setting.hard and max(ends) == 0:
        raise ConfigError("soft_weight = 0 without gold labels teaches nothing: it must be above 0")
    if setting.rows is not None and not (setting.rows and min(setting.rows) >= 0 and max(setting.rows) < num_rows):
        raise ConfigError(f"a student's rows must be some of 0 to {num_rows - 1}")
