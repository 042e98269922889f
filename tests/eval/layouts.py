"""More benchmarks in their official layouts: choices, captions, regions, text; and the table of all."""

import base64
import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import layouts_vqa as vqa
from .layouts_vqa import LETTER, SHORT, Want, dump, load, paint, png


def mmmu(folder: Path) -> list[Want]:
    import pyarrow
    from pyarrow import parquet

    pictures = [png(colour) for colour in ("red", "green", "blue")]
    rows = [
        {
            "id": "validation_Art_Theory_1",
            "question": "Between <image 2> and <image 1>, which is <image 1>?",
            "options": "['left <image 3>', \"it's right\"]",
            "question_type": "multiple-choice",
            "answer": "B",
        },
        {
            "id": "validation_Art_Theory_2",
            "question": "How much?",
            "options": "[]",
            "question_type": "open",
            "answer": "['24/7', '3.429']",
        },
    ]
    for row, count in zip(rows, (3, 1), strict=True):
        for number in range(1, 8):
            there = {"bytes": pictures[number - 1], "path": "x.png"} if number <= count else None
            row[f"image_{number}"] = there  # type: ignore[assignment]
    path = folder / "Art_Theory/validation-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    choices = ["left <image>", "it's right"]
    question = "Between <image> and <image>, which is <image 1>?"
    asked = f"{question}\nA. left <image>\nB. it's right\n\n{LETTER}"
    order = [pictures[1], pictures[0], pictures[2]]
    open_ = Want("validation_Art_Theory_2", f"How much?\n\n{SHORT}", pictures[:1], ["24/7", "3.429"], "Art_Theory")
    return [Want("validation_Art_Theory_1", asked, order, ["B"], "Art_Theory", choices), open_]


def mmstar(folder: Path) -> list[Want]:
    import pyarrow
    from pyarrow import parquet

    question = "What is it?\nOptions: A: A red car, B: A blue one, C: Two, D: None"
    row = {"index": 7, "question": question, "answer": "B", "category": "coarse perception", "l2_category": "x"}
    rows = [{**row, "image": {"bytes": png(), "path": "7.jpg"}, "meta_info": {"source": "SEEDBench_IMG"}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "mmstar.parquet")
    return [Want("7", f"{question}\n{LETTER.rstrip('.')}", [png()], ["B"], "coarse perception")]


def mmbench(folder: Path) -> list[Want]:
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "split"]
    picture = base64.b64encode(png()).decode()
    rows = [
        ["241", 'Which "one"?', "A hint,\nof two lines", "cat", "dog", "", "", "A", "logic", picture, "dev"],
        ["1000241", 'Which "one"?', "A hint,\nof two lines", "dog", "cat", "", "", "B", "logic", picture, "dev"],
        ["252", "Where?", "", "here", "there", "nowhere", "all\tover", "D", "place", picture, "dev"],
    ]
    with (folder / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([columns, *rows])
    wants = []
    for row in rows:
        named = dict(zip(columns, row, strict=True))
        choices = [named[letter] for letter in "ABCD" if named[letter]]
        prompt = named["hint"] + "\n" if named["hint"] else ""
        prompt += named["question"] + "\n"
        for letter, choice in zip("ABCD", choices, strict=False):
            prompt += f"{letter}. {choice}\n"
        group = named["index"][-3:]
        image = base64.b64decode(named["image"])
        wants.append(
            Want(named["index"], prompt + LETTER, [image], [named["answer"]], named["category"], choices, group)
        )
    return wants


def scienceqa(folder: Path) -> list[Want]:
    def problem(split: str, image: str | None, hint: str, answer: int) -> dict[str, Any]:
        shared = {"question": "Which?", "choices": ["West", "East", "North"], "subject": "social science"}
        return {**shared, "answer": answer, "hint": hint, "image": image, "split": split}

    problems = {
        "4": problem("test", "image.png", "Look at it.", 2),
        "5": problem("test", None, "", 0),
        "6": problem("train", "image.png", "", 0),
        "11": problem("test", "choice.png", "", 1),
    }
    dump(folder / "problems.json", problems)
    wants = []
    for key, row in load(folder / "problems.json").items():
        if row["split"] == "test" and row["image"] is not None:
            image = folder / "images/test" / key / row["image"]
            paint(image)
            prompt = f"Context: {row['hint']}\n" if row["hint"] else ""
            prompt += "Which?\nA. West\nB. East\nC. North\n" + LETTER
            answer = "ABC"[row["answer"]]
            wants.append(Want(key, prompt, [str(image)], [answer], "social science", row["choices"]))
    return wants


def ai2d(folder: Path) -> list[Want]:
    for name in ("0.png", "10.png", "2.png"):
        paint(folder / "images" / name, (80, 60))
        asked = {"abcLabel": False, "answerTexts": ["moon", "sun"], "correctAnswer": 1, "questionId": f"{name}-0"}
        letters = {"abcLabel": True, "answerTexts": ["A", "B"], "correctAnswer": 0, "questionId": f"{name}-1"}
        questions = {f"What is {name}?": asked, "Which letter?": letters}
        dump(folder / "questions" / f"{name}.json", {"imageName": name, "questions": questions})
        text = {"T0": {"rectangle": [[10, 10], [40, 30]], "replacementText": "A", "value": "sun"}}
        dump(folder / "annotations" / f"{name}.json", {"text": text})
    (folder / "ai2d_test_ids.csv").write_text("0\n10\n")
    wants = []
    for name in ("0.png", "10.png"):
        image = str(folder / "images" / name)
        for number, (question, row) in enumerate(load(folder / f"questions/{name}.json")["questions"].items()):
            choices = row["answerTexts"]
            prompt = f"{question}\nA. {choices[0]}\nB. {choices[1]}\n{LETTER}"
            answer, kind = "AB"[row["correctAnswer"]], "letters" if row["abcLabel"] else "texts"
            wants.append(Want(f"{name}-{number}", prompt, [image], [answer], kind, choices))
    return wants


def mme(folder: Path) -> list[Want]:
    lines = "Is it {}? Please answer yes or no.\tYes\nIs it a cat? Please answer yes or no.\tNo\n\n"
    wants = []
    for task, texts, images in (
        ("OCR", "", ""),
        ("artwork", "questions_answers_YN", "images"),
        ("color", "", ""),
    ):
        (folder / task / texts).mkdir(parents=True)
        (folder / task / texts / "0001.txt").write_text(lines.format(task))
        image = folder / task / images / "0001.png"
        paint(image)
        for number, line in enumerate((folder / task / texts / "0001.txt").read_text().split("\n")[:2], 1):
            question, answer = line.split("\t")
            prompt = question.replace(" Please answer yes or no.", "") + "\n" + SHORT
            group = f"{task}/0001"
            wants.append(Want(f"{group}/{number}", prompt, [str(image)], [answer], task, [], group))
    return wants


def coco_caption(folder: Path) -> list[Want]:
    images = [{"id": 9, "file_name": "9.jpg"}, {"id": 3, "file_name": "3.jpg"}]
    said = [(3, 1, "A cat."), (9, 2, "A dog."), (3, 3, "One cat."), (9, 4, "Dogs.")]
    annotations = [{"image_id": image, "id": number, "caption": text} for image, number, text in said]
    dump(folder / "annotations/captions_val2017.json", {"images": images, "annotations": annotations})
    content = load(folder / "annotations/captions_val2017.json")
    wants = []
    for image in content["images"]:
        path = folder / "val2017" / image["file_name"]
        paint(path)
        captions = [item["caption"] for item in content["annotations"] if item["image_id"] == image["id"]]
        prompt = "Provide a one-sentence caption for the provided image."
        wants.append(Want(str(image["id"]), prompt, [str(path)], captions))
    return wants


def coco_karpathy(folder: Path) -> list[Want]:
    images = [
        {"filepath": "val2014", "filename": f"{n}.jpg", "cocoid": n, "split": split, "sentences": [{"raw": "A cat."}]}
        for n, split in ((391895, "test"), (522418, "restval"))
    ]
    dump(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    paint(folder / "val2014/391895.jpg")
    return [Want("391895", "Describe the image briefly.", [str(folder / "val2014/391895.jpg")], ["A cat."])]


def refcoco(folder: Path, name: str = "refcoco", by: str = "unc", split: str = "val") -> list[Want]:
    refs = [
        {
            "ref_id": n,
            "ann_id": 100 + n,
            "image_id": 58 + n,
            "split": part,
            "file_name": "x",
            "sentences": [{"sent_id": 10 * n + k, "sent": f"man {n} {k}", "tokens": ["man"]} for k in range(2)],
        }
        for n, part in enumerate([split, "train", split])
    ]
    (folder / name).mkdir(parents=True)
    (folder / name / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    boxes = [{"id": 100 + n, "image_id": 58 + n, "bbox": [10.0 + n, 5.0, 20.5, 10.0]} for n in range(3)]
    sizes = [{"id": 58 + n, "width": 80, "height": 40} for n in range(3)]
    dump(folder / name / "instances.json", {"annotations": boxes, "images": sizes})
    long = (
        "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y)."
        " All values are floating point numbers bounded between 0 and 1. Please provide the bounding box coordinate of"
        " the region this sentence describes: "
    )
    wants = []
    for ref in refs:
        for sentence in ref["sentences"] if ref["split"] == split else ():  # type: ignore[attr-defined]
            x, y, width, height = next(box["bbox"] for box in boxes if box["id"] == ref["ann_id"])  # type: ignore[misc]
            corners = [x / 80, y / 40, (x + width) / 80, (y + height) / 40]
            path = folder / f"images/mscoco/images/train2014/COCO_train2014_{ref['image_id']:012d}.jpg"
            paint(path, (80, 40))
            wants.append(Want(str(sentence["sent_id"]), long + sentence["sent"], [str(path)], [json.dumps(corners)]))
    return wants


def refcocog(folder: Path) -> list[Want]:
    return refcoco(folder, "refcocog", "umd")


def refcoco_plus_test_a(folder: Path) -> list[Want]:
    return refcoco(folder, "refcoco+", split="testA")


def text_recognition(folder: Path) -> list[Want]:
    wants = []
    for name in ("CUTE80", "IIIT5k_3000"):
        (folder / name).mkdir()
        (folder / name / "gt.txt").write_text('word_1.png\tnan\nsub/word_2.png\t"Café\n', encoding="utf8")
        for line in (folder / name / "gt.txt").read_text(encoding="utf8").splitlines():
            picture, text = line.split("\t")
            paint(folder / name / picture)
            image = str(folder / name / picture)
            wants.append(Want(f"{name}/{picture}", "what is written in the image?", [image], [text], name))
    return wants


def text_recognition_lmdb(folder: Path) -> list[Want]:
    import lmdb

    texts = ["STOP", "Wow!"]
    with lmdb.open(str(folder), map_size=1 << 20) as file, file.begin(write=True) as writing:
        writing.put(b"num-samples", b"2")
        for number, text in enumerate(texts, 1):
            writing.put(b"image-%09d" % number, png())
            writing.put(b"label-%09d" % number, text.encode())
    return [
        Want(f"{folder.name}/{number:09d}", "what is written in the image?", [png()], [text], folder.name)
        for number, text in enumerate(texts, 1)
    ]


def sroie(folder: Path) -> list[Want]:
    wants = []
    prompt = (
        "Give the company, date, address and total of this receipt as a JSON object with exactly the keys company,"
        " date, address and total. Copy each text as it is printed."
    )
    for name in ("X00016469670", "X5"):
        fields = {"company": "OJC SDN BHD", "date": "15/01/2019", "address": "NO 2, JALAN É", "total": "193.00"}
        dump(folder / f"entities/{name}.txt", fields, indent=4)
        paint(folder / f"img/{name}.jpg")
        truth = json.dumps(load(folder / f"entities/{name}.txt"), ensure_ascii=False)
        wants.append(Want(name, prompt, [str(folder / f"img/{name}.jpg")], [truth]))
    return sorted(wants, key=lambda want: len(want.id))


def cord(folder: Path) -> list[Want]:
    parse = {"menu": [{"nm": "Giant Squid", "cnt": "x 1", "price": "Rp. 39.000"}], "total": {"total_price": "39.000"}}
    line = {"file_name": "image_0.png", "ground_truth": json.dumps({"gt_parse": parse, "meta": {}})}
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    paint(folder / "image_0.png")
    row = json.loads((folder / "metadata.jsonl").read_text())
    truth = json.dumps(json.loads(row["ground_truth"])["gt_parse"])
    return [Want("image_0.png", "Give the content of this receipt", [str(folder / "image_0.png")], [truth])]


def funsd(folder: Path) -> list[Want]:
    texts = [("DATE:", "question"), ("1 May", "answer"), ("FORM", "header"), ("7", "other"), (" ", "question")]
    form = [{"id": n, "text": text, "label": label, "linking": []} for n, (text, label) in enumerate(texts)]
    dump(folder / "annotations/8207.json", {"form": form})
    paint(folder / "images/8207.png")
    truth = json.dumps({"header": ["FORM"], "question": ["DATE:"], "answer": ["1 May"]})
    return [Want("8207", "Give the texts of this form", [str(folder / "images/8207.png")], [truth])]


LAYOUTS: dict[str, Callable[[Path], list[Want]]] = {
    "vqav2": vqa.vqav2,
    "vqav2@test-dev": vqa.vqav2_test_dev,
    "okvqa": vqa.okvqa,
    "gqa": vqa.gqa,
    "textvqa": vqa.textvqa,
    "textvqa:ocr": vqa.textvqa_ocr,
    "stvqa": vqa.stvqa,
    "stvqa@train": vqa.stvqa_train,
    "docvqa": vqa.docvqa,
    "docvqa@test": vqa.docvqa_test,
    "infovqa": vqa.infovqa,
    "chartqa": vqa.chartqa,
    "ocrvqa": vqa.ocrvqa,
    "ocrbench": vqa.ocrbench,
    "vizwiz": vqa.vizwiz,
    "vizwiz@test": vqa.vizwiz_test,
    "pope": vqa.pope,
    "mmmu": mmmu,
    "mmbench": mmbench,
    "mmstar": mmstar,
    "scienceqa": scienceqa,
    "ai2d": ai2d,
    "mme": mme,
    "coco_caption": coco_caption,
    "coco_caption@karpathy:brief": coco_karpathy,
    "refcoco": refcoco,
    "refcocog": refcocog,
    "refcoco_plus@testA": refcoco_plus_test_a,
    "text_recognition": text_recognition,
    "sroie": sroie,
    "cord": cord,
    "funsd": funsd,
}
"""Task (with split and prompt) -> its layout."""
