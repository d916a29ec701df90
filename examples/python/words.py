"""Counts words. What a function returns becomes `result.json` in the task's output."""

import collections
import os


def count(file, top=10):
    path = os.path.join(os.environ["SINEW_INPUT"], file)
    with open(path, encoding="utf-8") as text:
        words = collections.Counter(text.read().split())
    print("counted", sum(words.values()), "words")
    return {"task": int(os.environ["SINEW_TASK"]), "top": words.most_common(top)}
