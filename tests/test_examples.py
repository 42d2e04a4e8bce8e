"""One's own files: every format gives the same, and every complaint names what is wrong and what to do."""

import contextlib
import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from metalib.errors import BadInput
from metalib.examples import load_examples, load_texts
from metalib.tasks import TaskSampler

EXTENSIONS = ("json", "jsonl", "ndjson", "csv", "parquet")
RECORDS = [
    {"text": "it leaks", "label": "fault"},
    {"text": " when do you open? ", "label": "question"},
    {"text": "NA", "label": "fault"},
    {"text": 'said "why",\nand left', "label": "question"},
    {"text": "merci ☕; à bientôt", "label": "thanks"},
    {"text": "ta", "label": "thanks"},
]


def write(path: Path, content: Any, delimiter: str = ",") -> Path:
    """The path, with records in the format of its extension, or with bytes or a text as they are."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_bytes(content.encode())
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(content[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(content)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    else:
        lines = map(json.dumps, content)
        path.write_text(json.dumps(content) if path.suffix == ".json" else "\n".join(lines))
    return path


def plain(examples: datasets.Dataset) -> list[tuple[str, str]]:
    return [(row["text"], examples.features["label"].int2str(row["label"])) for row in examples.to_list()]


EXPECTED = [(record["text"].strip(), record["label"]) for record in RECORDS]


def complaint(path: Path, **columns: str) -> str:
    with pytest.raises(BadInput) as caught:
        load_examples(path, **columns)
    return str(caught.value)


# Examples


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_gives_the_same(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"mine.{extension}", RECORDS)
    examples = load_examples(path)
    assert examples.column_names == ["text", "label"]
    assert examples.features["label"].names == ["fault", "question", "thanks"]
    assert plain(examples) == EXPECTED
    assert load_texts(str(path)) == [text for text, _ in EXPECTED]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_columns_by_other_names(tmp_path: Path, extension: str) -> None:
    renamed = [{"id": n, "Body": record["text"], "class": record["label"]} for n, record in enumerate(RECORDS)]
    path = write(tmp_path / f"mine.{extension}", renamed)
    assert plain(load_examples(path, "Body", label_column="class")) == EXPECTED
    assert load_texts(path, text_column="Body") == [text for text, _ in EXPECTED]


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 2, -1], ["-1", "2", "10"]),
        (["positive", "negative"], ["negative", "positive"]),
        (["b", "a", "10", "9"], ["10", "9", "a", "b"]),
        (["1" * 5000, "2"], ["1" * 5000, "2"]),
    ],
)
def test_class_names_are_the_sorted_labels(tmp_path: Path, extension: str, labels: list[Any], names: list[str]) -> None:
    records = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels * 2)]
    examples = load_examples(write(tmp_path / f"mine.{extension}", records))
    assert examples.features["label"].names == names
    assert plain(examples) == [(record["text"], str(record["label"])) for record in records]


def test_a_label_is_the_same_class_with_and_without_its_point(tmp_path: Path) -> None:
    records = [{"text": f"text {n}", "label": label} for n, label in enumerate(["1", "0", "0.0", "1.0"])]
    examples = load_examples(write(tmp_path / "mine.csv", records))
    assert examples.features["label"].names == ["0", "1"] and examples["label"][:] == [1, 0, 0, 1]


def test_classes_that_were_numbers_with_a_point(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": float(n % 2)} for n in range(6)]
    encoded = Dataset.from_list(rows).class_encode_column("label")
    assert encoded.features["label"].names == ["0.0", "1.0"]
    assert load_examples(encoded).features["label"].names == ["0", "1"]
    kind = ClassLabel(names=["unused", " good ", "bad"])
    spaced = Dataset.from_list([{"text": f"text {n}", "label": 1 + n % 2} for n in range(6)])
    assert load_examples(spaced.cast_column("label", kind)).features["label"].names == ["good", "bad"]


def test_the_same_label_with_and_without_its_point_is_no_contradiction(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": str(n % 2)} for n in range(6)] + [{"text": "text 1", "label": "1.0"}]
    assert len(load_examples(Dataset.from_list(rows))) == 6


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_csv_dialects(tmp_path: Path, delimiter: str, mark: str, line_end: str) -> None:
    path = write(tmp_path / "mine.csv", RECORDS, delimiter)
    content = path.read_bytes().decode().replace("\r\n", line_end)
    assert plain(load_examples(write(path, mark + content))) == EXPECTED


def test_a_csv_with_one_column_may_hold_semicolons(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", 'text\nfine; really\n"yes, and no"\n')
    assert load_texts(path) == ["fine; really", "yes, and no"]


def test_doubles_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "mine.json", [*RECORDS, {"text": " ta", "label": " thanks "}, RECORDS[0]])
    with caplog.at_level(logging.WARNING, "metalib"):
        assert plain(load_examples(path)) == EXPECTED
    (message,) = [record.getMessage() for record in caplog.records if record.name == "metalib"]
    assert message == f"{path}: dropped 2 examples whose text came earlier"


def test_tasks_can_be_drawn_once_a_domain_is_named(tmp_path: Path) -> None:
    examples = load_examples(write(tmp_path / "mine.json", RECORDS))
    task = TaskSampler(examples.add_column("domain", ["mine"] * len(examples)), shots=1, queries=1)[0]
    assert len(task.support) == len(task.query) == 3 and not set(task.support) & set(task.query)


# Complaints


def test_missing_columns(tmp_path: Path) -> None:
    for extension in EXTENSIONS:
        path = write(tmp_path / f"a.{extension}", [{"TEXTS": "x", "Label": "a", "id": "1"}] * 2)
        there = "Its columns: 'TEXTS', 'Label', 'id'"
        assert complaint(path) == f"{path}: no column 'text' — did you mean text_column='TEXTS'? {there}"
        assert "no column 'label' — did you mean label_column='Label'?" in complaint(path, text_column="TEXTS")
        assert "no column 'zz' — name one of them as text_column, or give a CSV" in complaint(path, text_column="zz")
        with pytest.raises(BadInput, match=r"no column 'text' — did you mean text_column='TEXTS'\?"):
            load_texts(path)


def test_csv_parted_by_something_else(tmp_path: Path) -> None:
    message = complaint(write(tmp_path / "a.csv", "text|label\nx|a\ny|b\n"))
    assert "no column 'text' — the values of a CSV file are parted by commas, semicolons or tabs" in message
    assert "Its columns: 'text|label'" in message


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("text", " \n", "2 records have an empty text: 2, 4 — remove them or fill them"),
        ("text", None, "2 records have no 'text': 2, 4 — fill it in"),
        ("text", 5, "2 records have a int as 'text': 2, 4 — make it a text"),
        ("text", "\ud83d", "2 records have half a surrogate pair in 'text': 2, 4"),
        ("label", "", "2 records have an empty label: 2, 4 — remove them or fill them"),
        ("label", None, "2 records have no 'label': 2, 4 — fill it in"),
        ("label", 1.5, "2 records have a float as 'label': 2, 4 — make it a text or a whole number"),
        ("label", ["a"], "2 records have a list as 'label': 2, 4 — make it a text or a whole number"),
        ("label", "a\x1b[2J", "2 records have a control character in 'label': 2, 4 — remove that character"),
        ("label", "\ud83d", "2 records have half a surrogate pair in 'label': 2, 4 — remove that character"),
    ],
)
def test_bad_records_are_numbered(tmp_path: Path, field: str, value: Any, said: str) -> None:
    records = [{**record, field: value} if n in (2, 4) else record for n, record in enumerate(RECORDS, start=1)]
    path = write(tmp_path / "a.json", records)
    assert complaint(path).startswith(f"{path}: {said}")
    if field == "text":
        with pytest.raises(BadInput, match="2, 4"):
            load_texts(path)


def test_one_text_with_two_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [*RECORDS, {"text": "it leaks ", "label": "thanks"}])
    said = "1 record has the text of record 1, but another label ('thanks', not 'fault'): 7 — keep the right one"
    assert complaint(path) == f"{path}: {said}"


def test_too_few_classes_or_examples(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", RECORDS[:1] + RECORDS[2:3])
    assert complaint(path) == f"{path}: all 2 examples have the label 'fault' — add another class"
    message = complaint(write(path, RECORDS[:5]))
    assert "1 of 3 classes have one example only: ['thanks'] — give each two or more" in message
    swapped = complaint(write(path, RECORDS[:3]), text_column="label", label_column="text")
    assert "1 record has the text of record 1, but another label ('NA', not 'it leaks'): 3" in swapped


def test_other_files(tmp_path: Path) -> None:
    assert "is a folder — give the path of one file" in complaint(tmp_path)
    write(tmp_path / "mine.csv", RECORDS)
    assert "did you mean 'mine.csv'?" in complaint(tmp_path / "mime.csv")
    assert "unknown extension '.txt' — use one of .json, .jsonl" in complaint(write(tmp_path / "a.txt", "x"))
    with pytest.raises(BadInput, match=r"unknown extension '.pdf' — use one of .*\.parquet, \.txt"):
        load_texts(write(tmp_path / "a.pdf", "x"))
    assert "1 record has a str for an object: 1 — write" in complaint(write(tmp_path / "a.json", ["x"]))
    assert "1 record has more values than the header has columns: 1" in complaint(
        write(tmp_path / "a.csv", "text,label\nfine, really,a\n")
    )
    assert "holds no records" in complaint(write(tmp_path / "b.csv", "text,label\n"))
    assert "two columns are called 'label'" in complaint(write(tmp_path / "c.csv", "text,label, label\nfine,a,b\n"))
    twice = [{"text": f"text {n}", "label": ("good", "Good", "bad")[n % 3]} for n in range(9)]
    assert "the labels 'Good' and 'good' differ in small and capital" in complaint(write(tmp_path / "g.json", twice))
    pandas = "text,label\n" + "".join(f"text {n},{n % 3}.0\n" for n in range(9))
    assert load_examples(write(tmp_path / "f.csv", pandas)).features["label"].names == ["0", "1", "2"]
    assert load_texts(write(tmp_path / "one.jsonl", '{"review": "fine"}\n'), "review") == ["fine"]
    assert "cannot be read as .csv" in complaint(write(tmp_path / "b.csv", "text,label\nété,a\n".encode("utf-16")))


# Texts


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.TXT", '\ufefffirst, with "quotes\r\n\n  second\u2028still  \nfirst; again\nsecond')
    assert load_texts(path) == ['first, with "quotes', "second\u2028still", "first; again", "second"]


def test_lines_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("fine\n\n été \r\n".encode())))
    assert load_texts("-") == ["fine", "été"]


def test_texts_keep_order_and_doubles(tmp_path: Path) -> None:
    texts = ["b", "a", "b", "c"]
    assert load_texts(write(tmp_path / "a.jsonl", [{"text": text} for text in texts])) == texts
    assert load_texts(write(tmp_path / "a.jsonl", [{"text": "only one"}])) == ["only one"]


@pytest.mark.parametrize(("content", "said"), [(" \n\n", "holds no texts"), (b"\xff\n", "cannot be read as .txt")])
def test_bad_text_files(tmp_path: Path, content: Any, said: str) -> None:
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(BadInput) as caught:
        load_texts(path)
    assert str(path) in str(caught.value) and said in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(
    content=st.one_of(st.binary(), st.text(), st.text('text,label;\n"ab1\t')),
    header=st.sampled_from(["", "text,label\n", "text;label\n"]),
    extension=st.sampled_from([*EXTENSIONS, "txt"]),
)
def test_any_content_gives_examples_or_bad_input(
    content: Any, header: str, extension: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = header.encode() + (content.encode() if isinstance(content, str) else content)
    path = write(tmp_path_factory.mktemp("any") / f"a.{extension}", whole)
    with contextlib.suppress(BadInput):
        examples = load_examples(path)
        assert len(set(examples["text"])) == len(examples) >= 4
    with contextlib.suppress(BadInput):
        assert all(load_texts(path))
