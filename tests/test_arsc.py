"""ARSC: its folder and its one file give the same, and its protocol can be repeated with what they give."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from metalib.errors import BadInput
from metalib.reviews import ARSC_FEATURES, load_reviews, split_domains
from metalib.tasks import TaskSampler

REAL_FILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "arsc.parquet"
PRODUCTS = ("apparel", "books", "kitchen_&_housewares", "music")
SPLITS = ("train", "dev", "test")


def lines(product: str, threshold: int, split: str, count: int = 4) -> list[tuple[str, int]]:
    """Texts with their labels, 1 or -1 in turn. Those of one product are the same for each threshold, as in ARSC."""
    return [(f"{product} {split} {n} & more", 1 if (n + threshold) % 2 else -1) for n in range(count)]


def write_folder(folder: Path, products: Sequence[str] = PRODUCTS) -> Path:
    folder.mkdir(exist_ok=True)
    for product in products:
        for threshold in (2, 4, 5):
            for split in SPLITS:
                content = "".join(f"{text}\t{label}\n" for text, label in lines(product, threshold, split))
                (folder / f"{product}.t{threshold}.{split}").write_bytes(content.encode())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "Amazon_few_shot")


def complaint(source: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_reviews(source)
    return str(caught.value)


def rows_of(reviews: datasets.Dataset, domain: str, split: str) -> list[tuple[str, int]]:
    rows = reviews.filter(lambda row: row["domain"] == domain and row["split"] == split)
    return list(zip(rows["text"], rows["label"], strict=True))


def test_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("workspace.filtered.list", "workspace.target.list"):
        (folder / name).write_text("books\n")
    with caplog.at_level(logging.WARNING, "metalib"):
        reviews = load_reviews(folder)
    assert reviews.features == ARSC_FEATURES
    expected = [
        dict(zip(ARSC_FEATURES, (text, max(label, 0), f"{product}.t{threshold}", threshold, split), strict=True))
        for product in PRODUCTS
        for threshold in (2, 4, 5)
        for split in SPLITS
        for text, label in lines(product, threshold, split)
    ]
    assert reviews.to_list() == expected
    assert not caplog.records
    assert load_reviews(str(folder) + "/").to_list() == expected


@pytest.mark.parametrize("extension", ["parquet", "json", "csv"])
def test_one_file_gives_the_same(folder: Path, tmp_path: Path, extension: str) -> None:
    reviews = load_reviews(folder)
    names = reviews.features["label"].names
    records = [
        {**row, "domain": row["domain"].removesuffix(f".t{row['threshold']}"), "label": names[row["label"]]}
        for row in reviews.to_list()
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "arsc.parquet")
    own = {"json": datasets.Dataset.to_json, "csv": datasets.Dataset.to_csv, "parquet": datasets.Dataset.to_parquet}
    own[extension](reviews, tmp_path / f"own.{extension}")
    for name in ("arsc.parquet", f"own.{extension}"):  # as published, and as written by datasets
        again = load_reviews(tmp_path / name)
        assert again.features == ARSC_FEATURES and again.to_list() == reviews.to_list()


def test_the_protocol_can_be_repeated(folder: Path) -> None:
    reviews = load_reviews(folder)
    targets = ["books", "kitchen_&_housewares"]
    splits = split_domains(reviews, targets, 0)
    assert splits.train_domains == tuple(f"{product}.t{t}" for product in ("apparel", "music") for t in (2, 4, 5))
    assert splits.test_domains == tuple(f"{product}.t{t}" for product in targets for t in (2, 4, 5))
    task = TaskSampler(splits.train, shots=3, queries=3)[0]
    assert task.domain in splits.train_domains
    for product in targets:
        for threshold in (2, 4, 5):
            for split in ("train", "test"):  # the support set, the query set
                expected = [(text, max(label, 0)) for text, label in lines(product, threshold, split)]
                assert rows_of(reviews, f"{product}.t{threshold}", split) == expected


def test_thresholds_of_a_product_stay_together(folder: Path) -> None:
    reviews = load_reviews(folder)
    for seed in range(5):
        splits = split_domains(reviews, ["books"], 1, seed)
        drawn = {domain.rpartition(".")[0] for domain in splits.validation_domains}
        assert len(drawn) == 1 and len(splits.validation_domains) == 3
        assert not drawn & {domain.rpartition(".")[0] for domain in splits.train_domains}
        assert len(splits.train_domains) == 6


def test_one_threshold_can_be_named(folder: Path) -> None:
    reviews = load_reviews(folder)
    splits = split_domains(reviews, ["books"], ["music"], train_domains=["apparel.t2", "apparel.t5"])
    assert splits.train_domains == ("apparel.t2", "apparel.t5")
    with pytest.raises(BadInput, match=r"'books.t2' is both a test and a validation domain"):
        split_domains(reviews, ["books"], ["books.t2"])
    with pytest.raises(BadInput, match=r"unknown test domain 'book'.*did you mean 'books'.*Known are: apparel, books,"):
        split_domains(reviews, ["book"])


def test_doubles_stay_for_the_protocol_and_are_dropped_for_tasks(folder: Path) -> None:
    file = folder / "books.t2.test"
    file.write_bytes(file.read_bytes() + b"books test 0 & more\t-1\nbooks train 1 & more\t1\n")
    reviews = load_reviews(folder)
    assert len(rows_of(reviews, "books.t2", "test")) == 6
    assert len(split_domains(reviews, ["books"], 0).test) == 3 * 3 * 4


def test_odd_lines(tmp_path: Path) -> None:
    content = "\ufeffcr lf\t1\r\n\r\n  \n padded \t -1 \nwith\ttab\t1\nsome\u2028line\x85s\t-1"
    (tmp_path / "odd.name.t4.dev").write_bytes(content.encode())
    assert [tuple(row.values()) for row in load_reviews(tmp_path).to_list()] == [
        ("cr lf", 1, "odd.name.t4", 4, "dev"),
        ("padded", 0, "odd.name.t4", 4, "dev"),
        ("with\ttab", 1, "odd.name.t4", 4, "dev"),
        ("some\u2028line\x85s", 0, "odd.name.t4", 4, "dev"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\t1\nno tab\n\nnone here\n", "2 lines have no tab: 2, 4 — write the text, a tab, and 1 or -1"),
        ("a\t1\n\nb\t0\n", "1 line has the unknown label '0': 3 — use 1 or -1"),
        ("a\tpositive\nb\t1\n", "1 line has the unknown label 'positive': 1 — use 1 or -1"),
        ("a\t1\n \t1\n", "1 line has an empty text: 2 — remove them or fill them"),
        ("a\t1\nb\t\nno tab", "1 line has the unknown label '': 2 — use 1 or -1; 1 line has no tab: 3"),
        ("", "holds no lines — copy it again"),
        (b"a\xff\t1\n", "cannot be read: 'utf-8' codec"),
    ],
)
def test_bad_lines(folder: Path, content: str | bytes, said: str) -> None:
    path = folder / "kitchen_&_housewares.t5.dev"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert complaint(folder).startswith(f"{path}: {said}")


def test_other_files_are_left_out_and_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("books.t3.train", "notes.txt"):
        (folder / name).write_text("x\n")
    with caplog.at_level(logging.WARNING, "metalib"):
        assert len(load_reviews(folder)) == 4 * 3 * 3 * 4
    assert "left out 2 files" in caplog.text and "'books.t3.train', 'notes.txt'" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("threshold", 3, "the unknown threshold 3: 2 — use 2, 4 or 5"),
        ("threshold", 2.0, "the unknown threshold 2.0: 2 — use 2, 4 or 5"),
        ("split", "valid", "the unknown split 'valid': 2 — use train, dev or test"),
        ("split", None, "no 'split': 2 — fill it in"),
    ],
)
def test_bad_records(tmp_path: Path, field: str, value: object, said: str) -> None:
    record = {"text": "x", "label": 1, "domain": "d", "threshold": 2, "split": "dev"}
    datasets.Dataset.from_list([record]).to_json(tmp_path / "a.jsonl")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(json.dumps({**record, field: value}) + "\n")
    assert said in complaint(tmp_path / "a.jsonl")


def test_real_file() -> None:
    """The counts and the share of positive reviews that are published for ARSC's target tasks."""
    if not REAL_FILE.exists():
        pytest.skip(f"{REAL_FILE} is not here")
    reviews = load_reviews(REAL_FILE)
    assert len(reviews) == 97_884 and len(set(reviews["domain"][:])) == 69
    frame = reviews.remove_columns("text").to_pandas()
    targets = frame[frame["domain"].str.replace(r"\.t\d$", "", regex=True).isin(
        ["books", "dvd", "electronics", "kitchen_&_housewares"])]  # fmt: skip
    support, query = targets[targets["split"] == "train"], targets[targets["split"] == "test"]
    assert support.groupby("domain")["label"].agg(["size", "sum"]).drop_duplicates().to_numpy().tolist() == [[10, 5]]
    assert query["domain"].nunique() == 12
    assert round(100 * query.groupby("domain")["label"].mean().mean(), 1) == 78.1  # always positive
