"""Scores JSON lines with an exported student; needs onnxruntime and numpy: scorer.py FOLDER FILE"""

import json
import re
import sys
import zlib

import numpy as np
import onnxruntime

folder, file = sys.argv[1:]
known = json.load(open(f"{folder}/vocabulary.json", encoding="utf-8"))
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
heads, buckets = 1 + len(known["fields"]), known["buckets"]
numbers = {word: heads + buckets + place for place, word in enumerate(known["words"])}
for line in open(file, encoding="utf-8"):
    row, ids, fields = json.loads(line), [], []
    for place, name in enumerate(known["fields"]):
        words = re.findall(known["word_pattern"], row[name].lower())[: known["max_words"]]
        words = [word[: known["stem"]] for word in words]
        ids += [1 + place, *(numbers.get(word) or heads + zlib.crc32(word.encode()) % buckets for word in words)]
        fields += [place] * (1 + len(words))
    inputs = {"word_ids": np.array([ids]), "field_ids": np.array([fields])}
    scores = dict(zip(known["classes"], session.run(None, inputs)[0][0].tolist()))
    print(json.dumps({"id": row.get("id"), "label": max(scores, key=scores.get), "probabilities": scores}))
