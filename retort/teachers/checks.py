"""Cheap checks of a teacher's configuration, before an engine starts or a token is paid for."""

import json
import logging
from pathlib import Path
from typing import Any

from yarl import URL

from retort.config import Student
from retort.config.teachers import EndpointConfig, LlmTeacherConfig, VllmConfig
from retort.errors import ConfigError, TeacherUnavailable
from retort.models.weights import Weights
from retort.teachers.constraints import check_constrained
from retort.teachers.endpoint.connection import address, headers, redirected
from retort.teachers.endpoint.firsttoken import check_first_tokens
from retort.teachers.request_builder import RequestBuilder
from retort.teachers.token_counts import token_counter

PROBE_SECONDS = 10.0
_ANY_NAME = ("llamacpp",)
"""Owners, by their lists, of models that answer under any name."""
_CAUSAL_CLASS_PARTS = ("ForCausalLM", "LMHead", "ForConditionalGeneration")
"""Parts of the class names of models that generate text; the last one also covers vision-language models."""


def check_teacher(teacher: LlmTeacherConfig, builder: RequestBuilder, weights: Weights | None) -> None:
    """Check one teacher. Raises ConfigError, or TeacherUnavailable for an endpoint that cannot be reached."""
    check_constrained(builder.problem, teacher)
    if isinstance(teacher, EndpointConfig):
        check_first_tokens(builder.verbalizers)
        check_endpoint(teacher)
    if isinstance(teacher, VllmConfig):
        from retort.teachers.vllm.machine import find_interpreter, places

        _, built_for = find_interpreter(teacher)
        places(teacher, built_for)
    if weights is not None and (model_config := _model_config(weights)) is not None:
        _check_causal(teacher, model_config)
        _check_length(teacher, builder, weights, model_config)


def check_same_tokenizer(
    teacher: LlmTeacherConfig, teacher_weights: Weights | None, student: Student, student_weights: Weights
) -> None:
    """Raises ConfigError if the student's tokenizer differs from the teacher's. Tokenizers that are not in a local
    folder are checked later, by the stage that trains the student.
    """
    folders = [Path(weights.address) for weights in (teacher_weights, student_weights) if weights is not None]
    files = [folder / "tokenizer.json" for folder in folders]
    if len(files) < 2 or not all(file.is_file() for file in files):
        return
    if files[0].read_bytes() == files[1].read_bytes():
        return
    # Importing transformers takes seconds, so only when the files differ; different files can mean the same tokenizer.
    from transformers import AutoTokenizer

    from retort.teachers.vllm.engine.toplogprobs import tokenizer_identity

    try:
        ours, theirs = (
            tokenizer_identity(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)) for folder in folders
        )
    except (OSError, ValueError, KeyError):
        return  # the stage that loads it reports what is wrong with it
    if ours != theirs:
        raise ConfigError(
            f"student.training.distillation: the tokenizer of student.model = '{student.model}' is not that of "
            f"teacher.model = '{teacher.model}', so the teacher's logprobs are over other tokens; take a student of "
            "the teacher's family, or no distillation"
        )


def check_endpoint(teacher: EndpointConfig) -> None:
    """Request the list of models, which costs nothing. A server without such a list passes."""
    import httpx

    from retort.io import http

    logging.getLogger("httpx").setLevel(logging.WARNING)  # else it logs the address, whose query may hold a key
    setting, url = f"teacher.url = '{teacher.url}'", address(teacher, "models")
    try:
        response = http.get(str(url), headers=headers(teacher), timeout=PROBE_SECONDS)
        target = redirected(url, response.status_code, response.headers)
        if isinstance(target, URL):
            response = http.get(str(target), headers=headers(teacher), timeout=PROBE_SECONDS)
        elif target is not None and response.headers["Location"].partition("?")[0].rstrip("/").endswith("/models"):
            raise ConfigError(f"{setting}: {target}")  # so the endpoint as a whole has moved
    except httpx.HTTPError as error:
        raise TeacherUnavailable(
            f"{setting}: cannot be reached ({type(error).__name__}); is the server running?"
        ) from None
    if response.status_code == 403 and "scope" in response.text:
        return  # a key that may ask, but not list models
    if response.status_code in (401, 403):
        given = f"the key in {teacher.api_key}" if teacher.api_key else "a request without a key; set teacher.api_key"
        raise ConfigError(f"{setting}: the server refuses {given} (HTTP status {response.status_code})")
    if response.status_code == 200:
        _check_model_list(teacher, response)


def _check_model_list(teacher: EndpointConfig, response: Any) -> None:
    try:
        listed = response.json()
        names = [str(model["id"]) for model in listed["data"]]
        is_whole = not listed.get("has_more") and not any(one.get("owned_by") in _ANY_NAME for one in listed["data"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"teacher.url = '{teacher.url}': what answers there is no OpenAI-compatible server (its list of models is "
            "something else); give the address up to and with /v1"
        ) from None
    if names and is_whole and not any(_is_meant(teacher.model, name) for name in names):
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        raise ConfigError(f"teacher.model = '{teacher.model}': the server does not have it; it has {shown}")


def _is_meant(model: str, listed: str) -> bool:
    """Whether a listed model is, or may be, the one that is asked for: vendors list some under longer names than they
    take (Gemini models/NAME, Ollama NAME:latest, Anthropic NAME-DATE), and take suffixes that they do not list
    (OpenRouter NAME:nitro)."""
    listed = listed.removeprefix("models/")
    return model.partition(":")[0] == listed.partition(":")[0] or listed.startswith(f"{model.removesuffix('-latest')}-")


def _model_config(weights: Weights) -> dict[str, Any] | None:
    """The model's config.json, if the model is in a local folder."""
    file = Path(weights.address) / "config.json"
    try:
        model_config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return model_config if isinstance(model_config, dict) else None


def _check_causal(teacher: LlmTeacherConfig, model_config: dict[str, Any]) -> None:
    """Check that the model is a causal language model. A config that names no model class is left to the engine."""
    names = [str(name) for name in model_config.get("architectures") or []]
    writes = any(part in name for name in names for part in _CAUSAL_CLASS_PARTS)
    if model_config.get("is_encoder_decoder") or (names and not writes):
        what = names[0] if names else "an encoder-decoder"
        raise ConfigError(
            f"teacher.model = '{teacher.model}': holds a {what}, which is no causal language model: it cannot write"
        )


def _check_length(
    teacher: LlmTeacherConfig, builder: RequestBuilder, weights: Weights, model_config: dict[str, Any]
) -> None:
    limit = getattr(teacher, "max_length", None) or model_config.get("max_position_embeddings")
    counter = token_counter(weights)
    if not isinstance(limit, int) or not counter.exact:
        return
    shared = sum(counter.count(turn.content) for turn in builder.everything)
    needed = 1 if builder.verbalizers else teacher.max_tokens
    if shared + needed >= limit:
        raise ConfigError(
            f"teacher.prompt.demonstrations: instruction and demonstrations have {shared} tokens, and with "
            f"{needed} for the answer no row fits into the model's context of {limit}; show fewer demonstrations"
        )
