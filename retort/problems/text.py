"""Free text. A label is the text itself, or canonical JSON. There are no classes, so only generative students learn it.

BLEU and chrF are corpus scores, as in sacrebleu: n-gram counts are summed over the rows before dividing. ROUGE-L is the
mean of the rows' scores.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retort.config import ColumnsConfig, Metric, TextConfig
from retort.errors import ConfigError, DataError
from retort.io.strict_json import KeyTwice, json_value
from retort.problems.base import Constraint, Floats, Mended, gold_text, ratio
from retort.records.base import Label, ParseFailure

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_CHRF_ORDERS = range(1, 7)
_CHRF_BETA = 2.0


class FreeText:
    """Text that may have to match a pattern or a JSON Schema. Raises ConfigError if either is invalid."""

    def __init__(self, config: TextConfig) -> None:
        try:
            self._pattern = re.compile(config.pattern) if config.pattern is not None else None
        except re.error as error:
            raise ConfigError(
                f"problem.pattern = '{config.pattern}': is no regular expression ({error}); allowed: those of Python"
            ) from None
        self._json_schema = config.json_schema
        self._validator = json_validator(config.json_schema) if config.json_schema is not None else None

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    @property
    def sigmoids(self) -> tuple[str, ...]:
        return ()

    @property
    def instruction(self) -> str:
        if self._json_schema is None:
            return "Answer each text as the examples show, with the answer and nothing else."
        return "Answer each text as the examples show, with JSON and nothing else. Its JSON Schema:\n{schema}"

    @property
    def schema(self) -> str:
        return "" if self._json_schema is None else json.dumps(self._json_schema, ensure_ascii=False)

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """See `Problem.gold`. A blank field means no label; objects and lists are written as JSON, and where labels are
        JSON, so is true."""
        value = row.get(columns.label)
        is_json = isinstance(value, dict | list) or (self._validator is not None and isinstance(value, bool))
        text = _json_text(value) if is_json else gold_text(row, columns.label)
        if not text:
            return None
        label = self.parse("", text)
        if isinstance(label, ParseFailure):
            shown = text if len(text) <= 80 else f"{text[:80]}..."
            raise DataError(f"the label '{shown}' is not allowed: {label.detail[0].lower()}{label.detail[1:]}")
        return label

    def render(self, text: str, label: Label) -> str:
        return label

    def parse(self, text: str, completion: str) -> Label | ParseFailure:
        """See `Problem.parse`. Outer white space is ignored; in JSON, all white space, the order of keys, and how a
        number or a letter is written (1.0 is 1, \\u00fc is ü).

        Reason codes: `empty`, `pattern`, `not-json`, `key-twice`, `schema`.
        """
        label = completion.strip()
        if not label:
            return ParseFailure("empty", "The completion is empty.", completion)
        if self._pattern is not None and not self._pattern.fullmatch(label):
            return ParseFailure("pattern", f"It does not match problem.pattern '{self._pattern.pattern}'.", completion)
        return label if self._validator is None else self._parse_json(self._validator, completion)

    def _parse_json(self, validator: "Validator", completion: str) -> Label | ParseFailure:
        try:
            value = json_value(completion, parse_float=_number, parse_constant=_refuse)
            label = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            label.encode()
        except UnicodeEncodeError:
            return ParseFailure("not-json", "It is not JSON: it holds half of a surrogate pair.", completion)
        except KeyTwice as error:
            return ParseFailure("key-twice", f"In its JSON, {error}.", completion)
        except (ValueError, RecursionError) as error:
            return ParseFailure("not-json", f"It is not JSON: {error}.", completion)
        worst = min(validator.iter_errors(value), key=lambda error: len(error.absolute_path), default=None)
        if worst is not None:
            where = worst.json_path.removeprefix("$.") if worst.absolute_path else "the whole"
            return ParseFailure("schema", f"Its {where} breaks problem.json_schema: {worst.message[:200]}.", completion)
        return label

    def mend(self, text: str, completion: str) -> Mended:
        return Mended(completion)

    def uncut(self, completion: str) -> str:
        """See `Problem.uncut`. Nothing: any text may be the start of a longer one."""
        return ""

    def constraint(self, text: str) -> Constraint | None:
        """See `Problem.constraint`. With both, the pattern is only checked. So is a pattern that decoders cannot read:
        one that looks ahead or behind, or refers back."""
        if self._json_schema is not None:
            return Constraint(json_schema=self._json_schema)
        return Constraint(regex=self._pattern.pattern) if self._pattern and self._can_be_decoded else None

    @cached_property
    def _can_be_decoded(self) -> bool:
        from llguidance import LLMatcher

        return self._pattern is not None and not LLMatcher.validate_grammar(
            LLMatcher.grammar_from_regex(self._pattern.pattern)
        )

    def grammar(self, text: str) -> str | None:
        """See `Problem.grammar`. JSON has the canonical form that `parse` returns: sorted keys and no white space; keys
        that the schema does not name come last."""
        if self._json_schema is not None:
            compact = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
            return f"label: %json {json.dumps({**self._json_schema, 'x-guidance': compact}, sort_keys=True)}"
        if self._pattern is None:
            return None
        escaped = re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], self._pattern.pattern)
        return f"label: /{escaped}/" if "\n" not in escaped else None

    def words(self, text: str) -> list[str]:
        return text.split()

    def sites(self, num_words: int) -> NDArray[np.int64]:
        return np.empty(0, dtype=np.int64)

    def targets(self, text: str, label: Label) -> list[int]:
        return []

    def allowed(self, num_units: int) -> NDArray[np.bool_]:
        return np.empty((num_units, 0), dtype=np.bool_)

    def decide(self, text: str, probabilities: Floats) -> tuple[Label, float]:
        """Raises ConfigError: there are no classes to decide between."""
        raise ConfigError("problem.kind 'text' has no classes, so nobody can vote on them or give their probabilities")

    def matches(self, gold: Label, predicted: Label | None) -> bool:
        return gold == predicted

    def statistics(self, metric: Metric, gold: Label, predicted: Label | None) -> Floats:
        """exact_match: (correct, 1); rouge_l: (F1, 1); field_f1: number of fields (in both, predicted, gold); bleu and
        chrf: see `bleu_counts` and `chrf_counts`. A row without a prediction counts as an empty text."""
        found = predicted or ""
        match metric:
            case "bleu":
                return bleu_counts(gold, found)
            case "chrf":
                return chrf_counts(gold, found)
            case "rouge_l":
                return np.array([self._rouge.score(gold, found)["rougeL"].fmeasure, 1.0])
            case "field_f1":
                wanted, given = _fields(gold), _fields(predicted) if predicted is not None else Counter[str]()
                return np.array([(wanted & given).total(), given.total(), wanted.total()], dtype=np.float64)
        return np.array([float(self.matches(gold, predicted)), 1.0])

    @cached_property
    def _rouge(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

        return RougeScorer(["rougeL"])

    def value(self, metric: Metric, sums: Floats) -> Floats:
        """See `Problem.value`. field_f1 is the micro F1 over all fields, and 1 if neither side has any."""
        match metric:
            case "bleu":
                return bleu(sums)
            case "chrf":
                return chrf(sums)
            case "field_f1":
                return ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2], empty=1.0)
            case "exact_match" | "rouge_l":
                return ratio(sums[..., 0], sums[..., 1])
        raise ConfigError(f"metric '{metric}' does not measure text")

    def parts(self, label: Label) -> list[str]:
        """The text, or the fields of JSON as `$.city: "Rome"`."""
        return [label] if self._validator is None else list(_fields(label).elements())


def bleu_counts(gold: str, predicted: str) -> Floats:
    """BLEU statistics of a row, `(10,)`, with sacrebleu's tokenizer 13a: matching 1- to 4-grams, 1- to 4-grams of the
    prediction, words of the prediction, words of the gold text."""
    score = _bleu().sentence_score(predicted, [gold])
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len], dtype=np.float64)


@lru_cache(maxsize=1)
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)  # affects only the sentence score, which is not used


def bleu(sums: Floats) -> Floats:
    """Summed statistics `(..., 10)` -> corpus BLEU `(...)` in [0, 1], with sacrebleu's exponential smoothing (Chen and
    Cherry 2014, method 3): the i-th order without a match has the precision 1 / (2^i * number of n-grams)."""
    matches, totals, length, wanted = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    without = np.cumsum((matches == 0) & (totals > 0), axis=-1)
    smoothed = np.where(matches > 0, matches, 0.5**without)
    logs = np.log(np.maximum(ratio(smoothed, totals), 1e-300)).mean(axis=-1)
    brevity = np.exp(np.minimum(0.0, 1.0 - ratio(wanted, length, empty=np.inf)))
    possible = (matches.sum(axis=-1) > 0) & (totals > 0).all(axis=-1)
    scores: Floats = np.where(possible, brevity * np.exp(logs), 0.0)
    return scores


def chrf_counts(gold: str, predicted: str) -> Floats:
    """chrF statistics of a row, `(18,)`: for 1- to 6-grams of characters, white space removed, their number in the
    prediction (0 if the gold text is too short to have any), in the gold text, and in both."""
    counts: list[int] = []
    texts = "".join(gold.split()), "".join(predicted.split())
    for order in _CHRF_ORDERS:
        wanted, found = (Counter(text[i : i + order] for i in range(len(text) - order + 1)) for text in texts)
        counts += [found.total() if wanted else 0, wanted.total(), (wanted & found).total()]
    return np.array(counts, dtype=np.float64)


def chrf(sums: Floats) -> Floats:
    """Summed statistics `(..., 18)` -> chrF2 `(...)` in [0, 1] (Popović 2015), from the mean precision and recall over
    the n-gram orders that occur on both sides, as in sacrebleu."""
    found, wanted, both = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counted = (found > 0) & (wanted > 0)
    orders = counted.sum(axis=-1)
    precision = ratio((ratio(both, found) * counted).sum(axis=-1), orders)
    recall = ratio((ratio(both, wanted) * counted).sum(axis=-1), orders)
    weight = _CHRF_BETA**2
    return ratio((1 + weight) * precision * recall, weight * precision + recall)


def _fields(label: Label) -> Counter[str]:
    return Counter(json_leaves(json.loads(label)))


def json_leaves(value: object) -> Iterator[str]:
    """The leaves of a JSON value by path and value. Positions in lists are ignored."""

    def leaves(path: str, value: object) -> Iterator[str]:
        children: list[tuple[str, object]] = []
        if isinstance(value, dict):
            children = [(f"{path}.{key}", child) for key, child in value.items()]
        elif isinstance(value, list):
            children = [(f"{path}[]", child) for child in value]
        if not children:
            yield f"{path}: {json.dumps(value, ensure_ascii=False)}"
        for name, child in children:
            yield from leaves(name, child)

    return leaves("$", value)


def json_validator(schema: dict[str, Any], field: str = "problem.json_schema") -> "Validator":
    """Raises ConfigError, which names the `field`, for what is no JSON Schema."""
    # Imported late, so that only jobs with a schema pay for it.
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
        resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
        for reference in _references(schema):
            resolver.lookup(reference)
    except SchemaError as error:
        where = ".".join(map(str, (field, *error.absolute_path)))
        raise ConfigError(f"{where}: is no JSON Schema: {error.message[:200]}") from None
    except Unresolvable as error:
        raise ConfigError(
            f"{field}: $ref '{error.ref}' leads nowhere; allowed: places in the schema itself, #/$defs/NAME"
        ) from None
    validator: Validator = kind(schema, registry=Registry())
    return validator


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference
        for child in schema.values():
            yield from _references(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from _references(child)


def _json_text(value: object) -> str:
    """JSON with all letters as they are. Raises DataError for a value that JSON does not have."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"the label {str(value)[:80]!r} cannot be written as JSON: {error}") from None


def _number(text: str) -> float:
    """An int where it has no fraction, as JSON Schema counts integers. Raises ValueError if no float holds it."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:80]} is too large")
    return int(value) if value.is_integer() else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
