"""How long scoring takes on one core: 100,000 answers of realistic length, and one answer of 100,000 characters.

    python benchmarks/score_metrics.py

Prints a table and ends with 1 if a metric other than CIDEr takes more than a minute for the first or more than three
seconds for the second. What is timed is the whole way from answers to figures, `Metric.score` and `Metric.values`, in
seconds of the processor; answers and references are made before.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence

from vlm.eval.metrics import METRICS
from vlm.eval.metrics.scoring import Answered

LIMIT = 60.0
LIMIT_LONG = 3.0
UNLIMITED = {"cider"}
TEXT = (
    "a the of in on with red blue two man woman dog street sign train standing next to large white black table people"
    " it's person's don't 5 10 1,000 $5.00 3.5 left-hand yes no Coca-Cola invoice total date"
)
WORDS = TEXT.split()


def words(rng: random.Random, fewest: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(fewest, most)))


def spoilt(rng: random.Random, text: str) -> str:
    """The text as a model may read it: often right, else with a few other characters."""
    if rng.random() < 0.5:
        return text
    characters = list(text)
    for _ in range(rng.randint(1, 4)):
        characters[rng.randrange(len(characters))] = rng.choice("aeo1 .")
    return "".join(characters)


def vqa(rng: random.Random, number: int) -> Answered:
    """Ten short answers of people."""
    pool = [words(rng, 1, 3) for _ in range(3)]
    return Answered(rng.choice([*pool, pool[0].capitalize() + "."]), [rng.choice(pool) for _ in range(10)])


def short(rng: random.Random, number: int) -> Answered:
    truths = [words(rng, 1, 6) for _ in range(2)]
    return Answered(spoilt(rng, truths[0]), truths)


def page(rng: random.Random, number: int) -> Answered:
    """A line or a paragraph that is read."""
    truth = words(rng, 5, 60)
    return Answered(spoilt(rng, truth), [truth])


def number(rng: random.Random, number: int) -> Answered:
    truth = round(rng.uniform(0, 1000), rng.randint(0, 2))
    return Answered(f"{truth * rng.choice([1, 1.02, 1.2])}", [f"{truth}"])


def choice(rng: random.Random, number: int) -> Answered:
    options = [words(rng, 1, 8) for _ in range(4)]
    reply = rng.choice(
        ["B", "(C)", "A. ", "The answer is D.", "**A**", "I think it is ", options[1], words(rng, 8, 30)]
    )
    return Answered(reply, [rng.choice("ABCD")], options, group=f"{number // 4}")


def sentence(rng: random.Random, number: int) -> Answered:
    reply = rng.choice(["x = 3.5", "The answer is 12.", words(rng, 5, 40) + ". So it is 1,200.", words(rng, 1, 3)])
    return Answered(reply, [rng.choice(["3.5", "1200", "dog"])])


def yes_no(rng: random.Random, number: int) -> Answered:
    reply = rng.choice(["Yes", "No", "Yes, there is a dog.", "No, there is not.", words(rng, 5, 20)])
    category = rng.choice(["random", "popular", "adversarial", "OCR", "count"])
    return Answered(reply, [rng.choice(["yes", "no"])], group=f"{number // 2}", category=category)


def box(rng: random.Random, number: int) -> Answered:
    left, top, right, bottom = (round(rng.uniform(0, 0.5) + half, 2) for half in (0, 0, 0.51, 0.51))
    truth = f"[{left}, {top}, {right}, {bottom}]"
    return Answered(rng.choice([truth, f"[{left}, {top}, {right}, 1.0]", "I see no such thing."]), [truth])


def caption(rng: random.Random, number: int) -> Answered:
    return Answered(words(rng, 8, 14) + ".", [words(rng, 8, 14).capitalize() + "." for _ in range(5)])


def receipt(rng: random.Random, number: int) -> Answered:
    """The fields of a receipt of one to five items, half of them read without a mistake."""
    items = [
        {"nm": words(rng, 1, 3), "cnt": f"{rng.randint(1, 9)}", "price": f"{rng.randint(1, 99)},000"}
        for _ in range(rng.randint(1, 5))
    ]
    truth = {"menu": items, "total": {"total_price": f"{rng.randint(1, 999)},000", "cashprice": "1,000,000"}}
    read = json.loads(json.dumps(truth))
    if rng.random() < 0.5:
        read["menu"][0]["nm"] = spoilt(rng, items[0]["nm"])
        read["total"]["total_price"] = spoilt(rng, truth["total"]["total_price"])
        del read["menu"][-1][rng.choice(["cnt", "price"])]
    return Answered(json.dumps(read), [json.dumps(truth)])


def tags(rng: random.Random, number: int) -> Answered:
    truth = rng.choices(["O", "B-QUESTION", "I-QUESTION", "B-ANSWER", "I-ANSWER", "B-HEADER"], k=rng.randint(5, 60))
    return Answered(" ".join(tag if rng.random() < 0.9 else "O" for tag in truth), [" ".join(truth)])


KINDS: dict[str, Callable[[random.Random, int], Answered]] = {
    **dict.fromkeys(("vqa_accuracy", "vqa_accuracy_2021", "textvqa_accuracy", "vizwiz_accuracy"), vqa),
    **dict.fromkeys(("cer", "wer"), page),
    **dict.fromkeys(("multiple_choice", "circular_choice", "scienceqa", "mmmu", "mmmu_official"), choice),
    **dict.fromkeys(("pope", "pope_pooled", "mme"), yes_no),
    **dict.fromkeys(("rec", "rec_anywhere"), box),
    **dict.fromkeys(("kie_f1", "nted"), receipt),
    "relaxed_accuracy": number,
    "cider": caption,
    "entity_f1": tags,
}
"""What a metric's answers look like; short texts where nothing is said."""


def seconds(name: str, answers: Sequence[Answered]) -> float:
    metric, categories = METRICS[name], [answered.category for answered in answers]
    started = time.process_time()
    metric.values(metric.score(answers), categories)
    return time.process_time() - started


def realistic(name: str, count: int) -> list[Answered]:
    rng = random.Random(0)
    return [KINDS.get(name, short)(rng, index) for index in range(count)]


def long_texts() -> list[str]:
    """A hundred thousand characters of all kinds, or the same few again and again, as of a model that is stuck."""
    kinds = "".join(random.Random(0).choices([chr(code) for code in range(32, 127)], k=100_000))
    return [kinds, *(part * (100_000 // len(part)) for part in ("7", "dog ", "a,", "the the ", '{"a":', "(A) ", " "))]


def longest(name: str) -> float:
    """The slowest of the long texts."""
    return max(seconds(name, [Answered(text, ["a dog"], ["red", "blue"])]) for text in long_texts())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", nargs="*", default=[], help="all if none is named")
    parser.add_argument("--answers", type=int, default=100_000)
    chosen = parser.parse_args()
    slow = []
    sys.stdout.write(f"{'metric':24} {chosen.answers:>9,} answers, s   100,000 characters, s\n")
    for name in chosen.metrics or METRICS:
        many, one = seconds(name, realistic(name, chosen.answers)), longest(name)
        sys.stdout.write(f"{name:24} {many:20.2f} {one:23.2f}\n")
        sys.stdout.flush()
        if name not in UNLIMITED and (many > LIMIT or one > LIMIT_LONG):
            slow.append(name)
    if slow:
        sys.stdout.write(f"too slow: {', '.join(slow)}\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
