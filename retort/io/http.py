"""One request over HTTP, with every failure as httpx's own, and no secret in any of them."""

from typing import Any

import httpx


def get(url: str, **options: Any) -> httpx.Response:
    """As `httpx.get`. Raises httpx.HTTPError only.

    An address or a proxy of the environment (HTTPS_PROXY) that cannot be one makes httpx raise other errors too, whose
    messages may hold a part of it, such as its password.
    """
    try:
        return httpx.get(url, **options)
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        reason = f"no address, or no proxy in the environment, that can be used ({type(error).__name__})"
    raise httpx.UnsupportedProtocol(reason)
