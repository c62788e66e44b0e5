"""What a teacher thought at each token of a completion: the k likeliest next tokens and their log-probabilities.

Few of a vocabulary's tokens have nearly all of its probability, so a list of k is what is kept of 150,000: in the
ledger beside the completion, and in the artifact of pseudolabels as `teacher_tokens.parquet`. Students learn from it by
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
from retort.io.parquet import BATCH_ROWS, Row

TEACHER_TOKENS = "teacher_tokens.parquet"
"""Beside the pseudolabels, where `sampling.top_logprobs` asked for it."""

_COLUMNS: "list[pa.Field[Any]]" = [
    pa.field("example_id", pa.string()),
    pa.field("tokenizer", pa.string()),
    pa.field("k", pa.int32()),
    pa.field("token_ids", pa.list_(pa.int32())),  # (tokens,)
    pa.field("top_ids", pa.list_(pa.int32())),  # (tokens, k), token by token
    pa.field("top_logprobs", pa.list_(pa.float32())),  # (tokens, k)
]
TOKENS = pa.schema(_COLUMNS)

_KEPT: "list[pa.Field[Any]]" = [
    pa.field("k", pa.int32()),
    pa.field("tokenizer", pa.string()),
    pa.field("token_ids", pa.binary()),
    pa.field("ids", pa.binary()),
    pa.field("logprobs", pa.binary()),
]
KEPT = pa.struct(_KEPT)
"""TopLogprobs as the ledger keeps it: bytes, since a list of Python's numbers takes ten times the memory."""


class TopLogprobs(NamedTuple):
    """Of one completion, as `engine.toplogprobs.packed` makes it."""

    k: int
    tokenizer: str
    """See `tokenizer_identity`."""
    token_ids: bytes
    """int32, `(tokens,)`: what was written, with the token that ended it, if one was written."""
    ids: bytes
    """int32, `(tokens, k)`: the likeliest at each, likeliest first."""
    logprobs: bytes
    """float32, `(tokens, k)`: their natural log-probabilities at temperature 1, among all tokens that may come next:
    the whole vocabulary, or what the decoder was held to; -inf pads a list that is shorter than k."""


@dataclass(frozen=True, slots=True)
class TeacherTokens:
    """What a student learns from."""

    example_id: str
    token_ids: NDArray[np.int32]
    """`(tokens,)`"""
    ids: NDArray[np.int32]
    """`(tokens, k)`"""
    logprobs: NDArray[np.float32]
    """`(tokens, k)`"""


class TokensWriter:
    """A context that writes a file of TOKENS, row by row. Without a row there is no file."""

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
            self._writer = self._writer or pq.ParquetWriter(self._path, TOKENS, compression="zstd")
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=TOKENS))
            self._waiting.clear()


def read_teacher_tokens(path: Path, tokenizer: str, num_logits: int) -> Iterator[TeacherTokens]:
    """In the order of the pseudolabels, without those that have none.

    `tokenizer` is the student's, see `tokenizer_identity`, and `num_logits` how many its model gives. Models pad their
    vocabularies differently: of tokens that the student cannot write the log-probability becomes -inf, which leaves
    their mass to the rest. Raises ConfigError where the teacher's tokenizer is another.
    """
    with pq.ParquetFile(path) as file:
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
