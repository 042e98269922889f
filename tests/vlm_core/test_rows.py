"""Rows of JSON files: the same as `json.loads` gives, with places from which each can be read again."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm import rows as module
from vlm.errors import ConfigError
from vlm.rows import json_rows, line_rows, read_span

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.lists(plain, max_size=6) | st.dictionaries(st.text(), plain, max_size=6),
    before=plain,
    indent=st.sampled_from([None, 0, 2]),
    chunk=st.sampled_from([1, 7, 64, 1 << 20]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    ascii_=st.booleans(),
)
def test_rows_are_those_of_the_whole_file(
    items: Any, before: Any, indent: int | None, chunk: int, encoding: str, ascii_: bool, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    content = {"before": before, "a": {"rows": items}, "after": 1}
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_)
    path.write_text(text, encoding=encoding, errors="surrogatepass", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        found = list(json_rows(path, "a.rows"))
    wanted = list(items.values()) if isinstance(items, dict) else items
    assert [row.value for row in found] == wanted
    assert [row.key for row in found] == (list(items) if isinstance(items, dict) else [None] * len(items))
    assert [read_span(path, row.span) for row in found] == wanted
    content_bytes = path.read_bytes()
    assert [row.span.line for row in found] == [content_bytes[: row.span.start].count(b"\n") + 1 for row in found]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": [2]}', r"has nothing under `rows`; its keys: a, b"),
        ("[1, 2]", "holds a list where an object with `rows` is expected"),
        ("", "holds nothing where an object with `rows` is expected"),
        ('{"rows": 5}', "has no list or mapping of rows under `rows`"),
        ('{"rows": [1,\n {"a": }]}', r"is no JSON, line 2: Expecting value"),
        ('{"rows": [1,\n2', r"is no JSON, line 2: `\]` is missing before the end of the file"),
        ('{"rows": [1 2]}', r"is no JSON, line 1: `\]` is missing before `2`"),
        ("{rows: [1]}", r"is no JSON, line 1: a key in quotes is missing before `r`"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        list(json_rows(tmp_path / "bad.json", "rows"))


def test_other_bytes_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b'{"rows": ["\xff"]}')
    with pytest.raises(ConfigError, match="is no UTF-8"):
        list(json_rows(tmp_path / "bad.json", "rows"))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        list(line_rows(tmp_path / "none.jsonl"))


def test_lines_count_blank_ones_and_keep_bad_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n"é"\n')
    found = list(line_rows(path))
    assert [(row.span.line, row.value, bool(row.fault)) for row in found] == [
        (1, {"a": 1}, False),
        (3, None, True),
        (4, "é", False),
    ]
    assert read_span(path, found[2].span) == "é"
