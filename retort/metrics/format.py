"""How scores are written for people."""

from retort.records.base import Label, Score

TITLES: dict[str, str] = {
    "slot_f1": "slot F1",
    "entity_f1": "entity F1",
    "intent_accuracy": "intent accuracy",
    "exact_match": "exact match",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "jaccard": "Jaccard",
    "quadratic_weighted_kappa": "weighted kappa",
    "bracket_f1": "bracket F1",
    "bracket_precision": "bracket precision",
    "bracket_recall": "bracket recall",
    "unlabeled_f1": "unlabeled F1",
    "chrf": "chrF",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "field_f1": "field F1",
}


def with_interval(score: Score | None) -> str:
    """`89.6 [88.1, 91.0]`"""
    return "-" if score is None else f"{percent(score.value)} [{percent(score.low)}, {percent(score.high)}]"


def percent(value: float) -> str:
    """0.896 -> 89.6. Never `-0.0`."""
    return f"{round(100 * value, 1) + 0.0:.1f}"


def signed(gain: float) -> str:
    """0.021 -> +2.1, in percent points."""
    return f"{round(100 * gain, 1) + 0.0:+.1f}"


def p_text(p_value: float) -> str:
    """`p = 0.035`"""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def seconds_text(seconds: float) -> str:
    """`3 min 20 s`"""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


def shortened(label: Label, most: int = 400) -> str:
    return label if len(label) <= most else f"{label[:most]} ..."
