"""Two targets at once, on a table with missing cells, a broken one and rows without a label."""

import csv
import json
import random
import tempfile
from pathlib import Path

import fusetune as ft

chance = random.Random(0)
folder = Path(tempfile.mkdtemp())
with (folder / "houses.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["rooms", "metres", "district", "price", "sold"])
    for number in range(300):
        rooms, metres, district = (
            chance.randint(1, 6),
            chance.uniform(20, 160),
            chance.choice(["north", "south", "port"]),
        )
        price = rooms * 20 + metres * 2 + (80 if district == "port" else 0) + chance.gauss(0, 10)
        sold = "yes" if price < 280 + chance.gauss(0, 20) else "no"
        cells = [rooms, "" if number % 9 == 0 else f"{metres:.1f}", district, f"{price:.0f}", sold]
        if number in (17, 18, 19):
            cells[1] = "many"  # not a number: a train row is set aside, a test row predicted without the cell
        if number % 20 == 0:
            cells[4] = ""  # no label for `sold`: used for `price` only
        table.writerow(cells)

tuned = ft.fit(
    folder / "houses.csv",
    target=["price", "sold"],
    out=folder / "model",
    config={"columns": {"rooms": "number"}, "trainer": {"epochs": 0, "head_epochs": 20, "trackers": []}},
    progress=False,
)
assert tuned.results is not None
for task in tuned.results.tasks:
    print(task.target, {system.name: round(task.main(system).value, 3) for system in task.systems})
for line in (folder / "model" / "rejected.jsonl").read_text().splitlines():
    print("rejected:", json.loads(line))

(folder / "new.csv").write_text("rooms,metres,district\n3,80,port\n3,many,port\n,,\n")
predictions = ft.load(folder / "model").predict(folder / "new.csv")
for row, price, sold, error in zip(*(predictions[name] for name in ("row", "price", "sold", "error")), strict=True):
    print(row, price, sold, error)
assert len(predictions) == 3
