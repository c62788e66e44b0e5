"""The method as in the paper (arXiv 2311.08640) and without fine-tuning. The defaults differ; tests that are not about
them say this instead."""

from typing import Any

PAPER: dict[str, Any] = {
    "partitions": 2,
    "scheme": "disjoint",
    "cross_labels": "hard",
    "fine_tuning": {"kind": "never"},
}
