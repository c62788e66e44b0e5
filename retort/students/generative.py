"""Generative students, which write the label: encoder-decoders (`seq2seq`) and decoder-only models (`causal`)."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from retort.config import CausalConfig, DistillationConfig, LoraConfig, Seq2SeqConfig, TrainingConfig
from retort.errors import ConfigError
from retort.io.batched import batched
from retort.models.device import Device, place_to_predict
from retort.models.weights import Weights
from retort.problems import Problem
from retort.problems.base import Scale, spread
from retort.problems.chat import Chat
from retort.problems.turns import Message, plain, shortened
from retort.records.base import ParseFailure, Progress
from retort.students.architectures import (
    START,
    check_architecture,
    check_vocabulary,
    end_of,
    limits_of,
    loaded,
    table_of,
    vocabulary_size,
    with_adapters,
    with_new_decoder,
)
from retort.students.base import Checkpoint, Outcome, Rows, TrainingResult, TrainingRow
from retort.students.batching import WINDOW_ROWS
from retort.students.chat_templates import templated
from retort.students.decoding import STEP_SCALE, Request, Vocabulary, decode
from retort.students.encoder import as_config_error, use_fused_attention
from retort.students.generative_data import (
    CausalTrainingData,
    Pair,
    Seq2SeqTrainingData,
    TrainingPairs,
    keeps_packed_rows_apart,
)
from retort.students.grammar import Grammar
from retort.students.targets import ClassTarget, Target, TextTarget, Written
from retort.students.token_distillation import Listed, distillation_target
from retort.students.training import fit, frozen

_NOTES = "student.json"
_CHUNK_ROWS = 1024
"""Training rows that are tokenized together, which keeps the fast tokenizer busy and memory bounded."""
RATIONALE_MARK = "Why? "
"""Stands before a text whose rationale is to be written, not its label."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What a trained student stores beside its weights, as `student.json`."""

    kind: str
    target: str
    classes: tuple[str, ...]
    """For `target: classes`, in the order of their token ids; else empty."""
    first: int
    """Token id of the first class."""
    most: int
    """Maximum number of target tokens."""
    longest: int | None
    """Maximum number of source tokens; None: unlimited."""


class GenerativeStudent:
    """A model with its tokenizer and the form of its labels."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        problem: Problem,
        notes: Notes,
        max_length: int,
        *,
        cuts: bool = False,
        lora: LoraConfig | None = None,
    ) -> None:
        self.model, self.tokenizer, self.notes = model, tokenizer, notes
        self._problem, self._cuts, self._lora = problem, cuts, lora
        self._max_length = min(max_length, notes.longest or max_length)
        self.target: Target
        if notes.target == "classes":
            self.target = ClassTarget(problem, notes.classes, notes.first, notes.most)
        else:
            self.target = TextTarget(problem, tokenizer, end_of(tokenizer), notes.most)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def num_logits(self) -> int:
        """Size of the model's vocabulary, including ids that only pad it."""
        return int(table_of(self.model).num_embeddings)

    @property
    def start(self) -> int | None:
        """The decoder's start token; None for decoder-only models, which start with the prompt."""
        return None if self.notes.kind == "causal" else int(self.model.config.decoder_start_token_id)

    @property
    def vocabulary(self) -> Vocabulary:
        if isinstance(self.target, ClassTarget):
            return Vocabulary(self._pad, None, self.target.columns)
        return Vocabulary(self._pad, self.target.end)

    @cached_property
    def _grammar(self) -> Grammar | None:
        """None if the tokenizer's tokens do not map to bytes."""
        try:
            return Grammar(self.tokenizer, end=end_of(self.tokenizer), num_logits=self.num_logits)
        except ValueError:
            return None

    @property
    def _pad(self) -> int:
        """Token id that fills up sources and targets."""
        return int(self.tokenizer.pad_token_id or 0)

    def continue_from(self, folder: Path) -> bool:
        """See `Student.continue_from`. The head is always included, because classes are part of the vocabulary."""
        other = load_generative_student(folder, self._max_length, self._problem)
        theirs, ours = other.model.state_dict(), self.model.state_dict()
        same = {name: tensor.shape for name, tensor in theirs.items()} == {name: t.shape for name, t in ours.items()}
        what = "architecture" if not same else "vocabulary"
        if (
            not same
            or other.notes.classes != self.notes.classes
            or (other.tokenizer.get_vocab() != self.tokenizer.get_vocab())
        ):
            raise ConfigError(
                f"student.warm_start: the champion has another {what} than the student of this run, so its weights are "
                "no start; give the champion's student, or warm_start: false"
            )
        self.model.load_state_dict(theirs)
        return True

    def train(
        self,
        rows: Rows,
        training: TrainingConfig,
        *,
        seed: int,
        device: Device,
        micro_batches: int = 1,
        checkpoint: Checkpoint | None = None,
        progress: Progress = lambda done, total, note: None,
        held_out: Rows = (),
    ) -> TrainingResult:
        """See `Student.train`. Embeddings are frozen only if encoder and decoder do not share them.

        With `training.distillation`, `counts["distilled"]` is the number of rows trained on the teacher's token
        probabilities; with `training.rationale_weight`, `counts["rationales"]` that of the rows with a rationale.
        Raises ConfigError for labels that are too long or that the tokenizer cannot represent.
        """
        pairs, counts = self._pairs(rows, distills=training.distillation is not None)
        if training.rationale_weight:
            reasoned, reasoned_counts = self._rationale_pairs(rows, pairs, training.rationale_weight)
            pairs.extend(reasoned)
            counts |= reasoned_counts
        held_out_pairs, _ = self._pairs(held_out, distills=training.distillation is not None)
        trainee = self.model if self._lora is None else with_adapters(self.model, self._lora)
        with frozen(self._separate_embeddings() if training.freeze_embeddings else []):
            history = fit(
                trainee,
                self._training_data(trainee, pairs, training.distillation),
                training,
                seed=seed,
                device=device,
                micro_batches=micro_batches,
                checkpoint=checkpoint,
                progress=progress,
                held_out=self._training_data(trainee, held_out_pairs, training.distillation)
                if held_out_pairs
                else None,
            )
        if self._lora is not None:
            self.model = trainee.merge_and_unload()  # type: ignore[operator]
        return TrainingResult(history, counts)

    def _training_data(
        self, trainee: torch.nn.Module, pairs: TrainingPairs, distillation: DistillationConfig | None
    ) -> Seq2SeqTrainingData | CausalTrainingData:
        columns, pad = self.vocabulary.columns, self._pad
        if self.start is not None:
            return Seq2SeqTrainingData(
                trainee, pairs, pad=pad, start=self.start, columns=columns, distillation=distillation
            )
        packs = keeps_packed_rows_apart(self.model)
        return CausalTrainingData(trainee, pairs, pad=pad, columns=columns, packs=packs, distillation=distillation)

    def _separate_embeddings(self) -> list[torch.nn.Module]:
        if not isinstance(self.model, EncoderDecoderModel):
            return []
        return [table_of(self.model)]

    def predict(
        self,
        texts: Iterable[str],
        *,
        device: Device,
        total: int,
        batch_tokens: int = 2048,
        progress: Progress = lambda done, total, note: None,
    ) -> Iterator[Outcome]:
        """See `Student.predict`. Text is first generated without constraints; only what is not a legal label is
        generated again under the problem's grammar. Where greedy decoding gives a legal label, the grammar would not
        change it, so most rows do not pay for it. Progress notes count the texts that the grammar could not cover.
        """
        place_to_predict(self.model, device)
        done = free = 0
        for window in batched(texts, WINDOW_ROWS):
            requests = self.requests(window)
            written = self._written(requests, device, batch_tokens)
            outcomes = [self.target.read(text, one) for text, one in zip(window, written, strict=True)]
            again, beyond = self._rewritten(window, requests, outcomes, device, batch_tokens)
            yield from (again.get(place, outcome) for place, outcome in enumerate(outcomes))
            done, free = done + len(window), free + beyond
            progress(done, total, f"rows, {free} of them beyond the problem's grammar" if free else "rows")

    def _written(
        self, requests: Sequence[Request], device: Device, batch_tokens: int, grammar: Grammar | None = None
    ) -> list[Written]:
        return decode(
            self.model,
            requests,
            self.vocabulary,
            device=device,
            batch_tokens=batch_tokens * STEP_SCALE[device.name],
            start=self.start,
            grammar=grammar,
        )

    def _rewritten(
        self,
        texts: list[str],
        requests: list[Request],
        outcomes: list[Outcome],
        device: Device,
        batch_tokens: int,
    ) -> tuple[dict[int, Outcome], int]:
        """Generates illegal outcomes again under the grammar. Returns the new outcomes by index, and how many texts the
        grammar could not cover. A mended label is kept if the constrained text does not end within the limit."""
        if isinstance(self.target, ClassTarget):
            return {}, 0
        illegal = [place for place, one in enumerate(outcomes) if isinstance(one, ParseFailure) or one.is_repaired]
        grammars = ((place, self._problem.grammar(texts[place])) for place in illegal)
        requested = {place: replace(requests[place], grammar=text) for place, text in grammars if text is not None}
        if not requested or self._grammar is None:
            return {}, len(requested)
        written = self._written(list(requested.values()), device, batch_tokens, self._grammar)
        again = {
            place: self.target.read(texts[place], one)
            for place, one in zip(requested, written, strict=True)
            if one.is_guided and (one.is_finished or isinstance(outcomes[place], ParseFailure))
        }
        return again, sum(not one.is_guided for one in written)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / _NOTES).write_text(json.dumps(asdict(self.notes)), encoding="utf-8")

    def requests(self, texts: Sequence[str]) -> list[Request]:
        target = self.target
        return [
            Request(source, target.num_tokens(text), target.legal(text) if isinstance(target, ClassTarget) else None)
            for text, (source, _) in zip(texts, self._sources(texts), strict=True)
        ]

    def _sources(self, texts: Sequence[str]) -> list[tuple[NDArray[np.int64], bool]]:
        """Input token ids of each text, and whether the text was truncated."""
        if isinstance(self._problem, Chat):
            return [self._conversation(self._problem.turns(text)) for text in texts]
        if not texts:
            return []
        is_prompt = self.start is None
        rows = self.tokenizer(list(texts), add_special_tokens=not is_prompt, truncation=False)["input_ids"]
        limit = self._max_length
        if not is_prompt:
            cut = self.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
            pairs = zip(cut, rows, strict=True)
            return [(np.asarray(short, dtype=np.int64), len(row) > limit) for short, row in pairs]
        mark = _separator(self.tokenizer)
        limit -= len(mark)
        return [(np.asarray([*row[:limit], *mark], dtype=np.int64), len(row) > limit) for row in rows]

    def _conversation(self, turns: Sequence[Message]) -> tuple[NDArray[np.int64], bool]:
        """Like `_sources`. Of a conversation that is too long the oldest turns are left out, not the system's; of a
        last turn that is too long by itself, its beginning."""
        for kept in shortened(turns):
            ids = self._turn_ids(kept)
            if len(ids) <= self._max_length:
                return np.asarray(ids, dtype=np.int64), len(kept) < len(turns)
        return np.asarray(ids[-self._max_length :], dtype=np.int64), True

    def _turn_ids(self, turns: Sequence[Message]) -> list[int]:
        """A decoder reads a conversation as its chat template writes it, up to where the assistant's turn begins."""
        is_prompt = self.start is None
        if is_prompt and getattr(self.tokenizer, "chat_template", None):
            return list(self.tokenizer(templated(self.tokenizer, turns), add_special_tokens=False)["input_ids"])
        mark = _separator(self.tokenizer) if is_prompt else []
        return [*self.tokenizer(plain(turns), add_special_tokens=not is_prompt)["input_ids"], *mark]

    def _pairs(self, rows: Rows, *, distills: bool) -> tuple[TrainingPairs, dict[str, int]]:
        """The rows with the labels as their targets, and how many of them were changed, by reason."""
        is_soft = isinstance(self.target, ClassTarget) and (
            self._learns_spreads or any(row.probabilities is not None for row in rows)
        )
        counts = {"cut": 0, "long_targets": 0, **({"distilled": 0} if distills else {})}
        pairs, most, longest = TrainingPairs(), self.notes.most, 0
        for chunk in batched(rows, _CHUNK_ROWS):
            texts, labels = [row.text for row in chunk], [row.label for row in chunk]
            distilled = [self._distillation_target(row) if distills else None for row in chunk]
            written, sources = self.target.write(texts, labels), self._sources(texts)
            targets = [one[0] if one else own for one, own in zip(distilled, written, strict=True)]
            if longest == 0:
                self._check_readable(chunk, targets)
            longest = max(longest, *map(len, targets))
            counts["cut"] += sum(is_cut for _, is_cut in sources)
            counts["long_targets"] += sum(len(target) > most for target in targets)
            if distills:
                counts["distilled"] += sum(one is not None for one in distilled)
            for row, (source, _), target, one in zip(chunk, sources, targets, distilled, strict=True):
                if target:
                    soft = self._soft(row, target)[:most] if is_soft else None
                    pairs.append(Pair(source, np.asarray(target[:most], dtype=np.int64), soft, one[1] if one else None))
        self._check_lengths(counts["long_targets"], len(rows), longest)
        return pairs, counts

    def _rationale_pairs(
        self, rows: Rows, labels: TrainingPairs, weight: float
    ) -> tuple[TrainingPairs, dict[str, int]]:
        """The rows that have a rationale, with that as their target. However long rationales are, all of them together
        count `weight` and all `labels` 1 - `weight`. A rationale that is too long is cut, as it need not be whole."""
        pairs, most, num_long = TrainingPairs(), self.notes.most, 0
        known = ((row.text, row.rationale) for row in rows if row.rationale is not None)
        for chunk in batched(known, _CHUNK_ROWS):
            sources = self._sources([f"{RATIONALE_MARK}{text}" for text, _ in chunk])
            written = self.tokenizer([rationale for _, rationale in chunk], add_special_tokens=False)["input_ids"]
            for (source, _), ids in zip(sources, written, strict=True):
                target = [*ids, end_of(self.tokenizer)]
                num_long += len(target) > most
                pairs.append(Pair(source, np.asarray(target[:most], dtype=np.int64)))
        if not len(pairs):
            return pairs, {"rationales": 0}
        num_label_tokens, num_tokens = (int(own.lengths[:, 1].sum()) for own in (labels, pairs))
        pairs.weigh(weight / (1 - weight) * num_label_tokens / num_tokens)
        return pairs, {"rationales": len(pairs), "long_rationales": num_long}

    def _distillation_target(self, row: TrainingRow) -> tuple[list[int], Listed] | None:
        if row.top is None or not isinstance(self.target, TextTarget):
            return None
        return distillation_target(self.target, row.text, row.label, row.top, self.num_logits)

    @property
    def _learns_spreads(self) -> bool:
        return isinstance(self.target, ClassTarget) and isinstance(self._problem, Scale)

    def _soft(self, row: TrainingRow, target: list[int]) -> NDArray[np.float32]:
        """`(target tokens, classes)`: the row's probabilities, or those that its label stands for."""
        if row.probabilities is not None:
            return row.probabilities
        if self._learns_spreads:
            return spread(self._problem, row.text, row.label).astype(np.float32)
        places = np.asarray(target) - self.notes.first
        one_hot: NDArray[np.float32] = np.eye(len(self.notes.classes), dtype=np.float32)[places]
        return one_hot

    def _check_lengths(self, num_long: int, num_labels: int, longest: int) -> None:
        if num_long and not self._cuts:
            share = 100 * num_long / num_labels
            raise ConfigError(
                f"student.max_target_length: {num_long} of {num_labels} labels ({share:.1f} %) have more than "
                f"{self.notes.most} tokens, the longest {longest}; raise it, or long_targets: cut"
            )

    def _check_readable(self, rows: Sequence[TrainingRow], targets: list[list[int]]) -> None:
        """Raises ConfigError if none of the first 100 labels survives the tokenizer: none could then be learned."""
        if not isinstance(self.target, TextTarget):
            return
        first = list(zip(rows, targets, strict=True))[:100]
        if first and not any(self.target.keeps(row.text, row.label, target) for row, target in first):
            row, target = first[0]
            raise ConfigError(
                f"student.target = 'text': the tokenizer of student.model cannot write the labels: "
                f"'{self._problem.render(row.text, row.label)[:80]}' becomes '{self.target.completion(target)[:80]}'; "
                "use a model whose tokenizer keeps case and signs, or target: classes where the problem has them"
            )


def new_generative_student(
    config: Seq2SeqConfig | CausalConfig, weights: Weights, *, pretrained: bool, problem: Problem
) -> GenerativeStudent:
    """An untrained student with pretrained or random weights. Class tokens and a new decoder are always random, so seed
    torch first.

    Raises ConfigError if the weights cannot be loaded, are of another kind, or do not fit the tokenizer.
    """
    with as_config_error(weights):
        model_config = AutoConfig.from_pretrained(weights.address, revision=weights.revision, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(weights.address, revision=weights.revision, trust_remote_code=False)
    check_architecture(config, model_config)
    form = config.form(has_classes=bool(problem.classes) and not problem.sigmoids)
    classes = problem.classes if form == "classes" else ()
    use_fused_attention(model_config)
    with as_config_error(weights):
        if isinstance(config, Seq2SeqConfig) and config.decoder_layers is not None:
            check_vocabulary(config, tokenizer, model_config.vocab_size)
            encoder = loaded(AutoModel, weights, model_config, pretrained)
            model, first = with_new_decoder(encoder, config.decoder_layers, tokenizer, len(classes)), START + 1
        else:
            auto = AutoModelForCausalLM if isinstance(config, CausalConfig) else AutoModelForSeq2SeqLM
            check_vocabulary(config, tokenizer, vocabulary_size(model_config))
            model = loaded(auto, weights, model_config, pretrained)
            first = table_of(model).num_embeddings
            if classes:
                model.resize_token_embeddings(first + len(classes), mean_resizing=False)
    longest, most = limits_of(config, model.config, tokenizer)
    notes = Notes(config.kind, form, classes, first, most, longest)
    lora, cuts = config.lora if isinstance(config, CausalConfig) else None, config.long_targets == "cut"
    return GenerativeStudent(model, tokenizer, problem, notes, config.training.max_length, cuts=cuts, lora=lora)


def load_generative_student(folder: Path, max_length: int, problem: Problem) -> GenerativeStudent:
    """A trained student, from its saved folder."""
    saved = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
    notes = Notes(**{**saved, "classes": tuple(saved["classes"])})
    auto = AutoModelForCausalLM if notes.kind == "causal" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return GenerativeStudent(model, tokenizer, problem, notes, max_length)


def _separator(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids between prompt and target: a line break, or the end token if the tokenizer has no line break."""
    ids: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return ids or [end_of(tokenizer)]
