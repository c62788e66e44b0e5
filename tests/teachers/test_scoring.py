"""Texts as paths of tokens, and their probabilities from next-token probabilities."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from retort.teachers.vllm.engine.scoring import children, continuation, end_token, ended, log_probabilities, nodes

END = 9

paths_strategy = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6, unique=True
)


def test_a_text_that_another_begins_with_is_ended() -> None:
    assert ended([[1], [1, 2], [3]], END) == [(1, END), (1, 2), (3,)]
    assert ended([[1], [1]], END) == [(1,), (1,)]
    assert ended([[1], [2], [1, 2, 3], [1, 2]], END) == [(1, END), (2,), (1, 2, 3), (1, 2, END)]


def test_labels_of_one_token_cost_one_pass() -> None:
    assert nodes([(1,), (2,), (3,)]) == [()]
    assert children([(1,), (3,), (2,)], ()) == [1, 2, 3]


def test_the_trie_is_walked_node_by_node() -> None:
    paths = [(1, 2, 3), (1, 4), (5,)]
    assert nodes(paths) == [(), (1,), (1, 2)]
    assert [children(paths, node) for node in nodes(paths)] == [[1, 5], [2, 4], [3]]


@given(paths_strategy)
def test_no_path_begins_another_and_each_step_is_asked_for(texts: list[tuple[int, ...]]) -> None:
    paths = ended(texts, END)
    assert not any(one == other[: len(one)] for one, other in itertools.permutations(paths, 2))
    asked = {(node, token) for node in nodes(paths) for token in children(paths, node)}
    assert asked == {(path[:at], path[at]) for path in paths for at in range(len(path))}


@given(paths_strategy, st.randoms(use_true_random=False))
def test_probabilities_are_products_and_never_sum_to_more_than_1(texts: list[tuple[int, ...]], random: object) -> None:
    paths = ended(texts, END)
    next_token = {}
    for node in nodes(paths):
        weights = [random.random() + 1e-3 for _ in range(10)]  # type: ignore[attr-defined]
        next_token[node] = {token: math.log(weight / sum(weights)) for token, weight in enumerate(weights)}
    scores = log_probabilities(paths, next_token)
    for path, score in zip(paths, scores, strict=True):
        product = math.prod(math.exp(next_token[path[:at]][token]) for at, token in enumerate(path))
        assert math.exp(score) == pytest.approx(product)
    assert sum(map(math.exp, scores)) <= 1 + 1e-9


def spaced() -> PreTrainedTokenizerFast:
    """Like SentencePiece, puts a space before a text."""
    pieces = ["<unk>", "▁", "\n", "▁good", "good", "x", "\n\n", "</s>"]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer = Tokenizer(
        models.Unigram([(piece, -float(len(pieces) - n)) for n, piece in enumerate(pieces)], unk_id=0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_completion_is_tokenized_as_it_stands_after_the_prompt() -> None:
    tokenizer = spaced()
    assert tokenizer.encode("good") == [3]
    assert tokenizer.encode("\ngood") == [1, 2, 4]
    assert continuation(tokenizer, "\n", "good") == [4]


def test_a_plain_completion_ends_with_the_empty_line_that_demonstrations_end_with() -> None:
    tokenizer = spaced()
    assert end_token(tokenizer, chat=False) == 6
    with pytest.raises(ValueError, match="no end token"):
        end_token(tokenizer, chat=True)
    tokenizer.eos_token = "</s>"
    assert end_token(tokenizer, chat=True) == 7
