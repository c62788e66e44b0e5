"""A teacher's top log-probabilities: the k likeliest next tokens at each token of a completion.

A few tokens have nearly all of the probability, so k of a vocabulary of 150,000 are stored: in the ledger beside the
completion, and in the artifact of pseudolabels as `teacher_tokens.parquet`. Students learn from them through
`retort.students.losses.token_distillation`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retort.errors import ConfigError
from retort.io.parquet import BATCH_ROWS, Row, parquet_file

_COLUMNS: "list[pa.Field[Any]]" = [
    pa.field("example_id", pa.string()),
    pa.field("tokenizer", pa.string()),
    pa.field("k", pa.int32()),
    pa.field("token_ids", pa.list_(pa.int32())),  # (tokens,)
    pa.field("top_ids", pa.list_(pa.int32())),  # (tokens, k), token by token
    pa.field("top_logprobs", pa.list_(pa.float32())),  # (tokens, k)
]
TEACHER_TOKENS_SCHEMA = pa.schema(_COLUMNS)

_STORED_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("k", pa.int32()),
    pa.field("tokenizer", pa.string()),
    pa.field("token_ids", pa.binary()),
    pa.field("ids", pa.binary()),
    pa.field("logprobs", pa.binary()),
]
STORED_TYPE = pa.struct(_STORED_FIELDS)
"""Arrow type of TopLogprobs in the ledger: bytes, since lists of Python numbers take ten times the memory."""


class TopLogprobs(NamedTuple):
    """The top log-probabilities of one completion, as packed by `engine.toplogprobs.pack`."""

    k: int
    tokenizer: str
    """See `tokenizer_identity`."""
    token_ids: bytes
    """int32, `(tokens,)`: the generated tokens, including the end token if one was generated."""
    ids: bytes
    """int32, `(tokens, k)`: the likeliest tokens at each position, likeliest first."""
    logprobs: bytes
    """float32, `(tokens, k)`: their natural log-probabilities at temperature 1, over all tokens that may come next (the
    whole vocabulary, or what the constraint allows); lists shorter than k are padded with -inf."""


@dataclass(frozen=True, slots=True)
class TeacherTokens:
    """One completion's tokens and top log-probabilities, as a student learns from them."""

    example_id: str
    token_ids: NDArray[np.int32]
    """`(tokens,)`"""
    ids: NDArray[np.int32]
    """`(tokens, k)`"""
    logprobs: NDArray[np.float32]
    """`(tokens, k)`"""


class TokensWriter:
    """A context manager that writes `teacher_tokens.parquet` row by row. Writes no file if there are no rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[Row] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write()
        if self._writer:
            self._writer.close()

    def add(self, example_id: str, top: TopLogprobs) -> None:
        ids, logprobs = np.frombuffer(top.ids, "<i4"), np.frombuffer(top.logprobs, "<f4")
        own = {"example_id": example_id, "tokenizer": top.tokenizer, "k": top.k}
        token_ids = np.frombuffer(top.token_ids, "<i4")
        self._waiting.append({**own, "token_ids": token_ids, "top_ids": ids, "top_logprobs": logprobs})
        if len(self._waiting) == BATCH_ROWS:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            self._writer = self._writer or pq.ParquetWriter(self._path, TEACHER_TOKENS_SCHEMA, compression="zstd")
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=TEACHER_TOKENS_SCHEMA))
            self._waiting.clear()


def read_teacher_tokens(path: Path, tokenizer: str, num_logits: int) -> Iterator[TeacherTokens]:
    """The teacher's tokens in the order of the pseudolabels; rows without any are skipped.

    `tokenizer` is the student's (see `tokenizer_identity`) and `num_logits` the size of its model's output. Models pad
    their vocabularies differently: tokens beyond the student's vocabulary get log-probability -inf, which leaves their
    mass to the remaining tokens. Raises ConfigError if the teacher's tokenizer is a different one.
    """
    with parquet_file(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            own = (batch[name].to_pylist() for name in ("example_id", "tokenizer", "k"))
            lists = (batch[name] for name in ("token_ids", "top_ids", "top_logprobs"))
            for example_id, named, k, *numbers in zip(*own, *lists, strict=True):
                _check_tokenizer(named, tokenizer)
                token_ids, ids, logprobs = (scalar.values.to_numpy() for scalar in numbers)
                is_foreign = ids >= num_logits
                ids, logprobs = np.where(is_foreign, 0, ids), np.where(is_foreign, np.float32(-np.inf), logprobs)
                yield TeacherTokens(example_id, token_ids, ids.reshape(-1, k), logprobs.reshape(-1, k))


def _check_tokenizer(teachers: str, students: str) -> None:
    if teachers != students:
        raise ConfigError(
            f"student.model: teacher logprobs over another tokenizer ('{teachers}', the student's is '{students}'); "
            "take a student of the teacher's family, or train on the labels alone"
        )
