"""Reads the answer of /v1/embeddings and shows how close each sentence is to the first one (cosine, 1 is the same).

    kubectl create --raw .../v1/embeddings -f question.json | python3 closest.py question.json
"""

import json
import math
import sys


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / (math.hypot(*a) * math.hypot(*b))


with open(sys.argv[1], encoding="utf-8") as question:
    texts = json.load(question)["input"]
vectors = [item["embedding"] for item in json.load(sys.stdin)["data"]]
print(f"\n  {texts[0]}")
ranked = sorted(zip(texts[1:], vectors[1:]), key=lambda pair: -cosine(vectors[0], pair[1]))
for text, vector in ranked:
    print(f"    {cosine(vectors[0], vector):5.2f}  {text}")
