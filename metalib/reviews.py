"""Reviews: read them from anywhere, and split their domains into training, validation and test domains.

Files are read with `json`, `csv` and `pyarrow.parquet`, not with `datasets.load_dataset`: that guesses types (the text
"2020-01-01" becomes a timestamp, "null" and "NA" in a CSV None) and does not name the record that it cannot read.
"""

import csv
import io
import json
import logging
import os
import random
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas
from datasets import Dataset, DownloadConfig, DownloadManager
from pyarrow.parquet import ParquetFile

from metalib.errors import BadInput
from metalib.world import FEATURES, TEST_DOMAINS, World

AMAZON_URL = "https://raw.githubusercontent.com/mailong25/meta-learning-bert/master/dataset.json"
LABELS = {"negative": 0, "0": 0, "positive": 1, "1": 1}
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write it ("\ud83d"), UTF-8 and so Arrow cannot
log = logging.getLogger("metalib")


def load_reviews(source: str | Path | World = "world") -> Dataset:
    """Reviews with the columns text, label and domain (`FEATURES`), in the order of the source.

    source: "world" or a `World` (generated reviews), "amazon" (= `AMAZON_URL`), or a path or http(s) URL that
    ends in .json, .jsonl, .ndjson, .csv or .parquet. JSON: [records], {"data": [records]}, or JSON lines.
    Surrounding whitespace is stripped. A text that comes again in a domain is dropped, with a warning.
    A URL is downloaded once and then read from the cache of `datasets`, also without a network.
    Raises BadInput, which names the file, the records (counted from 1) and the remedy.
    """
    if isinstance(source, World) or source == "world":
        return (source if isinstance(source, World) else World()).reviews()
    if source == "amazon":
        log.info("%s carries no licence of its own: load it, do not redistribute it", AMAZON_URL)
        source = AMAZON_URL
    name = str(source)
    is_url = name.lower().startswith(("http://", "https://"))
    path = None if is_url else _find(name)
    extension = Path(name.split("?")[0].split("#")[0] if is_url else name).suffix.lower()
    if extension not in READERS:
        raise BadInput(f"{name}: unknown extension {extension!r} — use one of {', '.join(READERS)}")
    if path is None:
        path = _download(name)
        name = f"{name} (kept in {path}: delete that file to download it again)"
    return _to_dataset(_read(path, extension, name), name)


def _find(name: str) -> Path:
    """Path of a local file. Raises BadInput where it is missing or a folder."""
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        raise BadInput(f"{name!r} is a folder — give the path of one file in it ({', '.join(READERS)})")
    if not os.path.exists(path):
        siblings = os.listdir(path.parent) if os.access(path.parent, os.R_OK) and path.parent.is_dir() else []
        close = get_close_matches(path.name, siblings)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "check the path."
        raise BadInput(f"no file {name!r} — {hint} Other sources are 'world', 'amazon' and http(s) URLs")
    return path


def _download(url: str) -> Path:
    """Path of a URL's file in the cache of `datasets`; once there it is not asked for again (no ETag)."""
    config = DownloadConfig(use_etag=False, disable_tqdm=True)
    try:
        return Path(DownloadManager(dataset_name="metalib", download_config=config).download(url))
    except Exception as error:  # aiohttp, fsspec, huggingface_hub and urllib each have their own
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        # datasets downloads by way of aiohttp, which it does not install
        install = "pip install aiohttp, or " if isinstance(error, ImportError) else ""
        remedy = f"{install}download it elsewhere and pass the file's path, or use --data world"
        raise BadInput(f"{url}: cannot be downloaded ({cause}) — {remedy}") from error


def _read(path: Path, extension: str, name: str) -> list[Any]:
    """The records of a file, unchecked, at least one. Raises BadInput for a file that breaks its format."""
    try:
        records = READERS[extension](path) if path.stat().st_size else []
    except Exception as error:  # each parser has its own kinds; the first cause stays attached
        remedy = "correct the file there, or save it again (texts as UTF-8)"
        raise BadInput(f"{name}: cannot be read as {extension}: {error} — {remedy}") from error
    if not records:
        raise BadInput(f"{name}: holds no records — give a file with at least one review")
    return records


def _text(path: Path) -> str:
    """The file's text, line ends as they are. Raises UnicodeDecodeError where it is not UTF-8."""
    return path.read_bytes().decode("utf-8-sig")


def _read_json(path: Path) -> list[Any]:
    """Records of [records], {"data": [records]} or JSON lines: told apart by content, not by extension."""
    text = _text(path)
    found = _parse_json(text) if text.strip() else []
    if isinstance(found, dict) and found.keys() & FEATURES.keys():  # JSON lines with one line
        return [found]
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
    """Records of a CSV file with a header; every value stays the text that it is, also "NA" and "null"."""
    csv.field_size_limit(2**31 - 1)  # the default refuses a review of more than 131,072 characters
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        reader.fieldnames = [field.strip() for field in reader.fieldnames or []]
        return list(reader)
    except csv.Error as error:
        raise ValueError(f"{error}, in the record from line {reader.line_num + 1} on") from error


def _read_parquet(path: Path) -> list[Any]:
    """Records of a parquet file. Not `read_table`: it makes columns of the folders' names."""
    with ParquetFile(path) as file:
        return file.read(columns=list(FEATURES)).to_pylist()


READERS = dict.fromkeys((".json", ".jsonl", ".ndjson"), _read_json)
READERS |= {".csv": _read_csv, ".parquet": _read_parquet}


def _problems(record: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a record: (what it has, the remedy), worded to follow "3 records have"."""
    if not isinstance(record, dict):
        yield f"a {type(record).__name__} for an object", 'write {"text": …, "label": …, "domain": …}'
        return
    if None in record:  # where csv.DictReader puts what is left over
        yield "more values than the header has columns", "put texts with commas into double quotes"
    for field in FEATURES:
        value = record.get(field)
        if value is None:
            yield f"no {field!r}", "fill it in, or correct the field's name"
        elif field == "label":
            if not isinstance(value, str | int) or str(value).strip().lower() not in LABELS:
                yield f"the unknown label {reprlib.repr(value)}", "use positive or negative, 1 or 0"
        elif not isinstance(value, str):
            yield f"a {type(value).__name__} as {field!r}", "make it a text"
        elif not value.strip():
            yield f"an empty {field}", "remove them or fill them"
        elif SURROGATE.search(value):
            yield f"half a surrogate pair in {field!r}", "remove that character"
        elif field == "domain" and not value.strip().isprintable():  # names of domains are shown and logged
            yield "a control character in 'domain'", "remove that character"


def _to_dataset(records: list[Any], name: str) -> Dataset:
    """Dataset of the records, each text once a domain. Raises BadInput with the numbers of bad records."""
    bad: dict[tuple[str, str], list[int]] = {}
    for number, record in enumerate(records, start=1):
        for problem in _problems(record):
            bad.setdefault(problem, []).append(number)
    if bad:
        more = f"; and {len(bad) - 5} more kinds of problem" if len(bad) > 5 else ""
        raise BadInput(f"{name}: " + "; ".join(_tell(*item) for item in list(bad.items())[:5]) + more)
    kept: dict[tuple[str, str], int] = {}  # (domain, text) → label of its first record
    contrary = 0
    for record in records:
        label = LABELS[str(record["label"]).strip().lower()]
        contrary += label != kept.setdefault((record["domain"].strip(), record["text"].strip()), label)
    if doubles := len(records) - len(kept):
        log.warning("%s: dropped %d reviews whose text came earlier in their domain (%d with another label)",
                    name, doubles, contrary)  # fmt: skip
    columns = {"text": [t for _, t in kept], "label": list(kept.values()), "domain": [d for d, _ in kept]}
    return Dataset.from_dict(columns, features=FEATURES)


def _tell(problem: tuple[str, str], numbers: list[int]) -> str:
    """'3 records have an empty text: 2, 17, 40 — remove them or fill them'; five numbers at most."""
    count = f"{len(numbers)} record{' has' if len(numbers) == 1 else 's have'}"
    shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return f"{count} {problem[0]}: {shown} — {problem[1]}"


@dataclass(frozen=True)
class Splits:
    """Three sets of reviews that share neither a domain nor a text; their domains' names come sorted."""

    train: Dataset
    validation: Dataset
    test: Dataset

    @property
    def train_domains(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.train["domain"])))

    @property
    def validation_domains(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.validation["domain"])))

    @property
    def test_domains(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.test["domain"])))


def split_domains(
    reviews: Dataset,
    test_domains: Sequence[str] = TEST_DOMAINS,
    validation_domains: Sequence[str] | int = 3,
    seed: int = 0,
    train_domains: Sequence[str] | None = None,
) -> Splits:
    """Reviews split by domain; rows keep their order.

    validation_domains: names, or how many to draw from the training domains, by seed and names only; 0: none.
    train_domains: names, or None for all that are left.
    A text that is also in a test domain is dropped from training and validation, one that is also in a
    validation domain from training, with a logged warning.
    Raises BadInput for a domain that is unknown, named twice or in two lists, or if none is left to train on.
    """
    known = sorted(set(reviews["domain"]))
    draw = validation_domains if isinstance(validation_domains, int) else 0
    validation = () if isinstance(validation_domains, int) else validation_domains
    kind_of = _kinds({"test": test_domains, "validation": validation, "training": train_domains or ()}, known)
    unnamed = "training" if train_domains is None else "unused"
    pool = [domain for domain in known if kind_of.get(domain, unnamed) == "training"]
    if draw < 0:
        raise BadInput(f"validation_domains={draw} — use 0 or more")
    if draw >= len(pool):
        taken = f"{len(pool)} domains for training, less validation_domains={draw} drawn from them"
        raise BadInput(f"no training domain is left ({taken}) — name or draw fewer for test and validation")
    kind_of |= dict.fromkeys(pool, "training")
    kind_of |= dict.fromkeys(random.Random(seed).sample(pool, draw), "validation")
    return _select(reviews, kind_of)


def _kinds(named: dict[str, Sequence[str]], known: list[str]) -> dict[str, str]:
    """Kind (test, validation, training) of each named domain. Raises BadInput for a wrong name."""
    kind_of: dict[str, str] = {}
    for kind, domains in named.items():
        for domain in [domains] if isinstance(domains, str) else domains:
            if domain not in known:
                close = " or ".join(map(repr, get_close_matches(str(domain), known)))
                hint = f"did you mean {close}? " if close else ""
                some = ", ".join(known[:50]) + ", …" * (len(known) > 50)
                raise BadInput(f"unknown {kind} domain {domain!r} — {hint}Known are: {some}")
            if kind_of.get(domain) == kind:
                raise BadInput(f"domain {domain!r} is twice among the {kind} domains — name it once")
            if domain in kind_of:
                raise BadInput(f"domain {domain!r} is both a {kind_of[domain]} and a {kind} domain — take one out")
            kind_of[domain] = kind
    return kind_of


def _select(reviews: Dataset, kind_of: dict[str, str]) -> Splits:
    """The rows of each kind, less those whose text is in a kind before it: test, validation, training."""
    texts, kinds = list(reviews["text"]), [kind_of.get(domain) for domain in reviews["domain"]]
    parts: dict[str, Dataset] = {}
    seen: set[str] = set()
    for kind in ("test", "validation", "training"):
        members = [row for row, its_kind in enumerate(kinds) if its_kind == kind]
        rows = [row for row in members if texts[row] not in seen]
        if len(rows) < len(members):
            dropped = len(members) - len(rows)
            log.warning("dropped %d %s reviews whose text is also in a set held out from them", dropped, kind)
        seen.update(texts[row] for row in members)
        parts[kind] = reviews.select(rows)
    if not len(parts["training"]):
        raise BadInput("no training review is left: all texts are in other domains too — hold out fewer domains")
    return Splits(parts["training"], parts["validation"], parts["test"])


def describe(reviews: Dataset) -> pandas.DataFrame:
    """Table of the domains: number of reviews, share of positive ones (0 to 1), median length in words."""
    frame = reviews.to_pandas().assign(words=[len(text.split()) for text in reviews["text"]])
    return frame.groupby("domain").agg(
        reviews=("label", "size"), positive=("label", "mean"), median_words=("words", "median")
    )
