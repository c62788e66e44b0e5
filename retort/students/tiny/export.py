"""Export of a tiny student as a folder independent of Retort: ONNX network, JSON vocabulary, model card.

The graph is small enough to be written node by node, without a tracer. Its inputs are word ids and field ids, `(rows,
length)` of any size; which words occur in other fields is computed inside the graph. `examples/scorer.py` shows the
remaining preprocessing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from retort.students.tiny.network import has_max, num_parameters
from retort.students.tiny.shape import Weights
from retort.students.tiny.vocabulary import STEM, WORD, Vocabulary

MODEL, VOCABULARY, CARD = "model.onnx", "vocabulary.json", "README.md"
OPSET, IR_VERSION = 18, 10
"""Supported by every onnxruntime since 1.18 (2024)."""


def export(folder: Path, weights: Weights, vocabulary: Vocabulary, classes: Sequence[str], card: str) -> None:
    """Writes `model.onnx`, `vocabulary.json` and `README.md` into the existing `folder`. `card` is Markdown; a
    description of the folder's files is appended to it."""
    model = as_onnx(weights)
    onnx.checker.check_model(model, full_check=True)
    (folder / MODEL).write_bytes(model.SerializeToString())
    described = {**asdict(vocabulary), "word_pattern": WORD, "stem": STEM, "classes": list(classes)}
    (folder / VOCABULARY).write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    (folder / CARD).write_text(f"{card.rstrip()}\n\n{_contract(weights, vocabulary, classes)}", encoding="utf-8")


def _contract(weights: Weights, vocabulary: Vocabulary, classes: Sequence[str]) -> str:
    return (
        f"## What is in this folder\n"
        f"`{MODEL}`: {num_parameters(weights):,} parameters, embeddings included; inputs `word_ids` and `field_ids`, "
        f"int64 (rows, length); output `probabilities`, float32 (rows, {len(classes)}): {', '.join(classes)}.\n"
        f"`{VOCABULARY}`: {len(vocabulary.words):,} words of the training texts, and how a text is cut into words.\n"
        f"Fields of a row, in order: {', '.join(vocabulary.fields)}; the first {vocabulary.max_words} words of each "
        f"are read.\n"
    )


def as_onnx(weights: Weights) -> onnx.ModelProto:
    """The network: inputs `word_ids` and `field_ids`, int64 `(rows, length)`; output `probabilities`, float32
    `(rows, classes)`."""
    num_fields = len(weights["fields"])
    constants: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(array) for name, array in weights.items()} | {
        "zero": np.array(0, dtype=np.int64),
        "numbers": np.arange(num_fields, dtype=np.int64),
        "last": np.array([-1], dtype=np.int64),
        "before_last": np.array([-2], dtype=np.int64),
        "masked": np.array(-1e4, dtype=np.float32),
        "nothing": np.array(0, dtype=np.float32),
        "least": np.array(-1, dtype=np.float32),
        "words_axis": np.array([1], dtype=np.int64),
    }
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "length"]) for name in _INPUTS]
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", len(weights["out_bias"])])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    nodes = list(_nodes("overlaps" in weights, has_max(weights)))
    graph = helper.make_graph(nodes, "tiny", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


_INPUTS = ("word_ids", "field_ids")


def _nodes(overlap: bool, with_max: bool) -> Iterator[onnx.NodeProto]:
    """The computation of `bags.word_traits` and `network.logits` for one student."""

    def node(operation: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(operation, inputs.split(), [output], **attributes)

    yield node("Gather", "words word_ids", "word_vectors")
    yield node("Gather", "fields field_ids", "field_vectors")  # padding is masked below
    yield node("Add", "word_vectors field_vectors", "x" if not overlap else "marked")
    yield node("Greater", "word_ids zero", "is_word")
    yield node("Unsqueeze", "is_word last", "is_word_column")
    if overlap:
        yield node("Unsqueeze", "field_ids last", "field_column")
        yield node("Equal", "field_column numbers", "in_field")
        yield node("And", "in_field is_word_column", "own")
        yield node("Cast", "own", "own_float", to=TensorProto.FLOAT)
        yield node("Unsqueeze", "word_ids last", "word_column")
        yield node("Unsqueeze", "word_ids before_last", "word_row")
        yield node("Equal", "word_column word_row", "same")
        yield node("Cast", "same", "same_float", to=TensorProto.FLOAT)
        yield node("MatMul", "same_float own_float", "times")
        yield node("Greater", "times nothing", "occurs")
        yield node("Not", "in_field", "other_field")
        yield node("And", "occurs other_field", "elsewhere")
        yield node("Cast", "elsewhere", "elsewhere_float", to=TensorProto.FLOAT)
        yield node("MatMul", "elsewhere_float overlaps", "overlap_vectors")
        yield node("Add", "marked overlap_vectors", "x")
    yield node("MatMul", "x read", "read_words")
    yield node("Add", "read_words read_bias", "read_words_biased")
    yield node("Tanh", "read_words_biased", "h")
    yield node("MatMul", "h attend", "scores")
    yield node("Where", "is_word_column scores masked", "scores_masked")
    yield node("Softmax", "scores_masked", "attention", axis=1)
    yield node("Mul", "attention h", "weighted")
    yield node("ReduceSum", "weighted words_axis", "v" if not with_max else "mean", keepdims=0)
    if with_max:
        yield node("Where", "is_word_column h least", "h_or_least")  # no tanh is below
        yield node("ReduceMax", "h_or_least words_axis", "greatest", keepdims=0)
        yield node("Concat", "mean greatest", "v", axis=1)
    yield node("Gemm", "v mix mix_bias", "mixed")
    yield node("Relu", "mixed", "mixed_positive")
    yield node("Gemm", "mixed_positive out out_bias", "logits")
    yield node("Softmax", "logits", "probabilities", axis=1)
