"""How scores are written for people."""

from retort.config import ERRORS
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
    "rmse": "RMSE",
    "mae": "MAE",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
LESS_IS_BETTER = "RMSE and MAE are in the unit of the labels, and less is better; a gain is how much less."


def with_interval(score: Score | None) -> str:
    """`89.6 [88.1, 91.0]`"""
    if score is None:
        return "-"
    value, low, high = (score_text(score.metric, one) for one in (score.value, score.low, score.high))
    return f"{value} [{low}, {high}]"


def score_text(metric: str, value: float) -> str:
    """0.896 -> 89.6; of an error in the unit of the labels, 0.523."""
    if metric not in ERRORS:
        return percent(value)
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def gain_text(metric: str, gain: float) -> str:
    """0.021 -> +2.1, in percent points; of an error, by how much it is less, +0.0213. Never `-0`."""
    return f"{round(gain, 6) + 0.0:+.3g}" if metric in ERRORS else signed(gain)


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
