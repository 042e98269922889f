"""Benchmarks in their official layouts at toy size, each read back by the plainest loop that does it.

A function writes a folder and returns the samples that it holds; nothing here knows how the kit reads.
"""

import base64
import csv
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
WIZ = "When the provided information is insufficient, respond with 'Unanswerable'."


class Want(NamedTuple):
    id: str
    prompt: str
    images: list[Any]
    answers: list[str]
    category: str = ""
    choices: list[str] = []  # noqa: RUF012
    group: str = ""


def paint(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path)


def png(colour: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def dump(path: Path, content: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, **options), encoding="utf8")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf8"))


def ten(answer: str) -> list[dict[str, Any]]:
    people = [answer] * 7 + ["other", "thé", ""]
    return [{"answer": said, "answer_confidence": "yes", "answer_id": n + 1} for n, said in enumerate(people)]


def vqav2(folder: Path) -> list[Want]:
    questions = [{"image_id": 42 + n // 2, "question": f"What is {n}?", "question_id": 4200 + n} for n in range(4)]
    answers = [
        {"question_id": q["question_id"], "image_id": q["image_id"], "answer_type": kind, "answers": ten(kind)}
        for q, kind in zip(questions, ["other", "number", "yes/no", "other"], strict=True)
    ]
    dump(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"info": {"a": [1]}, "questions": questions})
    dump(folder / "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": answers[::-1]}, indent=1)
    for q in questions:
        paint(folder / f"val2014/COCO_val2014_{q['image_id']:012d}.jpg")
    return read_vqa(folder, "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")


def read_vqa(folder: Path, questions: str, annotations: str, suffix: str = SHORT, category: str = "answer_type") -> Any:
    wants = []
    for question in load(folder / questions)["questions"]:
        for annotation in load(folder / annotations)["annotations"]:
            if annotation["question_id"] == question["question_id"]:
                name = "COCO_val2014_" + str(question["image_id"]).zfill(12) + ".jpg"
                said = [answer["answer"] for answer in annotation["answers"]]
                prompt = question["question"] + "\n" + suffix
                image = str(folder / "val2014" / name)
                wants.append(Want(str(question["question_id"]), prompt, [image], said, annotation[category]))
    return wants


def vqav2_test_dev(folder: Path) -> list[Want]:
    questions = [{"image_id": 7, "question": "What?", "question_id": 70}]
    dump(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions})
    image = folder / "test2015/COCO_test2015_000000000007.jpg"
    paint(image)
    return [Want("70", f"What?\n{SHORT}", [str(image)], [])]


def okvqa(folder: Path) -> list[Want]:
    questions = [{"image_id": 51606 + n, "question": "Why?", "question_id": 516065 + n} for n in range(2)]
    answers = [
        {"question_id": q["question_id"], "image_id": q["image_id"], "question_type": "four", "answers": ten("race")}
        for q in questions
    ]
    dump(folder / "OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    dump(folder / "mscoco_val2014_annotations.json", {"annotations": answers})
    for q in questions:
        paint(folder / f"val2014/COCO_val2014_{q['image_id']:012d}.jpg")
    names = ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")
    return read_vqa(folder, *names, suffix=f"{WIZ}\n{SHORT}", category="question_type")


def gqa(folder: Path) -> list[Want]:
    rows = {
        f"20{n}": {
            "imageId": f"n{n}",
            "question": f"Is it {n}?",
            "answer": "yes",
            "types": {"structural": "verify", "semantic": "attr"},
            "isBalanced": True,
        }
        for n in range(3)
    }
    dump(folder / "testdev_balanced_questions.json", rows)
    wants = []
    for key, row in load(folder / "testdev_balanced_questions.json").items():
        paint(folder / f"images/{row['imageId']}.jpg")
        image = str(folder / f"images/{row['imageId']}.jpg")
        kind = row["types"]["structural"]
        wants.append(Want(key, f"{row['question']}\n{SHORT}", [image], [row["answer"]], kind))
    return wants


def textvqa(folder: Path) -> list[Want]:
    rows = [
        {
            "question_id": 34602 + n,
            "question": f"what does NASA say {n}?",
            "image_id": f"00{n}ae",
            "answers": ["a"] * 10,
        }
        for n in range(3)
    ]
    dump(folder / "TextVQA_0.5.1_val.json", {"data": rows, "dataset_type": "val"})
    wants = []
    for row in load(folder / "TextVQA_0.5.1_val.json")["data"]:
        paint(folder / f"train_images/{row['image_id']}.jpg")
        image = str(folder / f"train_images/{row['image_id']}.jpg")
        wants.append(Want(str(row["question_id"]), f"{row['question']}\n{SHORT}", [image], row["answers"]))
    return wants


def textvqa_ocr(folder: Path) -> list[Want]:
    wants = textvqa(folder)
    tokens = {"000ae": ["NOKIA", "3,5", "x"], "001ae": [], "002ae": ["ÉTÉ"]}
    data = [{"image_id": key, "ocr_tokens": value, "ocr_info": []} for key, value in tokens.items()]
    dump(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": data})
    found = []
    for want in wants:
        question, suffix = want.prompt.split("\n")
        for row in load(folder / "TextVQA_Rosetta_OCR_v0.2_val.json")["data"]:
            if want.images[0].endswith(f"{row['image_id']}.jpg"):
                prompt = f"{question}\nReference OCR token: {', '.join(row['ocr_tokens'])}\n{suffix}"
                found.append(want._replace(prompt=prompt))
    return found


def stvqa(folder: Path, file: str = "test_task_3.json", answers: tuple[str, ...] = ()) -> list[Want]:
    row = {"question_id": 5, "question": "Which?", "file_path": "test_task3/coco/a.jpg", "set_name": "x"}
    dump(folder / file, {"data": [{**row, "answers": list(answers)} if answers else row]})
    paint(folder / row["file_path"])
    return [Want("5", f"Which?\n{SHORT}", [str(folder / "test_task3/coco/a.jpg")], list(answers))]


def stvqa_train(folder: Path) -> list[Want]:
    return stvqa(folder, "train_task_3.json", ("Coca-Cola", "coke"))


def docvqa(folder: Path) -> list[Want]:
    rows = [
        {
            "questionId": 337 + n,
            "question": "what is the date?",
            "image": f"documents/d{n}.png",
            "docId": 279,
            "answers": ["1/8/93", "1/8"],
            "question_types": ["form", "handwritten"],
        }
        for n in range(2)
    ]
    dump(folder / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": rows})
    wants = []
    for row in load(folder / "val_v1.0_withQT.json")["data"]:
        paint(folder / row["image"])
        kinds = ", ".join(row["question_types"])
        prompt = row["question"] + "\n" + SHORT
        wants.append(Want(str(row["questionId"]), prompt, [str(folder / row["image"])], row["answers"], kinds))
    return wants


def docvqa_test(folder: Path) -> list[Want]:
    dump(folder / "test_v1.0.json", {"data": [{"questionId": 9, "question": "who?", "image": "documents/t.png"}]})
    paint(folder / "documents/t.png")
    return [Want("9", f"who?\n{SHORT}", [str(folder / "documents/t.png")], [])]


def infovqa(folder: Path) -> list[Want]:
    row = {
        "questionId": 98313,
        "question": "How many?",
        "image_local_name": "38137.jpeg",
        "answers": ["21%", "21"],
        "answer_type": ["single span"],
    }
    dump(folder / "infographicsVQA_val_v1.0_withQT.json", {"data": [row]})
    image = folder / "infographicsvqa_images/38137.jpeg"
    paint(image)
    return [Want("98313", f"How many?\n{SHORT}", [str(image)], ["21%", "21"], "single span")]


def chartqa(folder: Path) -> list[Want]:
    wants = []
    for kind in ("human", "augmented"):
        rows = [{"imgname": f"{kind}{n}.png", "query": f"How {n}?", "label": f"{n}%"} for n in range(2)]
        dump(folder / f"test/test_{kind}.json", rows)
        for number, row in enumerate(load(folder / f"test/test_{kind}.json"), 1):
            image = folder / "test/png" / row["imgname"]
            paint(image)
            prompt = f"{row['query']}\nAnswer the question with a single word."
            wants.append(Want(f"{kind}-{number}", prompt, [str(image)], [row["label"]], kind))
    return wants


def ocrvqa(folder: Path) -> list[Want]:
    rows = {
        f"06{n}": {
            "imageURL": "http://x",
            "title": "T",
            "questions": ["Who wrote it?", "Is it a novel?"],
            "answers": [f"Ann {n}", "No"],
            "split": split,
        }
        for n, split in enumerate([3, 1, 2, 3])
    }
    dump(folder / "dataset.json", rows)
    wants = []
    for key, row in load(folder / "dataset.json").items():
        if row["split"] == 3:
            paint(folder / f"images/{key}.jpg")
            for number in range(len(row["questions"])):
                prompt = row["questions"][number] + "\n" + SHORT
                image = str(folder / f"images/{key}.jpg")
                wants.append(Want(f"{key}-{number + 1}", prompt, [image], [row["answers"][number]]))
    return wants


def ocrbench(folder: Path) -> list[Want]:
    kinds = [("IIIT5K", "CENTRE", "Regular Text Recognition"), ("docVQA", ["1 May", "May 1"], "Doc-oriented VQA")]
    rows = [
        {"dataset_name": name, "id": 28, "image_path": f"{name}/1.png", "question": "what?", "answers": a, "type": kind}
        for name, a, kind in kinds
    ]
    dump(folder / "OCRBench.json", rows, indent=4)
    wants = []
    for row in load(folder / "OCRBench.json"):
        image = folder / "OCRBench_Images" / row["image_path"]
        paint(image)
        answers = row["answers"] if isinstance(row["answers"], list) else [row["answers"]]
        wants.append(Want(f"{row['dataset_name']}-{row['id']}", row["question"], [str(image)], answers, row["type"]))
    return wants


def vizwiz(folder: Path) -> list[Want]:
    people = [{"answer": "tea", "answer_confidence": "yes"}] * 9 + [{"answer": "", "answer_confidence": "no"}]
    row = {"image": "VizWiz_val_00000000.jpg", "question": "What is it?", "answers": people, "answer_type": "other"}
    dump(folder / "val.json", [{**row, "answerable": 1}])
    image = folder / "val/VizWiz_val_00000000.jpg"
    paint(image)
    prompt = f"What is it?\n{WIZ}\n{SHORT}"
    return [Want("VizWiz_val_00000000.jpg", prompt, [str(image)], ["tea"] * 9 + [""], "other")]


def vizwiz_test(folder: Path) -> list[Want]:
    dump(folder / "test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What?"}])
    image = folder / "test/VizWiz_test_00000000.jpg"
    paint(image)
    return [Want("VizWiz_test_00000000.jpg", f"What?\n{WIZ}\n{SHORT}", [str(image)], [])]


def pope(folder: Path) -> list[Want]:
    wants = []
    for kind in ("random", "popular", "adversarial"):
        path = folder / f"coco/coco_pope_{kind}.json"
        path.parent.mkdir(exist_ok=True)
        rows = [
            {"question_id": n, "image": "COCO_val2014_1.jpg", "text": f"Is there a {kind} cat?", "label": label}
            for n, label in ((1, "yes"), (2, "no"))
        ]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        for line in path.read_text().splitlines():
            row = json.loads(line)
            image = str(folder / "val2014" / row["image"])
            prompt = row["text"] + "\n" + SHORT
            wants.append(Want(f"{kind}-{row['question_id']}", prompt, [image], [row["label"]], kind))
    paint(folder / "val2014/COCO_val2014_1.jpg")
    return wants


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
    "vqav2": vqav2,
    "vqav2@test-dev": vqav2_test_dev,
    "okvqa": okvqa,
    "gqa": gqa,
    "textvqa": textvqa,
    "textvqa:ocr": textvqa_ocr,
    "stvqa": stvqa,
    "stvqa@train": stvqa_train,
    "docvqa": docvqa,
    "docvqa@test": docvqa_test,
    "infovqa": infovqa,
    "chartqa": chartqa,
    "ocrvqa": ocrvqa,
    "ocrbench": ocrbench,
    "vizwiz": vizwiz,
    "vizwiz@test": vizwiz_test,
    "pope": pope,
    "mmmu": mmmu,
    "mmbench": mmbench,
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
