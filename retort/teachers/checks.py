"""What can be wrong with a teacher and is cheap to see, before an engine starts or a token is paid for."""

import json
from pathlib import Path
from typing import Any

from retort.config import Student, expand
from retort.config.teachers import EndpointConfig, LlmTeacherConfig, VllmConfig
from retort.errors import ConfigError, TeacherUnavailable
from retort.models.weights import Weights
from retort.teachers.endpoint.firsttoken import check_first_tokens
from retort.teachers.request_builder import RequestBuilder
from retort.teachers.token_counts import token_counter

PROBE_SECONDS = 10.0
_WRITERS = ("ForCausalLM", "LMHead", "ForConditionalGeneration")
"""Parts of the names of classes that write text; the last are also those of models that see images."""


def check_teacher(teacher: LlmTeacherConfig, questions: RequestBuilder, weights: Weights | None) -> None:
    """Raises ConfigError, or TeacherUnavailable for an endpoint that cannot be reached."""
    if isinstance(teacher, EndpointConfig):
        check_first_tokens(questions.verbalizers)
        check_endpoint(teacher)
    if isinstance(teacher, VllmConfig):
        from retort.teachers.vllm.machine import find_interpreter, places

        _, built_for = find_interpreter(teacher)
        places(teacher, built_for)
    if weights is not None and (settings := _settings(weights)) is not None:
        _check_causal(teacher, settings)
        _check_length(teacher, questions, weights, settings)


def check_same_tokenizer(
    teacher: LlmTeacherConfig, teachers: Weights | None, student: Student, students: Weights
) -> None:
    """Raises ConfigError where tokens of the teacher mean something else to the student; of tokenizers that are not in
    a folder here, the student's own stage judges.
    """
    folders = [Path(weights.address) for weights in (teachers, students) if weights is not None]
    files = [folder / "tokenizer.json" for folder in folders]
    if len(files) < 2 or not all(file.is_file() for file in files):
        return
    if files[0].read_bytes() == files[1].read_bytes():
        return
    # torch comes with it, and some seconds: only where the files differ, which some do that say the same.
    from transformers import AutoTokenizer

    from retort.teachers.vllm.engine.toplogprobs import tokenizer_identity

    try:
        ours, theirs = (tokenizer_identity(AutoTokenizer.from_pretrained(folder)) for folder in folders)
    except (OSError, ValueError, KeyError):
        return  # whoever loads it says what is wrong with it
    if ours != theirs:
        raise ConfigError(
            f"student.training.distillation: the tokenizer of student.model = '{student.model}' is not that of "
            f"teacher.model = '{teacher.model}', so the teacher's logprobs are over other tokens; take a student of "
            "the teacher's family, or no distillation"
        )


def check_endpoint(teacher: EndpointConfig) -> None:
    """Asks for the list of models, which costs nothing. A server that has no such list is not judged by it."""
    import httpx

    url = expand(teacher.url).rstrip("/")
    told = f"teacher.url = '{teacher.url}'"
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{told}: must begin with http:// or https://")
    headers = {"Authorization": f"Bearer {expand(teacher.api_key)}"} if teacher.api_key else {}
    try:
        answer = httpx.get(f"{url}/models", headers=headers, timeout=PROBE_SECONDS, follow_redirects=True)
    except httpx.HTTPError as error:
        raise TeacherUnavailable(
            f"{told}: cannot be reached ({type(error).__name__}); is the server running?"
        ) from None
    if answer.status_code in (401, 403):
        given = f"the key in {teacher.api_key}" if teacher.api_key else "a request without a key; set teacher.api_key"
        raise ConfigError(f"{told}: the server refuses {given} (HTTP status {answer.status_code})")
    if answer.status_code == 200:
        _check_list(teacher, answer)


def _check_list(teacher: EndpointConfig, answer: Any) -> None:
    try:
        names = [str(model["id"]) for model in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"teacher.url = '{teacher.url}': what answers there is no OpenAI-compatible server (its list of models is "
            "something else); give the address up to and with /v1"
        ) from None
    if names and teacher.model not in names:
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        raise ConfigError(f"teacher.model = '{teacher.model}': the server does not have it; it has {shown}")


def _settings(weights: Weights) -> dict[str, Any] | None:
    """The model's own config, where it lies in a folder here."""
    file = Path(weights.address) / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _check_causal(teacher: LlmTeacherConfig, settings: dict[str, Any]) -> None:
    """A folder names the class that it was saved from; one that names none is left to the engine."""
    names = [str(name) for name in settings.get("architectures") or []]
    writes = any(part in name for name in names for part in _WRITERS)
    if settings.get("is_encoder_decoder") or (names and not writes):
        what = names[0] if names else "an encoder-decoder"
        raise ConfigError(
            f"teacher.model = '{teacher.model}': holds a {what}, which is no causal language model: it cannot write"
        )


def _check_length(
    teacher: LlmTeacherConfig, questions: RequestBuilder, weights: Weights, settings: dict[str, Any]
) -> None:
    limit = getattr(teacher, "max_length", None) or settings.get("max_position_embeddings")
    counter = token_counter(weights)
    if not isinstance(limit, int) or not counter.exact:
        return
    shared = sum(counter.count(turn.content) for turn in questions.everything)
    needed = 1 if questions.verbalizers else teacher.sampling.max_tokens
    if shared + needed >= limit:
        raise ConfigError(
            f"teacher.prompt.demonstrations: instruction and demonstrations have {shared} tokens, and with "
            f"{needed} for the answer no row fits into the model's context of {limit}; show fewer demonstrations"
        )
