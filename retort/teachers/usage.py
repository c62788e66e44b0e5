"""Usage of a teacher (tokens, money, seconds) and when the budget stops it."""

import time
from dataclasses import dataclass, field

from retort.config.teachers import BudgetConfig, PricesConfig
from retort.teachers.requests import Completion, CompletionRequest, Rejection

CHARACTERS_PER_TOKEN = 4.0
"""Estimate for English text when no tokenizer is available; always labeled as an estimate where it is shown."""


def token_money(prices: PricesConfig, prompt_tokens: float, cached_tokens: float, completion_tokens: float) -> float:
    """Price of the tokens. `cached_tokens` are part of the prompt tokens and have their own price."""
    cached_price = prices.prompt if prices.cached_prompt is None else prices.cached_prompt
    fresh = (prompt_tokens - cached_tokens) * prices.prompt
    return (fresh + cached_tokens * cached_price + completion_tokens * prices.completion) / 1e6


@dataclass
class Usage:
    """Usage of one run of one stage; updated as completions arrive."""

    prices: PricesConfig
    budget: BudgetConfig
    reasoning_tokens: int = 0
    """Tokens of thoughts that are expected in a completion, until the first one arrives."""
    num_gpus: int = 0
    """GPUs that the teacher occupies during the run."""
    requests: int = 0
    completions: int = 0
    rejections: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0
    """Requested completions that have not arrived yet."""
    expected_tokens: float = 0.0
    """Estimated tokens of one prompt and completion, used until the first completion arrives."""
    started_at: float | None = field(default=None, repr=False)
    """time.monotonic() of the first request."""
    seconds: float = 0.0
    """Seconds from the first request to the last outcome, over all rounds."""
    start_seconds: float = 0.0
    """Seconds until the engine was ready."""

    def record_request(self, request: CompletionRequest) -> None:
        self.requests += 1
        self.in_flight += len(request.samples)
        if self.started_at is None:
            self.started_at = time.monotonic()
            text = sum(len(turn.content) for turn in request.prompt.turns)
            self.expected_tokens = text / CHARACTERS_PER_TOKEN + min(request.max_tokens, 64)
            self.expected_tokens += self.reasoning_tokens

    def record_outcome(self, outcome: Completion | Rejection, samples: int = 1) -> None:
        """Record a completion, or a rejection that stands for `samples` completions."""
        if self.started_at is not None:
            self.seconds = time.monotonic() - self.started_at
        self.in_flight -= samples
        if isinstance(outcome, Rejection):
            self.rejections += 1
            return
        self.completions += 1
        self.prompt_tokens += outcome.prompt_tokens
        self.cached_tokens += outcome.cached_tokens
        self.completion_tokens += outcome.completion_tokens

    @property
    def money(self) -> float:
        """Cost of the tokens and of the GPU hours, including the engine's start."""
        hours = (self.seconds + self.start_seconds) / 3600
        tokens = token_money(self.prices, self.prompt_tokens, self.cached_tokens, self.completion_tokens)
        return tokens + hours * self.num_gpus * self.prices.gpu_hour

    def exhausted(self) -> str | None:
        """The budget limit that usage so far plus the requests in flight would exceed, as part of a sentence."""
        budget, tokens, money = self.budget, self.prompt_tokens + self.completion_tokens, self.money
        share = 1 + self.in_flight / self.completions if self.completions else 1.0
        unknown = 0.0 if self.completions else self.in_flight * self.expected_tokens
        if budget.tokens is not None and (tokens * share + unknown) >= budget.tokens:
            return f"budget.tokens = {budget.tokens:,}"
        guess = unknown * max(self.prices.prompt, self.prices.completion) / 1e6
        if budget.money is not None and (money * share + guess) >= budget.money:
            return f"budget.money = {budget.money:g}"
        elapsed = time.monotonic() - self.started_at if self.started_at is not None else 0.0
        if budget.seconds is not None and elapsed >= budget.seconds:
            return f"budget.seconds = {budget.seconds:g}"
        return None

    def summary(self) -> str:
        """A human-readable summary."""
        tokens = self.prompt_tokens + self.completion_tokens
        return f"{self.completions:,} completions, {tokens:,} tokens, {self.money:.2f} of money, {self.seconds:.0f} s"

    def as_details(self) -> dict[str, float]:
        """Details for the manifest; covers this run of the stage, not rows whose completions were in the ledger."""
        return {
            "questions": self.requests,
            "completions": self.completions,
            "refusals": self.rejections,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "asking_seconds": round(self.seconds, 3),
            "start_seconds": round(self.start_seconds, 3),
            "money": round(self.money, 6),
        }
