"""One's own files: labelled examples of one new domain to adapt to, and texts to predict on."""

import logging
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from metalib.errors import BadInput
from metalib.formats import READERS, Problem, extension_of, find_path, read_records, refuse, text_of
from metalib.reviews import name_problems, shape_problems, text_problems

log = logging.getLogger("metalib")


def load_examples(data: str | Path | Dataset, text_column: str = "text", label_column: str = "label") -> Dataset:
    """Labelled examples of one domain: columns text and label, in the file's order.

    data: a file that ends in .json, .jsonl, .ndjson, .csv (parted by commas, semicolons or tabs) or .parquet; or a
    dataset. Labels are any texts or whole numbers, two or more; the class names are those of a dataset's ClassLabel,
    else the labels in sorted order, whole numbers by value. Surrounding whitespace is stripped. A text that comes again
    is dropped, with a warning.
    Raises BadInput, which names the file, the records (counted from 1) and the remedy: a missing column, an empty
    text or label, one text with two labels, fewer than two classes, a class with one example only.
    """
    if not isinstance(data, str | Path | Dataset):
        raise BadInput(f"the examples are a {type(data).__name__} — give a file's path, or a datasets.Dataset (one "
                       "split of a DatasetDict; Dataset.from_pandas(frame), Dataset.from_list(rows))")  # fmt: skip
    name = "the examples" if isinstance(data, Dataset) else str(data)
    records = _records(data, label_column) if isinstance(data, Dataset) else _read(name)
    _find_columns(records, {"text_column": text_column, "label_column": label_column}, name)
    numbered = list(enumerate(records, start=1))
    refuse(((bad, number) for number, record in numbered for bad in _problems(record, text_column, label_column)), name)
    plain = _plain_labels({str(record[label_column]) for record in records})
    kept: dict[str, tuple[str, int]] = {}  # text → label and number of its first record
    contrary: list[tuple[Problem, int]] = []
    for number, record in numbered:
        text, label = record[text_column].strip(), plain[str(record[label_column])]
        first_label, first = kept.setdefault(text, (label, number))
        if label != first_label:
            other = f"the text of record {first}, but another label ({label!r}, not {first_label!r})"
            contrary.append(((other, "keep the right one"), number))
    refuse(contrary, name)
    if doubles := len(records) - len(kept):
        log.warning("%s: dropped %d examples whose text came earlier", name, doubles)
    labels = [label for label, _ in kept.values()]
    classes = _class_names(labels, label_column, name)
    if isinstance(data, Dataset) and isinstance(kind := data.features[label_column], ClassLabel):
        classes = list(dict.fromkeys(plain[each] for each in kind.names if each in plain))
    features = Features({"text": Value("string"), "label": ClassLabel(names=classes)})
    return Dataset.from_dict({"text": list(kept), "label": list(map(classes.index, labels))}, features=features)


def count(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Class → how many examples it has."""
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def check_counts(examples: Dataset, shots: int | None, source: str) -> None:
    """Raise BadInput for a class with too few examples for so many shots."""
    counts = count(np.asarray(examples["label"][:], dtype=np.int64), examples.features["label"].names)
    for name, number in counts.items():
        if shots is not None and (number < shots or number == shots < max(counts.values())):
            raise BadInput(f"{source}: class {name!r} has {number} examples; shots={shots} needs {shots}, and one more "
                           "to test on — lower it, or leave it out to learn from all examples")  # fmt: skip
    log.info("%s: %s", source, ", ".join(f"{number} {name}" for name, number in counts.items()))


def load_texts(path: str | Path, text_column: str = "text") -> list[str]:
    """Texts to predict on, in the file's order, doubles too; surrounding whitespace is stripped.

    path: a file as for `load_examples`, whose other columns do not matter, or a .txt file (or "-": what comes on stdin)
    with a text a line, where blank lines are left out.
    Raises BadInput, which names the file, the records (counted from 1) and the remedy.
    """
    name = str(path)
    if name == "-" or Path(name).suffix.lower() == ".txt":
        return _read_lines(name)
    records = _read(name, ".txt")
    _find_columns(records, {"text_column": text_column}, name)
    numbered = enumerate(records, start=1)
    refuse(((bad, number) for number, record in numbered for bad in _problems(record, text_column)), name)
    return [record[text_column].strip() for record in records]


def _read(name: str, *more_extensions: str) -> list[Any]:
    """The unchecked records of a file. Raises BadInput."""
    path = find_path(name)
    if path.is_dir():
        raise BadInput(f"{name!r} is a folder — give the path of one file in it")
    return read_records(path, extension_of(name, [*READERS, *more_extensions]), name)


def _read_lines(name: str) -> list[str]:
    """The lines of a file, or of stdin, that hold something. Raises BadInput."""
    path = None if name == "-" else find_path(name)
    try:
        text = text_of(path) if path else sys.stdin.buffer.read().decode("utf-8-sig")
        texts = [line.strip() for line in text.split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{name}: cannot be read as .txt: {error} — save it again (as UTF-8)") from error
    if not texts:
        raise BadInput(f"{name}: holds no texts — give a file with a text a line")
    return texts


def _records(data: Dataset, label_column: str) -> list[dict[str, Any]]:
    """The rows of a dataset, at least one, classes by their names. Raises BadInput where there are none."""
    if not len(data):
        raise BadInput("the examples: there are none — give a dataset with at least two of each class")
    kind, records = data.features.get(label_column), data.to_list()
    if isinstance(kind, ClassLabel):
        for record in records:
            number = record[label_column]
            record[label_column] = None if number is None or number < 0 else kind.int2str(number)
    return records


def _find_columns(records: list[Any], columns: dict[str, str], name: str) -> None:
    """Raise BadInput for a column that no record has; columns: parameter → the column that it names."""
    there = list(dict.fromkeys(key for record in records if isinstance(record, dict) for key in record if key))
    small = {key.lower(): key for key in there}
    for parameter, column in columns.items():
        if not there or column in there:  # where no record is an object, `_problems` says so
            continue
        if close := get_close_matches(column.lower(), small, n=1):
            hint = f"did you mean {parameter}={small[close[0]]!r}?"
        else:
            hint = f"name one of them as {parameter}, or give a CSV file a first line of names."
        if len(there) < len(columns):
            hint = "the values of a CSV file are parted by commas, semicolons or tabs."
        shown = ", ".join(map(repr, there[:20])) + ", …" * (len(there) > 20)
        raise BadInput(f"{name}: no column {column!r} — {hint} Its columns: {shown}")


def _problems(record: Any, text_column: str, label_column: str | None = None) -> Iterator[Problem]:
    """What is wrong with a record that should have a text, and a label where its column is given."""
    yield from shape_problems(record, f'{{"{text_column}": …, …}}')
    if isinstance(record, dict):
        yield from text_problems(record.get(text_column), text_column)
        label = record.get(label_column)
        if isinstance(label, float | list | dict):
            yield f"a {type(label).__name__} as {label_column!r}", "make it a text or a whole number"
        elif label_column is not None and not isinstance(label, int):
            yield from name_problems(label, label_column)


def _plain_labels(given: Iterable[str]) -> dict[str, str]:
    """Each label without surrounding whitespace, and whole numbers without the .0 that pandas gives them."""
    plain = {label: label.strip() for label in given}
    if all(re.fullmatch(r"-?\d{1,18}(\.0)?", label) for label in plain.values()):
        plain = {label: short.removesuffix(".0") for label, short in plain.items()}
    return plain


def _class_names(labels: list[str], label_column: str, name: str) -> list[str]:
    """The classes, sorted. Raises BadInput for fewer than two, one with a single example, two spellings of one."""
    counts = Counter(labels)
    for spellings in ({name for name in counts if name.casefold() == label.casefold()} for label in counts):
        if len(spellings) > 1:
            raise BadInput(f"{name}: the labels {' and '.join(map(repr, sorted(spellings)))} differ in small and "
                           "capital letters only — write them alike")  # fmt: skip
    if len(counts) < 2:
        raise BadInput(f"{name}: all {len(labels)} examples have the {label_column} {labels[0]!r} — add another class")
    if single := sorted(label for label, count in counts.items() if count == 1):
        raise BadInput(
            f"{name}: {len(single)} of {len(counts)} classes have one example only: {reprlib.repr(single)} — "
            f"give each two or more; or is {label_column!r} not the column of the labels?"
        )
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in counts):
        return sorted(counts, key=lambda label: (int(label), label))
    return sorted(counts)
