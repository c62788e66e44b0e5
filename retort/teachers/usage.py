"""What asking cost, and when to stop: tokens, money, seconds."""

import time
from dataclasses import dataclass, field

from retort.config.teachers import BudgetConfig, PricesConfig
from retort.teachers.requests import Completion, CompletionRequest, Rejection

CHARACTERS_PER_TOKEN = 4.0
"""Of English text, where no tokenizer is at hand: an estimate, and called one wherever it is shown."""


def token_money(prices: PricesConfig, prompt_tokens: float, cached_tokens: float, completion_tokens: float) -> float:
    """`cached_tokens` are among the prompt tokens, and cost their own price."""
    cached_price = prices.prompt if prices.cached_prompt is None else prices.cached_prompt
    fresh = (prompt_tokens - cached_tokens) * prices.prompt
    return (fresh + cached_tokens * cached_price + completion_tokens * prices.completion) / 1e6


@dataclass
class Usage:
    """Of one run of one stage; grows as answers come."""

    prices: PricesConfig
    budget: BudgetConfig
    num_gpus: int = 0
    """That run for us while we ask."""
    questions: int = 0
    completions: int = 0
    refusals: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    under_way: int = 0
    """Completions asked for that have not come."""
    expected_tokens: float = 0.0
    """Of one completion with its prompt, as long as none has come."""
    started_at: float | None = field(default=None, repr=False)
    """time.monotonic() of the first question."""
    seconds: float = 0.0
    """From the first question to the last answer, in every round."""
    start_seconds: float = 0.0
    """Until an engine was ready."""

    def asked(self, question: CompletionRequest) -> None:
        self.questions += 1
        self.under_way += len(question.samples)
        if self.started_at is None:
            self.started_at = time.monotonic()
            text = sum(len(turn.content) for turn in question.prompt.shared) + len(question.prompt.item)
            self.expected_tokens = text / CHARACTERS_PER_TOKEN + min(question.max_tokens, 64)

    def came(self, answer: Completion | Rejection, samples: int = 1) -> None:
        """`samples`: how many completions a refusal stands for."""
        if self.started_at is not None:
            self.seconds = time.monotonic() - self.started_at
        self.under_way -= samples
        if isinstance(answer, Rejection):
            self.refusals += 1
            return
        self.completions += 1
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        self.completion_tokens += answer.completion_tokens

    @property
    def money(self) -> float:
        """By the prices: tokens, and the hours of the GPUs, their start included."""
        hours = (self.seconds + self.start_seconds) / 3600
        tokens = token_money(self.prices, self.prompt_tokens, self.cached_tokens, self.completion_tokens)
        return tokens + hours * self.num_gpus * self.prices.gpu_hour

    def exhausted(self) -> str | None:
        """Which limit of the budget would be passed by what is spent and what is under way, as a part of a sentence."""
        budget, tokens, money = self.budget, self.prompt_tokens + self.completion_tokens, self.money
        share = 1 + self.under_way / self.completions if self.completions else 1.0
        unknown = 0.0 if self.completions else self.under_way * self.expected_tokens
        if budget.tokens is not None and (tokens * share + unknown) >= budget.tokens:
            return f"budget.tokens = {budget.tokens:,}"
        guess = unknown * max(self.prices.prompt, self.prices.completion) / 1e6
        if budget.money is not None and (money * share + guess) >= budget.money:
            return f"budget.money = {budget.money:g}"
        elapsed = time.monotonic() - self.started_at if self.started_at is not None else 0.0
        if budget.seconds is not None and elapsed >= budget.seconds:
            return f"budget.seconds = {budget.seconds:g}"
        return None

    def told(self) -> str:
        """What was spent, for people."""
        tokens = self.prompt_tokens + self.completion_tokens
        return f"{self.completions:,} completions, {tokens:,} tokens, {self.money:.2f} of money, {self.seconds:.0f} s"

    def as_details(self) -> dict[str, float]:
        """For the manifest: of this run of the stage, not of the rows that the ledger knew."""
        return {
            "questions": self.questions,
            "completions": self.completions,
            "refusals": self.refusals,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "asking_seconds": round(self.seconds, 3),
            "start_seconds": round(self.start_seconds, 3),
            "money": round(self.money, 6),
        }
