"""A teacher's identity: what its completions depend on, and nothing else. Starts and loads nothing."""

from typing import Any

from retort.config.teachers import EndpointConfig, LlmTeacherConfig, TransformersConfig, VllmConfig
from retort.models.weights import Weights, find_weights

FIELD = "teacher.model"


def teacher_weights(teacher: LlmTeacherConfig, endpoint_url: str | None, *, identify: bool = True) -> Weights | None:
    """The model's weights (see `find_weights`); None for an endpoint, which hosts its own. Raises ConfigError if there
    is no such model."""
    if isinstance(teacher, VllmConfig | TransformersConfig):
        return find_weights(teacher, endpoint_url, field=FIELD, identify=identify)
    return None


def teacher_identity(teacher: LlmTeacherConfig, endpoint_url: str | None) -> dict[str, Any]:
    """The identity as JSON values; it determines the teacher's folder in the ledger. Addresses stay as written, with
    `${VAR}` not expanded."""
    weights = teacher_weights(teacher, endpoint_url)
    match teacher:
        case VllmConfig():
            mode = {"quantization": teacher.quantization, "batch_invariant": teacher.batch_invariant}
            return {"kind": teacher.kind, "model": _name(weights), "dtype": teacher.dtype, **mode}
        case TransformersConfig():
            return {"kind": teacher.kind, "model": _name(weights), "dtype": teacher.dtype}
        case EndpointConfig():
            body = {"body": teacher.body} if teacher.body else {}
            return {"kind": teacher.kind, "model": teacher.model, "url": teacher.url, **body}
    raise AssertionError(f"a teacher of kind {type(teacher).__name__} cannot be asked")


def _name(weights: Weights | None) -> str:
    assert weights is not None, "an engine of ours has weights"
    return weights.identity
