"""Files: find or download them, and read their records from JSON, CSV, Parquet, and the folder of ARSC.

Files are read with `json`, `csv` and `pyarrow.parquet`, not with `datasets.load_dataset`: that guesses types (the text
"2020-01-01" becomes a timestamp, "null" and "NA" in a CSV None) and does not name the record that it cannot read.
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datasets import DownloadConfig, DownloadManager
from pyarrow.parquet import ParquetFile

from metalib.errors import BadInput

ARSC_NAME = re.compile(r"(?P<domain>.+)\.t(?P<threshold>[245])\.(?P<split>train|dev|test)")
ARSC_SPLITS = ("train", "dev", "test")
ARSC_LABELS = {"1": "positive", "-1": "negative"}
log = logging.getLogger("metalib")


def find_path(name: str, other_sources: str = "") -> Path:
    """Path of a local file or folder. Raises BadInput where it is missing, with names that are like it."""
    path = Path(os.path.expanduser(name))
    if not os.path.exists(path):
        siblings = os.listdir(path.parent) if os.access(path.parent, os.R_OK) and path.parent.is_dir() else []
        close = get_close_matches(path.name, siblings)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "check the path."
        raise BadInput(f"no file {name!r} — {hint} {other_sources}".rstrip())
    return path


def extension_of(name: str, known: Collection[str]) -> str:
    """The name's extension in small letters. Raises BadInput for one that is not known."""
    extension = Path(name).suffix.lower()
    if extension not in known:
        raise BadInput(f"{name}: unknown extension {extension!r} — use one of {', '.join(known)}")
    return extension


def download(url: str, blob_id: str | None = None) -> Path:
    """Path of a URL's file in the cache of `datasets`; once there it is not asked for again (no ETag).

    A download that breaks off leaves nothing that a later call would take for the file.
    blob_id: what `git hash-object` says of the right file, or None where that is not known.
    Raises BadInput where it cannot be downloaded, or is another file than it should be; that one is deleted.
    """
    config = DownloadConfig(use_etag=False, download_desc=url.rsplit("/", 1)[-1])
    try:
        path = Path(DownloadManager(dataset_name="metalib", download_config=config).download(url))
    except Exception as error:  # aiohttp, fsspec, huggingface_hub and urllib each have their own
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        # datasets downloads by way of aiohttp, which it does not install
        install = "pip install aiohttp, or " if isinstance(error, ImportError) else ""
        remedy = f"{install}download it elsewhere and pass the file's path, or use --data world"
        raise BadInput(f"{url}: cannot be downloaded ({cause}) — {remedy}") from error
    if blob_id is not None and (found := git_blob_id(path.read_bytes())) != blob_id:
        path.unlink(missing_ok=True)
        raise BadInput(
            f"{url}: not the file that was expected: git blob id {found}, not {blob_id}; its copy {path} is deleted "
            "— try again; where that does not help, download it elsewhere, look at it, and pass the file's path"
        )
    return path


def git_blob_id(content: bytes) -> str:
    """The id that git gives to a file of this content (40 hexadecimal digits)."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_records(path: Path, extension: str, name: str) -> list[Any]:
    """The records of a file, unchecked, at least one. Raises BadInput for a file that breaks its format."""
    try:
        records = READERS[extension](path) if path.stat().st_size else []
    except Exception as error:  # each parser has its own kinds; the first cause stays attached
        remedy = "correct the file there, or save it again (texts as UTF-8)"
        raise BadInput(f"{name}: cannot be read as {extension}: {error} — {remedy}") from error
    if not records:
        raise BadInput(f"{name}: holds no records — give a file with at least one review")
    return records


def text_of(path: Path) -> str:
    """The file's text, line ends as they are. Raises UnicodeDecodeError where it is not UTF-8."""
    return path.read_bytes().decode("utf-8-sig")


def _read_json(path: Path) -> list[Any]:
    """Records of [records], {"data": [records]} or JSON lines: told apart by content, not by extension."""
    text = text_of(path)
    found = _parse_json(text) if text.strip() else []
    if isinstance(found, dict) and "data" not in found and not any(isinstance(each, list) for each in found.values()):
        return [found]  # JSON lines with one line
    if isinstance(found, dict) and "data" not in found:
        raise ValueError(f'an object without "data" (its keys: {reprlib.repr(list(found))})')
    records = found["data"] if isinstance(found, dict) else found
    if not isinstance(records, list):
        raise ValueError(f"expected a list of records, found {reprlib.repr(records)}")
    return records


def _parse_json(text: str) -> Any:
    """The value of one JSON document, or the list of the values of JSON lines. Raises JSONDecodeError."""
    try:
        return json.loads(text, strict=False)  # strict=False: a text may hold control characters, also NUL
    except json.JSONDecodeError as error:
        whole = error
    values, start = [], 0
    for line in text.split("\n"):  # not splitlines(): U+2028 and others may stand in a text
        try:
            values += [json.loads(line, strict=False)] if line.strip() else []
        except json.JSONDecodeError as error:
            # Where not even the first line is JSON, the file is one broken document.
            raise json.JSONDecodeError(error.msg, text, start + error.pos) if values else whole from error
        start += len(line) + 1
    return values


def _read_csv(path: Path) -> list[Any]:
    """Records of a CSV file with a header; every value stays the text that it is, also "NA" and "null".

    Values are parted by what parts the header into the most names: comma, semicolon or tab.
    """
    csv.field_size_limit(2**31 - 1)  # the default refuses a review of more than 131,072 characters
    text = text_of(path)
    delimiter = max(",;\t", key=lambda each: len(next(csv.reader(io.StringIO(text, newline=""), delimiter=each), [])))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        reader.fieldnames = [field.strip() for field in reader.fieldnames or []]
        refuse_twins(reader.fieldnames)
        return list(reader)
    except csv.Error as error:
        raise ValueError(f"{error}, in the record from line {reader.line_num + 1} on") from error


def _read_parquet(path: Path) -> list[Any]:
    """Records of a parquet file. Not `read_table`: it makes columns of the folders' names."""
    with ParquetFile(path) as file:
        refuse_twins(file.schema_arrow.names)
        return file.read().to_pylist()


def refuse_twins(names: Iterable[str]) -> None:
    """Raise ValueError for a column's name that comes twice."""
    if twins := [name for name, times in Counter(names).items() if name and times > 1]:
        raise ValueError(f"two columns are called {twins[0]!r}")


READERS = dict.fromkeys((".json", ".jsonl", ".ndjson"), _read_json)
READERS |= {".csv": _read_csv, ".parquet": _read_parquet}


def read_arsc_folder(folder: Path, name: str) -> list[dict[str, Any]]:
    """Records (text, label, domain, threshold, split) of a folder of files like `apparel.t2.train`.

    A line is a text, a tab, and 1 or -1; blank lines are left out. Files come by domain, threshold and split (train,
    dev, test). Other files are left out, with a warning unless they are the lists of domains that belong to ARSC.
    Raises BadInput, which names the file and its lines (counted from 1).
    """
    files, others = [], []
    for path in folder.iterdir():
        if match := ARSC_NAME.fullmatch(path.name):
            files.append((match["domain"], match["threshold"], ARSC_SPLITS.index(match["split"]), path))
        elif path.suffix != ".list":
            others.append(path.name)
    if not files:
        inner = folder / "Amazon_few_shot"
        hint = f"the folder {str(inner)!r}, or " if inner.is_dir() else ""
        raise BadInput(
            f"{name!r} is a folder without files like 'apparel.t2.train' — "
            f"give {hint}the path of one file ({', '.join(READERS)})"
        )
    if others:
        few = reprlib.repr(sorted(others))
        log.warning("%s: left out %d files that are not named like apparel.t2.train: %s", name, len(others), few)
    return [
        {"text": text, "label": label, "domain": domain, "threshold": threshold, "split": ARSC_SPLITS[split]}
        for domain, threshold, split, path in sorted(files)
        for text, label in _read_arsc_file(path)
    ]


def _read_arsc_file(path: Path) -> list[tuple[str, str]]:
    """Texts and labels of one file of ARSC. Raises BadInput with the numbers of bad lines."""
    try:
        lines = [(number, line) for number, line in enumerate(text_of(path).split("\n"), start=1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error} — save it again (as UTF-8)") from error
    if not lines:
        raise BadInput(f"{path}: holds no lines — copy it again, or take it out of the folder")
    examples, bad = [], []
    for number, line in lines:
        text, tab, label = line.rpartition("\t")
        if not tab:
            bad.append((("no tab", "write the text, a tab, and 1 or -1"), number))
        elif label.strip() not in ARSC_LABELS:
            bad.append(((f"the unknown label {reprlib.repr(label.strip())}", "use 1 or -1"), number))
        elif not text.strip():
            bad.append((("an empty text", "remove them or fill them"), number))
        else:
            examples.append((text, ARSC_LABELS[label.strip()]))
    refuse(bad, str(path), "line")
    return examples


Problem = tuple[str, str]  # what something has, worded to follow "3 records have"; the remedy


def refuse(problems: Iterable[tuple[Problem, int]], name: str, noun: str = "record") -> None:
    """Raise BadInput if there are problems: each with the numbers of its records, five problems at most."""
    bad: dict[Problem, list[int]] = {}
    for problem, number in problems:
        bad.setdefault(problem, []).append(number)
    if bad:
        more = f"; and {len(bad) - 5} more kinds of problem" if len(bad) > 5 else ""
        raise BadInput(f"{name}: " + "; ".join(_tell(*item, noun) for item in list(bad.items())[:5]) + more)


def _tell(problem: Problem, numbers: list[int], noun: str) -> str:
    """'3 records have an empty text: 2, 17, 40 — remove them or fill them'; five numbers at most."""
    count = f"{len(numbers)} {noun}{' has' if len(numbers) == 1 else 's have'}"
    shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return f"{count} {problem[0]}: {shown} — {problem[1]}"
