"""Generative students on tiny models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from retort.config import CausalConfig, Seq2SeqConfig, TrainingConfig
from retort.models.weights import find_weights
from retort.students.generative import GenerativeStudent, new_generative_student

Build = Callable[..., GenerativeStudent]


def builder(models: dict[str, Path], problem: Any, training: TrainingConfig) -> Build:
    """A function that returns a student before its training, always the same: `new(kind, problem, **fields)`.

    `models` are folders by the first part of a kind: `t5`, `pair` (an encoder with a new decoder), `causal`. The second
    part is what the student writes: `causal-text` writes text, `causal` classes.
    """

    def new(kind: str, problem: Any = problem, **fields: Any) -> GenerativeStudent:
        name, _, target = kind.partition("-")
        settings: dict[str, Any] = {
            "model": str(models[name]),
            "target": target or None,
            "training": dict(training),
            **fields,
        }
        if name == "pair":
            settings["decoder_layers"] = 1
        config = (
            CausalConfig(kind="causal", **settings) if name == "causal" else Seq2SeqConfig(kind="seq2seq", **settings)
        )
        torch.manual_seed(0)
        return new_generative_student(config, find_weights(config), pretrained=True, problem=problem)

    return new
