"""An encoder student as an ONNX graph: written from the trained weights, and run by onnxruntime.

The graph takes `input_ids` and `attention_mask`, int64 `(rows, length)`, and gives `logits`, float32
`(rows, length, classes)` for tagging and `(rows, classes)` for one class per text. Cutting texts into words and tokens,
and making a legal label of the logits, stay outside it.
"""

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from retort.students.encoder import Encoder

OPSET = 17
"""Supported by every onnxruntime since 1.13 (2022)."""


class _Logits(torch.nn.Module):
    """The model with a plain tensor as its output."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.model = encoder.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def export_onnx(encoder: Encoder, path: Path) -> None:
    """Write the graph in fp32. Puts the model on the CPU, in evaluation mode, with attention that can be traced."""
    encoder.model.to("cpu").eval().set_attn_implementation("eager")  # type: ignore[arg-type]
    names, ids = ["input_ids", "attention_mask"], torch.ones((2, 8), dtype=torch.int64)
    sizes = {name: {0: "rows", 1: "length"} for name in names}
    logits = {0: "rows"} if encoder.kind == "sequence-classification" else {0: "rows", 1: "length"}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the tracer, about constants: the graph is compared with the model
        torch.onnx.export(
            _Logits(encoder),
            (ids, ids),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes={**sizes, "logits": logits},
            opset_version=OPSET,
            dynamo=False,  # the other exporter needs a package more, and makes the same graph of an encoder
        )


def quantize_onnx(path: Path, to: Path) -> None:
    """Write a copy whose matrices are int8, scaled per column; activations are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice that is about convolutions
    try:
        quantize_dynamic(path, to, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.disable(silenced)


class OnnxModel:
    """Stands in for the transformers model of an `Encoder`, on the CPU."""

    device = torch.device("cpu")

    def __init__(self, path: Path, threads: int = 0) -> None:
        """`threads` 0: as many as there are cores."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        fed = {"input_ids": input_ids.long().numpy(), "attention_mask": attention_mask.long().numpy()}
        return SimpleNamespace(logits=torch.from_numpy(self._session.run(["logits"], fed)[0]))

    def to(self, device: str) -> "OnnxModel":
        return self

    def eval(self) -> "OnnxModel":
        return self


def with_onnx(encoder: Encoder, path: Path) -> Encoder:
    """The encoder with the graph in the place of its model."""
    return replace(encoder, model=OnnxModel(path))  # type: ignore[arg-type]
