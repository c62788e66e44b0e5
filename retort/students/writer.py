"""Students that write the label: encoder-decoders (`seq2seq`) and decoders only (`causal`)."""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from retort.config import CausalConfig, LoraConfig, Seq2SeqConfig, TrainingConfig
from retort.errors import ConfigError
from retort.problems import Problem
from retort.students.base import Checkpoint, Outcome, Progress, Taught, TrainingRow
from retort.students.decoding import Request, Vocabulary, decode
from retort.students.device import Device
from retort.students.encoder import as_config_error, use_fused_attention
from retort.students.prediction import WINDOW_ROWS
from retort.students.targets import ClassTarget, Target, TextTarget
from retort.students.training import fit, frozen
from retort.students.weights import Weights
from retort.students.writing import CausalLessons, Pair, Seq2SeqLessons, keeps_packed_rows_apart

_NOTES = "student.json"
_START = 0
"""Token id of a new decoder that writes classes: before the first of them, and padding."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What a trained student must remember beside its weights."""

    kind: str
    target: str
    classes: tuple[str, ...]
    """Where it writes them, in the order of their token ids."""
    first: int
    """The token id of the first class."""
    most: int
    """Tokens that it writes at most."""
    longest: int | None
    """Tokens that it can read; None: any number."""


class Writer:
    """A model with its tokenizer, and how its labels are written."""

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
    def start(self) -> int | None:
        """The decoder's first token; None without an encoder, where the prompt comes first."""
        return None if self.notes.kind == "causal" else int(self.model.config.decoder_start_token_id)

    @property
    def vocabulary(self) -> Vocabulary:
        if isinstance(self.target, ClassTarget):
            return Vocabulary(self._pad, None, self.target.columns)
        return Vocabulary(self._pad, self.target.end)

    @property
    def _pad(self) -> int:
        """Of sources, and of a decoder's tokens that nobody reads."""
        return int(self.tokenizer.pad_token_id or 0)

    def continue_from(self, folder: Path) -> bool:
        """See `Student.continue_from`: all weights or none, since the classes are among the tokens."""
        other = load_writer(folder, self._max_length, self._problem)
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
        rows: Sequence[TrainingRow],
        training: TrainingConfig,
        *,
        seed: int,
        device: Device,
        micro_batches: int = 1,
        checkpoint: Checkpoint | None = None,
        progress: Progress = lambda done, total, note: None,
    ) -> Taught:
        """See `Student.train`. Embeddings are frozen only where the decoder has its own.

        Raises ConfigError for labels that are longer than allowed, or that the tokenizer cannot write.
        """
        pairs, counts = self._pairs(rows)
        self.model.to(device.name)  # type: ignore[arg-type]
        learner = self.model if self._lora is None else _with_adapters(self.model, self._lora)
        with frozen(self._separate_embeddings() if training.freeze_embeddings else []):
            history = fit(
                learner,
                self._lessons(learner, pairs),
                training,
                seed=seed,
                device=device,
                micro_batches=micro_batches,
                checkpoint=checkpoint,
                progress=progress,
            )
        if self._lora is not None:
            self.model = learner.merge_and_unload()  # type: ignore[operator]
        return Taught(history, counts)

    def _lessons(self, learner: torch.nn.Module, pairs: list[Pair]) -> Seq2SeqLessons | CausalLessons:
        columns = self.vocabulary.columns
        if self.start is not None:
            return Seq2SeqLessons(learner, pairs, pad=self._pad, start=self.start, columns=columns)
        return CausalLessons(learner, pairs, pad=self._pad, columns=columns, packs=keeps_packed_rows_apart(self.model))

    def _separate_embeddings(self) -> list[torch.nn.Module]:
        if not isinstance(self.model, EncoderDecoderModel):
            return []
        return [_table(self.model)]

    def predict(
        self,
        texts: Iterable[str],
        *,
        device: Device,
        total: int,
        batch_tokens: int = 4096,
        progress: Progress = lambda done, total, note: None,
    ) -> Iterator[Outcome]:
        """See `Student.predict`."""
        self.model.to(device.name).eval()  # type: ignore[arg-type]
        iterator, done = iter(texts), 0
        while window := list(islice(iterator, WINDOW_ROWS)):
            written = decode(
                self.model,
                self.requests(window),
                self.vocabulary,
                device=device,
                batch_tokens=batch_tokens,
                start=self.start,
            )
            for text, one in zip(window, written, strict=True):
                yield self.target.read(text, one)
            done += len(window)
            progress(done, total, "rows")

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
        """Token ids of each text as the model reads it, and whether it was cut."""
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

    def _pairs(self, rows: Sequence[TrainingRow]) -> tuple[list[Pair], dict[str, int]]:
        texts, labels = [row.text for row in rows], [row.label for row in rows]
        targets, sources, most = self.target.write(texts, labels), self._sources(texts), self.notes.most
        self._check_readable(rows, targets)
        self._check_lengths([len(target) for target in targets])
        is_soft = any(row.probabilities is not None for row in rows)
        pairs = [
            Pair(
                source,
                np.asarray(target[:most], dtype=np.int64),
                self._soft(row, target)[:most] if is_soft else None,
            )
            for row, (source, _), target in zip(rows, sources, targets, strict=True)
            if target
        ]
        counts = {
            "cut": sum(is_cut for _, is_cut in sources),
            "long_targets": sum(len(target) > most for target in targets),
        }
        return pairs, counts

    def _soft(self, row: TrainingRow, target: list[int]) -> NDArray[np.float32]:
        """`(target tokens, classes)`: the row's probabilities, or its label as one-hot ones."""
        if row.probabilities is not None:
            return row.probabilities
        places = np.asarray(target) - self.notes.first
        one_hot: NDArray[np.float32] = np.eye(len(self.notes.classes), dtype=np.float32)[places]
        return one_hot

    def _check_lengths(self, lengths: list[int]) -> None:
        most, long = self.notes.most, [length for length in lengths if length > self.notes.most]
        if long and not self._cuts:
            share = 100 * len(long) / len(lengths)
            raise ConfigError(
                f"student.max_target_length: {len(long)} of {len(lengths)} labels ({share:.1f} %) have more than "
                f"{most} tokens, the longest {max(long)}; raise it, or long_targets: cut"
            )

    def _check_readable(self, rows: Sequence[TrainingRow], targets: list[list[int]]) -> None:
        """Of the first rows: where no label survives the tokenizer, none could ever be written right."""
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


def new_writer(config: Seq2SeqConfig | CausalConfig, weights: Weights, *, pretrained: bool, problem: Problem) -> Writer:
    """Pretrained (or random) weights; tokens for classes, and a new decoder, are random. Seed torch first.

    Raises ConfigError where the weights cannot be loaded, are of another kind, or do not fit the tokenizer.
    """
    with as_config_error(weights):
        model_config = AutoConfig.from_pretrained(weights.address, revision=weights.revision)
        tokenizer = AutoTokenizer.from_pretrained(weights.address, revision=weights.revision)
    _check_architecture(config, model_config)
    form = config.form(has_classes=bool(problem.classes))
    classes = problem.classes if form == "classes" else ()
    use_fused_attention(model_config)
    with as_config_error(weights):
        if isinstance(config, Seq2SeqConfig) and config.decoder_layers is not None:
            _check_vocabulary(config, tokenizer, model_config.vocab_size)
            encoder = _loaded(AutoModel, weights, model_config, pretrained)
            model, first = _pair(encoder, config.decoder_layers, tokenizer, len(classes)), _START + 1
        else:
            auto = AutoModelForCausalLM if isinstance(config, CausalConfig) else AutoModelForSeq2SeqLM
            _check_vocabulary(config, tokenizer, _vocabulary_size(model_config))
            model = _loaded(auto, weights, model_config, pretrained)
            first = _table(model).num_embeddings
            if classes:
                model.resize_token_embeddings(first + len(classes), mean_resizing=False)
    longest, most = _limits(config, model.config, tokenizer)
    notes = Notes(config.kind, form, classes, first, most, longest)
    lora, cuts = config.lora if isinstance(config, CausalConfig) else None, config.long_targets == "cut"
    return Writer(model, tokenizer, problem, notes, config.training.max_length, cuts=cuts, lora=lora)


def load_writer(folder: Path, max_length: int, problem: Problem) -> Writer:
    """A trained student, from its artifact's files."""
    told = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
    notes = Notes(**{**told, "classes": tuple(told["classes"])})
    auto = AutoModelForCausalLM if notes.kind == "causal" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    return Writer(model, AutoTokenizer.from_pretrained(folder), problem, notes, max_length)


def end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Raises ConfigError where the tokenizer has no token that ends a text."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise ConfigError("student.model: its tokenizer has no token that ends a text; use another model")
    return int(end)


def _separator(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Between prompt and target: a line break, or the end of a text where the tokenizer knows none."""
    ids: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return ids or [end_of(tokenizer)]


def _loaded(auto: Any, weights: Weights, config: Any, pretrained: bool) -> PreTrainedModel:
    if not pretrained:
        model: PreTrainedModel = auto.from_config(config)
        return model
    loaded: PreTrainedModel = auto.from_pretrained(
        weights.address, revision=weights.revision, config=config, use_safetensors=True, dtype=torch.float32
    )
    return loaded


def _pair(
    encoder: PreTrainedModel, layers: int, tokenizer: PreTrainedTokenizerBase, num_classes: int
) -> PreTrainedModel:
    """The encoder with a new decoder of its own width: over the classes, or over the tokenizer's vocabulary, whose
    embeddings then begin as the encoder's."""
    width = encoder.config.hidden_size
    heads = getattr(encoder.config, "num_attention_heads", None) or max(1, width // 64)
    size = num_classes + _START + 1 if num_classes else _table(encoder).num_embeddings
    start = _START if num_classes else _first(tokenizer)
    config = BertConfig(
        vocab_size=size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=1024,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=None if num_classes else tokenizer.pad_token_id,
    )
    decoder = BertLMHeadModel(config)
    if not num_classes:
        _table(decoder).weight.data.copy_(_table(encoder).weight.data)
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.decoder_start_token_id = start
    model.config.pad_token_id = tokenizer.pad_token_id or 0
    return model


def _table(model: PreTrainedModel) -> torch.nn.Embedding:
    """The embeddings of tokens that a model reads."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    return embeddings


def _first(tokenizer: PreTrainedTokenizerBase) -> int:
    """What a new decoder begins with."""
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return end_of(tokenizer)


def _check_architecture(config: Seq2SeqConfig | CausalConfig, model_config: Any) -> None:
    """Raises ConfigError that names the kind which suits the model."""
    if model_config.is_encoder_decoder:
        found, right = "an encoder and a decoder", "kind: seq2seq"
    elif type(model_config) in MODEL_FOR_MASKED_LM_MAPPING.keys():  # noqa: SIM118
        found, right = "an encoder only", "kind: token-classification, or seq2seq with decoder_layers"
    elif type(model_config) in MODEL_FOR_CAUSAL_LM_MAPPING.keys():  # noqa: SIM118
        found, right = "a decoder only", "kind: causal"
    else:
        found, right = "none that writes text", "another model"
    wanted = "a decoder only"
    if isinstance(config, Seq2SeqConfig):
        wanted = "an encoder and a decoder" if config.decoder_layers is None else "an encoder only"
        if found == "an encoder and a decoder":
            right = "no decoder_layers"
    if found != wanted:
        raise ConfigError(
            f"student.kind '{config.kind}': '{config.model}' ({model_config.model_type}) is {found}, not {wanted}; use "
            f"{right}"
        )


def _vocabulary_size(model_config: Any) -> int:
    size = getattr(model_config, "vocab_size", None) or model_config.decoder.vocab_size
    return int(size)


def _check_vocabulary(config: Seq2SeqConfig | CausalConfig, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    if len(tokenizer) > size:
        raise ConfigError(
            f"student.model = '{config.model}': its tokenizer has {len(tokenizer)} tokens and the model only {size}; "
            "give a folder where both belong together"
        )


def _positions(model_config: Any) -> int | None:
    """How many tokens a model can count; None where its positions are relative."""
    parts = [model_config, *(getattr(model_config, name, None) for name in ("encoder", "decoder"))]
    found = [getattr(part, "max_position_embeddings", None) for part in parts if part is not None]
    return min((int(length) for length in found if length), default=None)


def _limits(
    config: Seq2SeqConfig | CausalConfig, model_config: Any, tokenizer: PreTrainedTokenizerBase
) -> tuple[int | None, int]:
    """(tokens of a source or prompt, tokens of a target) at most.

    Raises ConfigError where a decoder has no room for both.
    """
    most, positions = config.max_target_length, _positions(model_config)
    if positions is None:
        return None, most
    positions = min(positions, tokenizer.model_max_length)  # a RoBERTa counts two positions that no token can have
    if config.kind == "seq2seq":
        return positions, min(most, positions)
    if most + 8 > positions:
        raise ConfigError(
            f"student.max_target_length = {most}: '{config.model}' counts {positions} tokens, text and label together; "
            "lower it"
        )
    return positions - most, most


def _with_adapters(model: PreTrainedModel, lora: LoraConfig) -> torch.nn.Module:
    from peft import LoraConfig as Adapters
    from peft import get_peft_model

    adapters = Adapters(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks for what transformers renamed
        return get_peft_model(model, adapters)
