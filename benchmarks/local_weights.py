"""What weights of each row's own gain where teachers know different things: three scorers of science answers, each
trained on a third of SciEntsBank's domains, label the answers of all; 60 of these are labeled and teach the weights.

    .venv/bin/python -m benchmarks.local_weights [--drawings 10] [--labeled 60]

Prints the accuracy of each way to merge, mean and standard deviation over the drawings (of rows, and of domains).
"""

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.naive_bayes import MultinomialNB

from retort.problems.classification import Classification
from retort.teachers.local_weights import LocalWeights
from retort.teachers.voting import learn_weights, merge_votes

CLASSES = ["correct", "contradictory", "incorrect"]
PROBLEM = Classification(CLASSES)
FILES = ("train", "test_unseen_answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawings", type=int, default=10)
    parser.add_argument("--labeled", type=int, default=60)
    options = parser.parse_args()
    rows = [row for name in FILES for row in read(f"examples/scientsbank/{name}.jsonl.gz")]
    found = defaultdict(list)
    for seed in range(options.drawings):
        for name, accuracy in merged(rows, options.labeled, np.random.default_rng(seed)).items():
            found[name].append(accuracy)
    for name, accuracies in found.items():
        print(f"{name:17s} {100 * np.mean(accuracies):5.1f} ± {100 * np.std(accuracies):.1f}")


def read(path: str) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def merged(rows: Sequence[dict[str, str]], labeled: int, generator: np.random.Generator) -> dict[str, float]:
    """Accuracy by the way to merge, on rows that no scorer was trained on."""
    order = generator.permutation(len(rows))
    known, others = order[: len(rows) // 2], order[len(rows) // 2 :]
    shown, pool = others[:labeled], others[labeled:]
    domains = np.array([row["module"] for row in rows])
    features = TfidfVectorizer(min_df=2).fit_transform([_words(row) for row in rows])
    golds = np.array([row["label"] for row in rows])
    said = []
    for own in np.array_split(generator.permutation(np.unique(domains)), 3):
        part = known[np.isin(domains[known], own)]
        said.append(MultinomialNB(alpha=0.1).fit(features[part], golds[part]).predict(features))
    texts = [f"{row['question']}\n{row['reference']}\n{row['answer']}" for row in rows]
    given = [texts[at] for at in shown], golds[shown].tolist(), [one[shown].tolist() for one in said]
    fixed = learn_weights(PROBLEM, *given).weights
    ways = {
        "vote": np.ones((len(pool), 3)),
        "weighted": np.tile(fixed, (len(pool), 1)),
        "locally-weighted": LocalWeights(PROBLEM, *given).of([texts[at] for at in pool]),
    }
    best = max(float(np.mean(one[pool] == golds[pool])) for one in said)
    return {
        "best scorer alone": best,
        **{name: _accuracy(said, golds, pool, weights) for name, weights in ways.items()},
    }


def _words(row: dict[str, str]) -> str:
    """The answer's words, alone and together with the question's id."""
    words = row["answer"].lower().split()
    return " ".join([*words, *(f"{row['question_id']}{word}" for word in words)])


def _accuracy(
    said: Sequence[NDArray[np.str_]], golds: NDArray[np.str_], pool: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    votes = [
        merge_votes(PROBLEM, "", [one[at] for one in said], row) for at, row in zip(pool, weights.tolist(), strict=True)
    ]
    return float(np.mean([vote is not None and vote[0] == golds[at] for vote, at in zip(votes, pool, strict=True)]))


if __name__ == "__main__":
    main()
