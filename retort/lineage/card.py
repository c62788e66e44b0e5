"""The cards of an exported student: of the model (README.md) and of its data (DATA.md), filled from the manifests."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retort.artifacts.examples import SET_ASIDE
from retort.lineage.student import Lineage, LineageStep
from retort.lineage.text import lineage_lines, teacher_facts
from retort.serving.addresses import ModelName
from retort.store import Manifest

DATA_CARD = "DATA.md"
_TASKS = {
    "token-classification": "token-classification",
    "sequence-classification": "text-classification",
    "seq2seq": "text2text-generation",
    "causal": "text-generation",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_ROLES = {
    "labeled": "people labeled it: demonstrations for the teacher, and what labels must prove themselves on",
    "unlabeled": "the pool: the teacher and students labeled it for training; gold labels in it are for reports only",
    "test": "for scores only",
    "dev": "for decisions of the run only",
    "train": "people labeled it; students are trained on it",
}


def model_card(
    name: ModelName, params: Mapping[str, Any], lineage: Lineage, measured: Sequence[str], asked: Sequence[str]
) -> str:
    """`params` are the student's, of its fingerprint; `measured` lines about the exported forms; `asked` lines that say
    how to ask a student that writes."""
    problem = params["problem"]
    scores = {
        name: value
        for version in lineage.registered[:1]
        for name, value in version.tags.items()
        if not name.startswith(("retort.", "gate.", "promotion.", "rollback."))
    }
    return _joined(
        f"---\nlibrary_name: transformers\npipeline_tag: {_TASKS[params['student']]}\n"
        "tags: [retort, knowledge-distillation]\n---",
        f"# {name}\nA student for the problem `{problem['kind']}`, distilled by Retort from a teacher's labels. "
        f"It reads at most {params.get('max_length') or params['training']['max_length']} tokens of a text. What it "
        f"was trained on: [{DATA_CARD}]({DATA_CARD}).",
        _labels_of(problem),
        _section("How to ask it", asked),
        _section("Scores on the test rows", [f"- {name}: {value}" for name, value in scores.items()]),
        _section("Forms", [f"- {one}" for one in measured]),
        _section("Where it came from", ["```", *lineage_lines(lineage), "```"]),
    )


def data_card(name: ModelName, problem: Mapping[str, Any], data: Mapping[str, Manifest], lineage: Lineage) -> str:
    """Which data sets went in, what was set aside of them, who labeled the pool. `data` are the examples by role."""
    labeling = [step for step in lineage.steps if step.kind in ("pseudolabels", "predictions")]
    rows = max((manifest.rows for manifest in data.values()), default=0)
    size = next((name for most, name in _SIZES if rows < most), "n>1M")
    creators = ["machine-generated"] if labeling else ["found"]
    table = [
        "| set | rows | with gold labels | set aside | source | sha256 of the content |",
        "| --- | ---: | ---: | --- | --- | --- |",
        *(_data_row(role, manifest, lineage) for role, manifest in sorted(data.items())),
    ]
    return _joined(
        f"---\nannotations_creators: {creators}\nsize_categories: [{size}]\ntags: [retort]\n---".replace("'", ""),
        f"# The data of {name}\nWhat a student for the problem `{problem['kind']}` was made of, from the manifests of "
        "the run that made it. The rows themselves are not in this folder.",
        _section("Data sets", [*table, "", *(f"- {role}: {_ROLES[role]}" for role in sorted(data) if role in _ROLES)]),
        _section("Who labeled the pool", [line for step in labeling for line in _labeling_lines(step)]),
        _section("No longer in the store", [f"- {gone}" for gone in lineage.swept]),
        "## What no manifest knows\nLicence, consent and personal data of the texts; who the people were that labeled "
        "them; whom wrong labels would harm. Write it here before you publish the folder.",
    )


def _data_row(role: str, manifest: Manifest, lineage: Lineage) -> str:
    params = manifest.fingerprint["params"]
    aside = ", ".join(f"{count:,} {reason}" for reason, count in manifest.details.get(SET_ASIDE, {}).items())
    source = next((one.source for one in lineage.data if manifest.key.startswith(one.key)), "not known")
    limit = f"{manifest.rows:,} (the first; `data.limit`)" if params.get("limit") else f"{manifest.rows:,}"
    gold = manifest.counts.get("gold", 0)
    cells = (role, limit, f"{gold:,}", aside or "none", source, str(params.get("content", "not known"))[:16])
    return f"| {' | '.join(one.replace('|', '/') for one in cells)} |"


def _labeling_lines(step: LineageStep) -> Iterator[str]:
    """A step that labeled rows: who, and how many got no label."""
    counts = ", ".join(f"{count:,} {name}" for name, count in step.counts.items() if count and name != "asked")
    yield f"- {step.name}: {step.rows:,} rows labeled{f' ({counts})' if counts else ''}, {step.made_at[:10]}"
    for name, value in _labelers(step).items():
        yield f"  - {name}: {value}"


def _labelers(step: LineageStep) -> dict[str, str]:
    match step.verb:
        case "pseudolabel":
            return teacher_facts(step)
        case "cross-label":
            return {"by": "students, of rows that they were not trained on"}
        case "gather-probabilities" if "content" in step.params:
            return {
                "by": f"a teacher; its probabilities are recorded in a file with the digest {step.params['content']}"
            }
        case _:
            return {"by": f"the step {step.verb}: README.md"}


def _labels_of(problem: Mapping[str, Any]) -> str:
    named = problem.get("labels") or problem.get("intents")
    if not named:
        return ""
    lines = [f"- {name}: {', '.join(slots)}" for name, slots in named.items()] if isinstance(named, dict) else []
    return "## Labels\n" + ("\n".join(lines) or ", ".join(map(str, named)))


def _section(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n" + "\n".join(lines) if lines else ""


def _joined(*sections: str) -> str:
    return "\n\n".join(section for section in sections if section) + "\n"
