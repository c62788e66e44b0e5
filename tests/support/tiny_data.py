"""Rows and completions to run a whole distillation on, and the words that they are made of."""

import json
from pathlib import Path
from typing import Any

QUESTION = ["what", "is", "the", "weather", "in"]
WHOLE_WORDS = [*QUESTION, "play", "by", "now", "today", "film", "was", "good", "awful", "dull", "great"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZES = {"labeled": 12, "unlabeled": 60, "test": 20}
TRAINING = {
    "epochs": 3,
    "min_updates": 0,
    "learning_rate": 3.0e-3,
    "batch_tokens": 256,
    "freeze_embeddings": False,
    "precision": "fp32",
}
TITLES = ["yellow", "let it be", "clocks", "creep", "hey jude", "karma police", "time"]
PLACES = ["paris", "new york", "rome", "cape town", "oslo"]


def slots_row(role: str, number: int) -> dict[str, str]:
    """Texts differ between roles by a number that is part of them."""
    name = f"{role}-{number}"
    if number % 2:
        title, artist = TITLES[number % 7], f"artist{LETTERS[number % 26]} {role}"
        words = [("play", "O"), *tagged(title, "track"), ("by", "O"), *tagged(artist, "artist")]
        return as_row(name, "PlayMusic", words)
    when = ("today", "B-timeRange") if number % 4 else ("now", "B-timeRange")
    place = f"{PLACES[number % 5]} {LETTERS[number % 26]}{role}"
    return as_row(name, "GetWeather", [*((word, "O") for word in QUESTION), *tagged(place, "city"), when])


def tagged(text: str, slot: str) -> list[tuple[str, str]]:
    return [(word, f"{'I' if place else 'B'}-{slot}") for place, word in enumerate(text.split())]


def as_row(name: str, intent: str, words: list[tuple[str, str]]) -> dict[str, str]:
    text, tags = (" ".join(column) for column in zip(*words, strict=True))
    return {"id": name, "text": text, "intent": intent, "bio": tags}


def class_row(role: str, number: int) -> dict[str, str]:
    label, word = [("up", "great"), ("up", "good"), ("down", "awful"), ("down", "dull")][number % 4]
    return {"id": f"{role}-{number}", "text": f"the film {LETTERS[number % 26]}{role} was {word}", "label": label}


def completion(number: int, row: dict[str, str]) -> dict[str, Any]:
    """In the batch output format. Every tenth names another intent, row 5 breaks off."""
    slots, words = [], list(zip(row["text"].split(), row["bio"].split(), strict=True))
    for word, tag in words:
        if tag.startswith("B"):
            slots.append(f"[SL:{tag[2:].upper()} {word}")
        elif tag.startswith("I"):
            slots[-1] += f" {word}"
    intent = "PLAY_MUSIC" if row["intent"] == "PlayMusic" else "GET_WEATHER"
    content = " ".join([f"[IN:{intent}", *(f"{slot} ]" for slot in slots), "]"])
    if number % 10 == 9:
        content = f"[IN:{intent} ]"
    if number == 5:
        content = content[:-2]
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return {"custom_id": row["id"], "response": {"status_code": 200, "body": {"choices": [choice]}}, "error": None}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
