"""Who a teacher is: what its completions depend on, and nothing else. Starts and loads nothing."""

from typing import Any

from retort.config.teachers import EndpointConfig, LlmTeacherConfig, TransformersConfig, VllmConfig
from retort.models.weights import Weights, find_weights

FIELD = "teacher.model"


def teacher_weights(teacher: LlmTeacherConfig, endpoint_url: str | None) -> Weights | None:
    """Where the model is; None for an endpoint, which has it. Raises ConfigError if nothing is there."""
    if isinstance(teacher, VllmConfig | TransformersConfig):
        return find_weights(teacher, endpoint_url, field=FIELD)
    return None


def teacher_identity(teacher: LlmTeacherConfig, endpoint_url: str | None) -> dict[str, Any]:
    """JSON values; the folder of its completions in the ledger. Addresses stay as they were written, with `${VAR}`."""
    weights = teacher_weights(teacher, endpoint_url)
    match teacher:
        case VllmConfig():
            mode = {"quantization": teacher.quantization, "batch_invariant": teacher.batch_invariant}
            return {"kind": teacher.kind, "model": _name(weights), "dtype": teacher.dtype, **mode}
        case TransformersConfig():
            return {"kind": teacher.kind, "model": _name(weights), "dtype": teacher.dtype}
        case EndpointConfig():
            return {"kind": teacher.kind, "model": teacher.model, "url": teacher.url}
    raise AssertionError(f"a teacher of kind {type(teacher).__name__} cannot be asked")


def _name(weights: Weights | None) -> str:
    assert weights is not None, "an engine of ours has weights"
    return weights.identity
