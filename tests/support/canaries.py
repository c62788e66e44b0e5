"""Secrets made up for a test, and the search for them in everything that a program left behind."""

import base64
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq


def forms(name: str, secret: str) -> Iterator[tuple[str, bytes]]:
    """(what it is, bytes) of each form in which a secret may be written down."""
    yield name, secret.encode()
    yield f"{name} in a URL", quote(secret, safe="").encode()
    yield f"{name} in JSON", json.dumps(secret)[1:-1].replace("/", "\\/").encode()
    for before in range(3):  # base64 depends on where in its groups of three bytes the secret begins
        shifted = base64.b64encode(b" " * before + secret.encode())
        yield f"{name} in base64", shifted[4 if before else 0 : -4]


def found_in(data: bytes, canaries: Mapping[str, str]) -> set[str]:
    return {what for name, secret in canaries.items() for what, form in forms(name, secret) if form in data}


def found_below(folder: Path, canaries: Mapping[str, str]) -> dict[str, set[str]]:
    """The canaries in each file below a folder, also in compressed ones, and in the names of files."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and (here := found_in(_content(path) + str(path).encode(), canaries)):
            found[str(path.relative_to(folder))] = here
    return found


def _content(path: Path) -> bytes:
    """What a file holds; of Parquet, whose pages are compressed, all its values and metadata too."""
    raw = path.read_bytes()
    if raw.startswith(b"\x1f\x8b"):
        return raw + gzip.decompress(raw)
    if raw.startswith(b"PAR1"):
        table = pq.read_table(path)
        return raw + repr((table.to_pylist(), table.schema.metadata)).encode()
    return raw
