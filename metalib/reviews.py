"""Reviews: load them from anywhere, and split their domains into training, validation and test domains."""

import logging
import random
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas
from datasets import Dataset, Features, Value

from metalib.errors import BadInput
from metalib.formats import (
    ARSC_SPLITS,
    READERS,
    Problem,
    download,
    extension_of,
    find_path,
    read_arsc_folder,
    read_records,
    refuse,
)
from metalib.world import FEATURES, TEST_DOMAINS, World

AMAZON_URL = "https://raw.githubusercontent.com/mailong25/meta-learning-bert/master/dataset.json"
BLOB_IDS = {  # of the public files, which must be these and no others
    AMAZON_URL: "2b635fb4182d7758999ec7a1e15964933087c896",
    "https://raw.githubusercontent.com/nabarunbaruaAIML/Meta_Learning/HEAD/Artifact/Data/dataset.json":
        "270b1f43581860e1aa798b6ec9d5b33fdc9b2acc",
}  # fmt: skip
ARSC_FEATURES = Features({**FEATURES, "threshold": Value("int64"), "split": Value("string")})
LABELS = {"negative": 0, "0": 0, "0.0": 0, "false": 0, "positive": 1, "1": 1, "1.0": 1, "true": 1}
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write it ("\ud83d"), UTF-8 and so Arrow cannot
log = logging.getLogger("metalib")


def load_reviews(source: str | Path | World = "world") -> Dataset:
    """Reviews with the columns text, label and domain (`FEATURES`), in the order of the source.

    source: "world" or a `World` (generated reviews); "amazon" (the file at `AMAZON_URL`, which must have its git blob
    id); a path or http(s) URL that ends in .json, .jsonl, .ndjson, .csv or .parquet; or a folder of ARSC.
    JSON: [records], {"data": [records]}, or JSON lines. Surrounding whitespace is stripped.
    A text that comes again in a domain is dropped, with a warning.
    A URL is downloaded once and then read from the cache of `datasets`, also without a network.

    ARSC (Yu et al., NAACL 2018) is a folder of files like `apparel.t2.train`, or a file whose records have `threshold`
    and `split` too. It comes with these two columns more (`ARSC_FEATURES`), and with its tasks as domains: "apparel.t2"
    for the threshold of 2 stars. No row is dropped, so that a test split is the one that was published; `split_domains`
    drops doubles. The protocol's target task books.t2 is, with reviews.filter:
    support: row["domain"] == "books.t2" and row["split"] == "train"; query: the same with "test".

    Raises BadInput, which names the file, the records (counted from 1) and the remedy.
    """
    if isinstance(source, World) or source == "world":
        return (source if isinstance(source, World) else World()).reviews()
    name = AMAZON_URL if source == "amazon" else str(source)
    if name.lower().startswith(("http://", "https://")):
        extension = extension_of(name.split("?")[0].split("#")[0], READERS)
        if name in BLOB_IDS:
            log.info("%s carries no licence of its own: load it, do not redistribute it", name)
        path = download(name, BLOB_IDS.get(name))
        name = f"{name} (kept in {path}: delete that file to download it again)"
    else:
        path = find_path(name, "Other sources are 'world', 'amazon' and http(s) URLs; where a run's file was "
                               "moved, say where with --data")  # fmt: skip
        if path.is_dir():
            return _to_dataset(read_arsc_folder(path, name), name)
        extension = extension_of(name, READERS)
    return _to_dataset(read_records(path, extension, name), name)


def shape_problems(record: Any, example: str) -> Iterator[Problem]:
    """What is wrong with a record as a whole; example: how one should look."""
    if not isinstance(record, dict):
        yield f"a {type(record).__name__} for an object", f"write {example}"
    elif None in record:  # where csv.DictReader puts what is left over
        yield "more values than the header has columns", "put texts with commas into double quotes"


def text_problems(value: Any, field: str) -> Iterator[Problem]:
    """What is wrong with the value of a field that should hold a text."""
    if value is None:
        yield f"no {field!r}", "fill it in, or correct the field's name"
    elif not isinstance(value, str):
        yield f"a {type(value).__name__} as {field!r}", "make it a text"
    elif not value.strip():
        yield f"an empty {field}", "remove them or fill them"
    elif SURROGATE.search(value):
        yield f"half a surrogate pair in {field!r}", "remove that character"


def name_problems(value: Any, field: str) -> Iterator[Problem]:
    """What is wrong with a value that should name a domain or a class: names are shown and logged."""
    problems = list(text_problems(value, field))
    if not problems and not value.strip().isprintable():
        problems = [(f"a control character in {field!r}", "remove that character")]
    yield from problems


def _problems(record: Any, features: Features) -> Iterator[Problem]:
    """What is wrong with a record that should have these fields."""
    yield from shape_problems(record, '{"text": …, "label": …, "domain": …}')
    allowed = {"label": LABELS, "threshold": ("2", "4", "5"), "split": ARSC_SPLITS}
    remedies = {"label": "positive or negative, 1 or 0", "threshold": "2, 4 or 5", "split": "train, dev or test"}
    for field in features if isinstance(record, dict) else ():
        value = record.get(field)
        if field == "domain":
            yield from name_problems(value, field)
        elif field not in allowed or value is None:
            yield from text_problems(value, field)
        elif not isinstance(value, str | int | float) or str(value).strip().lower() not in allowed[field]:
            yield f"the unknown {field} {reprlib.repr(value)}", f"use {remedies[field]}"


def _to_dataset(records: list[Any], name: str) -> Dataset:
    """Dataset of the records. Raises BadInput with the numbers of bad records."""
    is_arsc = isinstance(records[0], dict) and {"threshold", "split"} <= records[0].keys()
    features = ARSC_FEATURES if is_arsc else FEATURES
    there = list(dict.fromkeys(key for record in records if isinstance(record, dict) for key in record if key))
    if there and (missing := [field for field in features if field not in there]):
        raise BadInput(f"{name}: no column {' and no column '.join(map(repr, missing))} — rename its columns, which "
                       f"are {', '.join(map(repr, there[:20]))}{', …' * (len(there) > 20)}")  # fmt: skip
    numbered = enumerate(records, start=1)
    refuse(((problem, number) for number, record in numbered for problem in _problems(record, features)), name)
    return Dataset.from_list([_arsc_row(record) for record in records], features) if is_arsc else _plain(records, name)


def _arsc_row(record: dict[str, Any]) -> dict[str, Any]:
    threshold = int(record["threshold"])
    return {
        "text": record["text"].strip(),
        "label": LABELS[str(record["label"]).strip().lower()],
        "domain": f"{_product(record['domain'].strip(), threshold)}.t{threshold}",
        "threshold": threshold,
        "split": record["split"].strip().lower(),
    }


def _product(domain: str, threshold: int) -> str:
    """The domain without its threshold: "books" of "books.t2" and of "books"."""
    return domain.removesuffix(f".t{threshold}")


def _plain(records: list[dict[str, Any]], name: str) -> Dataset:
    """Dataset of the records, each text once a domain."""
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
    In ARSC the name "books" stands for books.t2, books.t4 and books.t5, and these are drawn together.
    A text that is also in a test domain is dropped from training and validation, one that is also in a
    validation domain from training, and one that came earlier in its domain, with a logged warning.
    Raises BadInput for a domain that is unknown, named twice or in two lists, or if none is left to train on.
    """
    products = _products(reviews)
    draw = validation_domains if isinstance(validation_domains, int) else 0
    validation = () if isinstance(validation_domains, int) else validation_domains
    named = {"test": test_domains, "validation": validation, "training": train_domains or ()}
    kind_of = _kinds(named, products)
    unnamed = "training" if train_domains is None else "unused"
    training = [domain for domain in sorted(products) if kind_of.get(domain, unnamed) == "training"]
    pool = sorted({products[domain] for domain in training})
    if draw < 0:
        raise BadInput(f"validation_domains={draw} — use 0 or more")
    if draw >= len(pool):
        taken = f"{len(pool)} domains for training, less validation_domains={draw} drawn from them"
        raise BadInput(f"no training domain is left ({taken}) — name or draw fewer for test and validation")
    drawn = random.Random(seed).sample(pool, draw)
    kind_of |= {domain: "validation" if products[domain] in drawn else "training" for domain in training}
    return _select(reviews, kind_of)


def _products(reviews: Dataset) -> dict[str, str]:
    """The product of each domain: "books" of ARSC's "books.t2"; elsewhere the domain itself."""
    if "threshold" not in reviews.column_names:
        return {domain: domain for domain in reviews["domain"][:]}
    pairs = set(zip(reviews["domain"][:], reviews["threshold"][:], strict=True))
    return {domain: _product(domain, threshold) for domain, threshold in pairs}


def _kinds(named: dict[str, Sequence[str]], products: dict[str, str]) -> dict[str, str]:
    """Kind (test, validation, training) of each named domain. Raises BadInput for a wrong name."""
    kind_of: dict[str, str] = {}
    for kind, names in named.items():
        for name in [names] if isinstance(names, str) else names:
            domains = [domain for domain, product in products.items() if name in (domain, product)]
            if not domains:
                known = sorted(set(products.values()))
                close = " or ".join(map(repr, get_close_matches(str(name), [*known, *products.keys() - known])))
                hint = f"did you mean {close}? " if close else ""
                some = ", ".join(known[:50]) + ", …" * (len(known) > 50)
                other = " — name others as test_domains" if kind == "test" else ""
                raise BadInput(f"unknown {kind} domain {name!r} — {hint}Known are: {some}{other}")
            for domain in domains:
                if kind_of.get(domain) == kind:
                    raise BadInput(f"domain {domain!r} is twice among the {kind} domains — name it once")
                if domain in kind_of:
                    raise BadInput(f"domain {domain!r} is both a {kind_of[domain]} and a {kind} domain — take one out")
                kind_of[domain] = kind
    return kind_of


def _select(reviews: Dataset, kind_of: dict[str, str]) -> Splits:
    """The rows of each kind, less those whose text is in a kind before it: test, validation, training."""
    texts, domains = reviews["text"][:], reviews["domain"][:]
    firsts: dict[tuple[str, str], int] = {}  # (domain, text) → its first row
    for row, key in enumerate(zip(domains, texts, strict=True)):
        firsts.setdefault(key, row)
    if doubles := sum(domain in kind_of for domain in domains) - sum(domain in kind_of for domain, _ in firsts):
        log.warning("dropped %d reviews whose text came earlier in their domain", doubles)
    parts: dict[str, Dataset] = {}
    seen: set[str] = set()
    for kind in ("test", "validation", "training"):
        members = [row for (domain, _), row in firsts.items() if kind_of.get(domain) == kind]
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
