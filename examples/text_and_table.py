"""Tune a text encoder on a DataFrame with a text, a number and a category, and predict new rows.

It takes half a minute on one core: few rows, short texts, one pass over them.
"""

import random
import tempfile

import pandas as pd

import fusetune as ft

chance = random.Random(0)
GOOD = ["works as promised", "would buy it again", "better than I hoped", "my favourite by far"]
BAD = ["broke after a week", "a waste of money", "never arrived", "I want a refund"]
OPENERS = ["Ordered it in spring.", "For my parents.", "Second try.", "It came on a Monday.", "As a gift."]


def review() -> dict[str, object]:
    happy = chance.random() < 0.5
    text = f"{chance.choice(OPENERS)} It {chance.choice(GOOD if happy else BAD)}."
    days = round(chance.uniform(1, 6) if happy else chance.uniform(3, 12), 1)
    return {"review": text, "delivery_days": days, "shop": chance.choice("ABC"), "stars": 5 if happy else 1}


rows = pd.DataFrame([review() for _ in range(160)])

tuned = ft.fit(
    rows[:130],
    target="stars",
    config={
        "text": {"name": "minilm", "freeze": "bottom:5"},  # the embeddings and the first 4 of 6 layers stay as they are
        "trainer": {"epochs": 1, "head_epochs": 10, "trackers": []},
        "report": {"bootstrap": 200},
    },
    out=tempfile.mkdtemp(),
    progress=False,
)
print(tuned.evaluate(rows[130:]))

new = pd.DataFrame({"review": ["It broke after a week.", None], "delivery_days": [9, 2], "shop": ["A", "D"]})
predictions = tuned.predict(new)  # a missing cell and a shop never seen are no obstacle
print(predictions.to_pandas()[["row", "stars", "stars_probability", "error"]])
assert len(predictions) == len(new)
