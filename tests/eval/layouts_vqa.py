"""Benchmarks in their official layouts at toy size, each read back by the plainest loop that does it.

A function writes a folder and returns the samples that it holds; nothing here knows how the kit reads.
"""

import io
import json
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
