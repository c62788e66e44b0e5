"""What a grammar of its own costs each row, on the CPU: `.venv-teacher/bin/python benchmarks/grammars.py TOKENIZER`.

For each of 100 test rows of SNIPS and CRAFT, in milliseconds of one core: to check the grammar (vLLM does that in the
process that takes requests, one after the other), to compile it (in threads beside the engine), to mask the next token
at each token of the gold label (in threads, while the GPU waits). xgrammar reads the GBNF, llguidance the Lark that
counts. In Retort's own environment, which has no xgrammar, llguidance is measured alone.
"""

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
SETS = {"snips": "snips.yaml", "craft": "craft-llm.yaml"}
Matcher = tuple[Callable[[], None], Callable[[int], bool]]
"""Masks the next token; accepts a token."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("tokenizer", help="a model's folder")
    arguments.add_argument("--rows", type=int, default=100)
    given = arguments.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    backends = {"llguidance": llguidance_backend(tokenizer)}
    try:
        backends["xgrammar"] = xgrammar_backend(tokenizer)
    except ImportError:
        print("xgrammar is not installed here")
    print(f"{'':8}{'':12}{'check':>8}{'compile':>9}{'masks':>8}{'sum':>8}{'tokens':>8}   ms a row")
    for name in SETS:
        rows = list(constrained_rows(name, given.rows))
        for backend, (check, compiled) in backends.items():
            show(name, backend, rows, tokenizer, check, compiled)


def show(name: str, backend: str, rows: list[Any], tokenizer: Any, check: Any, compiled: Any) -> None:
    spent, num_tokens = {"check": 0.0, "compile": 0.0, "masks": 0.0}, 0

    def timed(what: str, act: Callable[[], Any]) -> Any:
        begun = time.thread_time()
        result = act()
        spent[what] += 1000 * (time.thread_time() - begun) / len(rows)
        return result

    for constraint, rendering in rows:
        text = constraint.grammar if backend == "xgrammar" else constraint.lark
        timed("check", partial(check, text))
        mask, accept = timed("compile", partial(compiled, text))
        for token in [*tokenizer.encode(rendering, add_special_tokens=False), tokenizer.eos_token_id]:
            timed("masks", mask)
            assert accept(token), f"{backend} does not derive {rendering}"
            num_tokens += 1
    total, each = sum(spent.values()), num_tokens / len(rows)
    print(
        f"{name:8}{backend:12}{spent['check']:8.2f}{spent['compile']:9.2f}{spent['masks']:8.2f}{total:8.2f}{each:8.1f}"
    )


def llguidance_backend(tokenizer: Any) -> tuple[Callable[[str], None], Callable[[str], Matcher]]:
    import llguidance
    from llguidance.hf import from_tokenizer
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    tokens = from_tokenizer(tokenizer)
    bits = allocate_token_bitmask(1, tokens.vocab_size)

    def check(grammar: str) -> None:
        error = llguidance.LLMatcher.validate_grammar(llguidance.grammar_from("grammar", grammar), tokens)
        assert not error, error

    def compiled(grammar: str) -> Matcher:
        matcher = llguidance.LLMatcher(tokens, llguidance.grammar_from("grammar", grammar), log_level=0)
        return lambda: fill_next_token_bitmask(matcher, bits, 0), lambda token: bool(matcher.consume_token(token))

    return check, compiled


def xgrammar_backend(tokenizer: Any) -> tuple[Callable[[str], None], Callable[[str], Matcher]]:
    import xgrammar  # type: ignore[import-not-found]

    tokens = xgrammar.TokenizerInfo.from_huggingface(tokenizer)
    compiler = xgrammar.GrammarCompiler(tokens, max_threads=1)
    bits = xgrammar.allocate_token_bitmask(1, tokens.vocab_size)

    def compiled(grammar: str) -> Matcher:
        matcher = xgrammar.GrammarMatcher(compiler.compile_grammar(grammar))
        return lambda: matcher.fill_next_token_bitmask(bits, 0), matcher.accept_token

    return xgrammar.Grammar.from_ebnf, compiled


def constrained_rows(name: str, most: int) -> Iterator[tuple[Any, str]]:
    """What constrains each row, and its gold label as a teacher writes it."""
    from pydantic import TypeAdapter

    from retort.config import ColumnsConfig
    from retort.config.problems import Problem
    from retort.problems import problem_for

    config = yaml.safe_load((ROOT / "examples" / SETS[name]).read_text())
    columns = ColumnsConfig.model_validate(config["data"].get("columns", {}))
    problem = problem_for(TypeAdapter[Any](Problem).validate_python(config["problem"]))
    with gzip.open(ROOT / "examples" / name / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, list(lines)[:most]):
            yield problem.constraint(row["text"]), problem.render(row["text"], str(problem.gold(row, columns)))


if __name__ == "__main__":
    main()
