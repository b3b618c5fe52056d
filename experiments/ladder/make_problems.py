"""The shipped problems of `world.kind=problems`: word problems of two to four steps, from templates.

    python experiments/ladder/make_problems.py overopt/worlds/problems.jsonl

Each has the right answer and the steps to it, in the layout that a file of one's own has. They are easy
for a person and hard enough for models of a hundred million parameters; they are no benchmark.
"""

import json
import random
import sys
from pathlib import Path

NAMES = (
    "Ana",
    "Ben",
    "Chen",
    "Dara",
    "Emil",
    "Farah",
    "Goran",
    "Hana",
    "Ivo",
    "Jun",
    "Kofi",
    "Lena",
)
THINGS = ("apples", "books", "marbles", "pens", "shells", "stamps", "cards", "buttons")
N = 600


def basket(r: random.Random, name: str, thing: str) -> tuple[str, list[str], int]:
    a, b, c = r.randint(6, 40), r.randint(2, 9), r.randint(2, 20)
    total = a + b * c
    text = (
        f"{name} has {a} {thing} and buys {b} bags with {c} {thing} in each."
        f" How many {thing} does {name} have now?"
    )
    return text, [f"The bags hold {b} * {c} = {b * c} {thing}.", f"{a} + {b * c} = {total}"], total


def sharing(r: random.Random, name: str, thing: str) -> tuple[str, list[str], int]:
    friends, each, kept = r.randint(3, 9), r.randint(3, 12), r.randint(2, 15)
    total = friends * each + kept
    text = (
        f"{name} has {total} {thing}, keeps {kept} and shares the rest equally among {friends} friends."
        f" How many {thing} does each friend get?"
    )
    steps = [f"{total} - {kept} = {total - kept}", f"{total - kept} / {friends} = {each}"]
    return text, steps, each


def change(r: random.Random, name: str, thing: str) -> tuple[str, list[str], int]:
    n, price = r.randint(2, 9), r.randint(2, 9)
    note = 10 * (-(-n * price // 10)) + 10
    cost = n * price
    text = (
        f"{name} buys {n} {thing} at {price} dollars each and pays with {note} dollars."
        f" How many dollars does {name} get back?"
    )
    return (
        text,
        [f"The {thing} cost {n} * {price} = {cost} dollars.", f"{note} - {cost} = {note - cost}"],
        note - cost,
    )


def week(r: random.Random, name: str, thing: str) -> tuple[str, list[str], int]:
    day, more, days = r.randint(3, 12), r.randint(2, 15), r.randint(3, 6)
    total = day * days + more * 2
    text = (
        f"{name} sells {day} {thing} a day for {days} days, and {more} {thing} on each of two more days."
        f" How many {thing} does {name} sell in all?"
    )
    steps = [
        f"{day} * {days} = {day * days}",
        f"{more} * 2 = {more * 2}",
        f"{day * days} + {more * 2} = {total}",
    ]
    return text, steps, total


def double(r: random.Random, name: str, thing: str) -> tuple[str, list[str], int]:
    other = r.choice([n for n in NAMES if n != name])
    a, k, lost = r.randint(5, 30), r.randint(2, 4), r.randint(1, 9)
    total = a * k - lost + a
    text = (
        f"{name} has {a} {thing}. {other} had {k} times as many and lost {lost} of them."
        f" How many {thing} do they have together?"
    )
    steps = [
        f"{a} * {k} = {a * k}",
        f"{a * k} - {lost} = {a * k - lost}",
        f"{a * k - lost} + {a} = {total}",
    ]
    return text, steps, total


def wage(r: random.Random, name: str, thing: str) -> tuple[str, list[str], int]:
    rate, hours, extra, days = r.randint(8, 20), r.randint(3, 8), r.randint(5, 30), r.randint(2, 5)
    total = rate * hours * days + extra
    text = (
        f"{name} earns {rate} dollars an hour and works {hours} hours a day. After {days} days there is"
        f" a bonus of {extra} dollars. How many dollars has {name} earned?"
    )
    steps = [
        f"{rate} * {hours} = {rate * hours}",
        f"{rate * hours} * {days} = {rate * hours * days}",
        f"{rate * hours * days} + {extra} = {total}",
    ]
    return text, steps, total


def rows(r: random.Random, name: str, thing: str) -> tuple[str, list[str], int]:
    n, per, broken, boxes = r.randint(4, 12), r.randint(4, 12), r.randint(1, 9), r.randint(2, 5)
    whole = n * per - broken
    text = (
        f"A box holds {n} rows of {per} {thing}, of which {broken} are broken. {name} has {boxes} such"
        f" boxes. How many {thing} are whole?"
    )
    steps = [
        f"{n} * {per} = {n * per}",
        f"{n * per} - {broken} = {whole}",
        f"{whole} * {boxes} = {whole * boxes}",
    ]
    return text, steps, whole * boxes


def trip(r: random.Random, name: str, thing: str) -> tuple[str, list[str], int]:
    speed, hours, rest = r.randint(10, 60), r.randint(2, 6), r.randint(5, 40)
    total = speed * hours + rest
    text = (
        f"{name} drives {hours} hours at {speed} kilometres an hour, and then {rest} kilometres more."
        f" The way back is as long. How many kilometres is that in all?"
    )
    steps = [
        f"{speed} * {hours} = {speed * hours}",
        f"{speed * hours} + {rest} = {total}",
        f"{total} * 2 = {2 * total}",
    ]
    return text, steps, 2 * total


KINDS = (basket, sharing, change, week, double, wage, rows, trip)


def main(path: str) -> None:
    """Write the file; the same lines every time."""
    r, seen, lines = random.Random(0), set(), []
    while len(lines) < N:
        make = KINDS[len(lines) % len(KINDS)]
        text, steps, answer = make(r, r.choice(NAMES), r.choice(THINGS))
        if text not in seen:
            seen.add(text)
            lines.append(json.dumps({"prompt": text, "answer": str(answer), "steps": steps}))
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
