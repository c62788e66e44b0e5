"""Pin the images that Retort does not build itself by the digest that their tags have today.

    python infra/pin_images.py [FILE ...]       default: docker/Dockerfile docker/compose.yaml

Needs the registries and `docker` with buildx, but no engine. The tag stays in front of the digest, for people; running
it again moves to what the tag means then.
"""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

DOCKER = Path(__file__).parents[1] / "docker"
_DIGEST = r"sha256:[0-9a-f]{64}"
IMAGE = re.compile(
    rf"^(?P<before>FROM |\s*image: )(?P<image>(?!retort/)[\w./-]+:[\w.-]+)(?:@{_DIGEST})?(?=\s|$)", re.MULTILINE
)
"""An image with a tag; a stage of the same file has none."""


def pinned(text: str) -> str:
    """The file's text with a digest behind each tag. Raises SystemExit if a registry does not tell one."""
    return IMAGE.sub(lambda found: f"{found['before']}{found['image']}@{digest_of(found['image'])}", text)


@cache
def digest_of(image: str) -> str:
    """The digest of the index of all platforms."""
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{json .Manifest}}"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise SystemExit(f"{image}: no registry tells its digest, so nothing was written: {asked.stderr.strip()}")
    digest = json.loads(asked.stdout)["digest"]
    assert re.fullmatch(_DIGEST, digest)
    return str(digest)


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]] or [DOCKER / "Dockerfile", DOCKER / "compose.yaml"]
    texts = {file: pinned(file.read_text(encoding="utf-8")) for file in files}
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
        print(f"{file}: {len(IMAGE.findall(text))} images pinned")


if __name__ == "__main__":
    main()
