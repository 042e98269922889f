"""Paths and templates by which fields are taken from rows."""

import math
from typing import Any

import pytest

from vlm.errors import ConfigError
from vlm.eval.sources.field_paths import Empty, Missing, check, find, first_keys, render
from vlm.eval.sources.records import Records
from vlm.schema import check_options

ROW = {
    "id": 7,
    "answers": [{"answer": "a"}, {"answer": "b"}],
    "columns": {"answer": ["c", "d"], "id": [1, 2]},
    "types": {"structural": "verify"},
    "json": '{"gt_parse": {"menu": [1]}}',
    "python": "['x', \"it's\"]",
    "text": "[sic] plain",
    "nan": math.nan,
    "$file": "f",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("id", 7),
        ("answers[].answer", ["a", "b"]),
        ("columns[].answer", ["c", "d"]),
        ("types.structural", "verify"),
        ("json.gt_parse", {"menu": [1]}),
        ("python[]", ["x", "it's"]),
        ("text[]", ["[sic] plain"]),
        ("text", "[sic] plain"),
        ("python", "['x', \"it's\"]"),
        ("nan", None),
        ("nan | mod 5", None),
        ("id | mod 5", 2),
        ("text | without plain", "[sic]"),
        ("$file", "f"),
        (".", {key: value for key, value in ROW.items() if key not in ("nan", "$file")}),
    ],
)
def test_a_path_leads_to_a_value(path: str, value: Any) -> None:
    found = find(ROW, path)
    if path == ".":
        assert math.isnan(found.pop("nan"))
    assert found == value


def test_what_a_path_cannot_find() -> None:
    with pytest.raises(Missing, match="`anwsers` is missing; its keys: id, answers, columns"):
        find(ROW, "anwsers[].answer")
    with pytest.raises(Missing, match="`b` is missing; there is 7"):
        find(ROW, "id.b")
    with pytest.raises(ValueError, match="`id` is 7, not a list"):
        find(ROW, "id[]")
    with pytest.raises(ValueError, match="`241` is the number of another row"):
        find({"image": "241"}, "image | base64")
    with pytest.raises(ValueError, match="is no base64"):
        find({"image": "no picture!"}, "image | base64")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("text | upper", "unknown change `upper`; allowed: base64, mod, between, without"),
        ("{text | upper}.jpg", "unknown change `upper`"),
        ("a_{n:04d.jpg", "unmatched|expected '}'"),
        ("a}_{n}", "Single '}'"),
        ("{}", "has a path without a key"),
    ],
)
def test_expressions_are_checked_before_any_row(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(expression)
    with pytest.raises(ConfigError, match=message):
        check_options(Records, {"files": "x", "sample": {"image": expression}})


def test_texts_with_paths_in_them() -> None:
    assert render({"n": 3, "s": "12"}, "a_{n:04d}_{s:04d}.jpg") == "a_0003_0012.jpg"
    assert render(ROW, "{types.structural}/{id}") == "verify/7"
    assert render({"list": ["a", "b"]}, "list") == "a, b"
    assert render({"id": "validation_Art_Theory_1"}, "id | between _") == "Art_Theory"
    assert first_keys("{a.b} {c[].d:02d} {e | mod 3}") == {"a", "c", "e"}
    with pytest.raises(Empty, match="`nan` is empty"):
        render(ROW, "x{nan}")
    with pytest.raises(ValueError, match="is not of the form `04d`"):
        render({"n": "a"}, "{n:04d}")
    with pytest.raises(ValueError, match="NaN is no text"):
        render({"list": [1.5, math.nan]}, "list")
