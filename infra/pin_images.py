"""Pin images by the digest that their tags have today, as their registries tell it.

    python infra/pin_images.py                          images of others: docker/, infra/helm/
    python infra/pin_images.py --registry HOST/PREFIX   and Retort's own, pushed there: infra/kubernetes/

Only the registries are asked (by their API, version 2): no Docker is needed. REGISTRY_AUTH=USER:PASSWORD is shown to
HOST alone. The tag stays in front of the digest, for people; running it again moves to what the tag means then. Nothing
is written unless every digest was told.
"""

import argparse
import hashlib
import os
import re
from functools import cache
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
OTHERS = ("docker/Dockerfile", "docker/compose.yaml", "infra/helm/*.yaml")
OWN = ("infra/kubernetes/*.yaml", "infra/kubernetes/*.json")
_TAG, _DIGEST = r"(?P<tag>[\w.-]+)", r"(?:@sha256:[0-9a-f]{64})?(?=[\s\"]|$)"
IMAGE = re.compile(rf"^(?P<before>FROM |\s*image: )(?P<name>[\w.:/-]+):{_TAG}{_DIGEST}", re.MULTILINE)
"""An image with a tag; a stage of the same file has none, and Compose's own images have a variable."""
CHART_IMAGE = re.compile(rf"(?P<before>\brepository: (?P<name>\S+)\n\s*prefectTag: ){_TAG}{_DIGEST}")
"""The same in the values of Prefect's charts, which join the two."""
OWN_IMAGE = re.compile(
    rf'(?P<before>\bimage: |"default": ")(?:\S+/)?(?P<name>orchestrator|student|teacher):{_TAG}{_DIGEST}'
)
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
"""The index of all platforms, or the manifest of an image that was built for one."""
DOCKER_HUB = "registry-1.docker.io"


def pinned(text: str) -> str:
    """A file's text with a digest behind each tag. Raises SystemExit if a registry does not tell one."""

    def pin(found: re.Match[str]) -> str:
        tagged = found[0].partition("@")[0]
        return f"{tagged}@{digest_of(':'.join(found.group('name', 'tag')))}"

    return CHART_IMAGE.sub(pin, IMAGE.sub(pin, text))


def pinned_own(text: str, registry: str, auth: str | None) -> str:
    """The same for Retort's images, of which each was pushed as REGISTRY/NAME:TAG."""

    def pin(found: re.Match[str]) -> str:
        image = f"{registry}/{found['name']}:{found['tag']}"
        return f"{found['before']}{image}@{digest_of(image, auth)}"

    return OWN_IMAGE.sub(pin, text)


@cache
def digest_of(image: str, auth: str | None = None) -> str:
    """`image` is NAME:TAG or HOST/NAME:TAG, `auth` is USER:PASSWORD."""
    host, name, tag = parts_of(image)
    scheme = "http" if host.partition(":")[0] in ("localhost", "127.0.0.1") else "https"
    url = f"{scheme}://{host}/v2/{name}/manifests/{tag}"
    try:
        with httpx.Client(timeout=30) as client:
            answer = ask(client, url, auth)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise SystemExit(f"{image}: no digest, so nothing was written: {host}: {error!r}") from error
    digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
    if answer.headers.get("Docker-Content-Digest", digest) != digest:
        raise SystemExit(f"{image}: what {host} sent has not the digest that it told, so nothing was written")
    return digest


def parts_of(image: str) -> tuple[str, str, str]:
    """The host of the registry, the name there, and the tag, as Docker reads them."""
    name, _, tag = image.rpartition(":")
    host, slash, rest = name.partition("/")
    if slash and (host == "localhost" or "." in host or ":" in host):
        return host, rest, tag
    return DOCKER_HUB, name if slash else f"library/{name}", tag


def ask(client: httpx.Client, url: str, auth: str | None) -> httpx.Response:
    """GET; if the registry wants a token, even of those who may do no more than anybody, with one."""
    headers = {"Accept": ", ".join(MANIFESTS)}
    login = httpx.BasicAuth(*auth.split(":", 1)) if auth else None
    answer = client.get(url, headers=headers)
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        scheme, _, challenge = answer.headers.get("WWW-Authenticate", "").partition(" ")
        if scheme.lower() == "bearer":
            told = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
            params = {key: told[key] for key in ("service", "scope") if key in told}
            granted = client.get(told["realm"], params=params, auth=login).raise_for_status().json()
            headers["Authorization"] = f"Bearer {granted.get('token') or granted['access_token']}"
            login = None
        answer = client.get(url, headers=headers, auth=login)
    return answer.raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", help="HOST/PREFIX of Retort's own images, as they were pushed")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout whose files are changed")
    options = parser.parse_args()
    texts = {
        file: pinned(file.read_text(encoding="utf-8")) for glob in OTHERS for file in sorted(options.root.glob(glob))
    }
    if options.registry:
        auth = os.environ.get("REGISTRY_AUTH")
        for file in sorted(file for glob in OWN for file in options.root.glob(glob)):
            texts[file] = pinned_own(file.read_text(encoding="utf-8"), options.registry.rstrip("/"), auth)
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
        print(f"{file.relative_to(options.root)}: {text.count('@sha256:')} images pinned")


if __name__ == "__main__":
    main()
