"""Reading reviews: every format, every complaint; and splitting their domains."""

import contextlib
import csv
import http.server
import importlib.util
import json
import logging
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metalib.reviews
from metalib.errors import BadInput
from metalib.formats import git_blob_id
from metalib.reviews import AMAZON_URL, BLOB_IDS, describe, load_reviews, split_domains
from metalib.world import FEATURES, TEST_DOMAINS, World

REAL_FILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "amazon22.json"
EXTENSIONS = ("json", "jsonl", "ndjson", "csv", "parquet")
RECORDS = [
    {"text": "a fine kettle", "label": "positive", "domain": "kitchen"},
    {"text": "it broke", "label": "negative", "domain": "kitchen"},
    {"text": "null", "label": "positive", "domain": "books"},
    {"text": "2020-01-01", "label": "negative", "domain": "books"},
    {"text": 'said "no", twice,\nand left\u2028', "label": "positive", "domain": "7"},
    {"text": "été ☕", "label": "negative", "domain": "7"},
]


def write(path: Path, content: Any) -> Path:
    """The path, with records in the format of its extension, or with bytes or a text as they are."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_bytes(content.encode())
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in content), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    return path


def plain(reviews: datasets.Dataset) -> list[dict[str, Any]]:
    """Rows of a data set, with the labels' names."""
    return [{**row, "label": FEATURES["label"].int2str(row["label"])} for row in reviews.to_list()]


def stripped(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**record, "text": record["text"].strip()} for record in records]


def complaint(source: Any) -> str:
    """The message of the BadInput that loading gives."""
    with pytest.raises(BadInput) as caught:
        load_reviews(source)
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, Exception)
    return str(caught.value)


# Sources and formats


def test_default_is_the_generated_world() -> None:
    assert load_reviews().to_list() == World().reviews().to_list()
    other = World(seed=3)
    assert load_reviews(other).to_list() == other.reviews().to_list()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_gives_the_same(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"reviews.{extension}", RECORDS)
    for source in (path, str(path)):
        reviews = load_reviews(source)
        assert reviews.features == FEATURES
        assert reviews.column_names == list(FEATURES)
        assert plain(reviews) == stripped(RECORDS)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"data": RECORDS}),
        json.dumps({"version": 1, "data": RECORDS}, indent=2),
        json.dumps(RECORDS, indent=2),
        "\n\r\n".join(map(json.dumps, RECORDS)) + "\n\n",
        "\ufeff" + json.dumps(RECORDS),
    ],
    ids=["data", "data, indented", "list, indented", "lines with blank ones", "byte order mark"],
)
@pytest.mark.parametrize("extension", ["json", "jsonl"])
def test_json_shapes_whatever_the_extension(tmp_path: Path, extension: str, content: str) -> None:
    assert plain(load_reviews(write(tmp_path / f"reviews.{extension}", content))) == stripped(RECORDS)


def test_one_line_of_json_lines(tmp_path: Path) -> None:
    assert plain(load_reviews(write(tmp_path / "one.jsonl", json.dumps(RECORDS[0])))) == RECORDS[:1]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_world_to_file_and_back(tmp_path: Path, extension: str) -> None:
    world = World(seed=1).reviews()
    path = write(tmp_path / f"world.{extension}", world.to_list())  # labels are 0 and 1 here
    assert load_reviews(path).to_list() == world.to_list()


def test_extension_in_capitals_and_odd_file_names(tmp_path: Path) -> None:
    for name in ("A.JSON", "[a-b] *?.json", "a.b::c.json"):
        assert len(load_reviews(write(tmp_path / name, json.dumps(RECORDS)))) == len(RECORDS)


def test_folder_names_are_no_columns(tmp_path: Path) -> None:
    folder = tmp_path / "domain=wrong"
    folder.mkdir()
    assert plain(load_reviews(write(folder / "a.parquet", RECORDS))) == stripped(RECORDS)


def test_other_columns_are_left_out(tmp_path: Path) -> None:
    for extension in EXTENSIONS:
        path = write(tmp_path / f"more.{extension}", [{"id": 1, **r, "stars": 5} for r in RECORDS])
        assert load_reviews(path).column_names == list(FEATURES)


@pytest.mark.parametrize(
    ("label", "expected"),
    [(1, 1), (0, 0), ("1", 1), ("0", 0), (" Positive ", 1), ("NEGATIVE\n", 0)],
)
def test_labels(tmp_path: Path, label: Any, expected: int) -> None:
    for extension in EXTENSIONS:
        path = write(tmp_path / f"labels.{extension}", [{"text": "x", "label": label, "domain": "d"}])
        assert load_reviews(path)["label"][0] == expected


def test_texts_of_a_csv_stay_as_they_are(tmp_path: Path) -> None:
    texts = [
        "null",
        "NA",
        "None",
        "nan",
        "1",
        "1e5",
        "007",
        "True",
        "2020-01-01",
        "a\0b",
        "x" * 200_000,
        "a\r\nb",
    ]
    records = [{"text": text, "label": 1, "domain": "5"} for text in texts]
    reviews = load_reviews(write(tmp_path / "texts.csv", records))
    assert list(reviews["text"]) == texts
    assert set(reviews["domain"]) == {"5"}


def test_nul_is_data(tmp_path: Path) -> None:
    raw = b'[{"text": "a\0b\\u0000c", "label": 1, "domain": "d"}]'
    assert list(load_reviews(write(tmp_path / "nul.json", raw))["text"]) == ["a\0b\0c"]


def test_whitespace_is_stripped(tmp_path: Path) -> None:
    records = [{"text": "\t padded  text\n", "label": 1, "domain": " d "}]
    assert load_reviews(write(tmp_path / "a.json", records)).to_list() == [
        {"text": "padded  text", "label": 1, "domain": "d"}
    ]


def test_doubles_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("x", 1, "a"), ("y", 0, "a"), (" x ", 1, "a"), ("x", 0, "a"), ("x", 0, "b"), ("x", 1, "a")]
    path = write(tmp_path / "a.json", [dict(zip(("text", "label", "domain"), row, strict=True)) for row in rows])
    with caplog.at_level(logging.WARNING, "metalib"):
        reviews = load_reviews(path)
    assert [tuple(row.values()) for row in reviews.to_list()] == [("x", 1, "a"), ("y", 0, "a"), ("x", 0, "b")]
    (message,) = [record.getMessage() for record in caplog.records if record.name == "metalib"]
    assert "dropped 3 reviews" in message and "1 with another label" in message and str(path) in message


def test_no_warning_without_doubles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_reviews(write(tmp_path / "a.json", RECORDS))
    assert not [record for record in caplog.records if record.name == "metalib"]


# Complaints about files


def test_missing_file_names_close_ones(tmp_path: Path) -> None:
    write(tmp_path / "amazon22.json", RECORDS)
    message = complaint(tmp_path / "amazon2.json")
    assert "amazon2.json" in message and "did you mean 'amazon22.json'" in message
    message = complaint(tmp_path / "nowhere" / "a.json")
    assert "check the path" in message and "'world'" in message


@pytest.mark.parametrize("name", ["wrold", "", "s3://bucket/a.json", "a\0b.json", "x" * 5000 + ".json"])
def test_no_such_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repr(name) in complaint(name)


def test_folder_without_arsc(tmp_path: Path) -> None:
    write(tmp_path / "reviews.json", RECORDS)
    message = complaint(tmp_path)
    assert "is a folder" in message and str(tmp_path) in message and "one file" in message
    (tmp_path / "Amazon_few_shot").mkdir()
    assert repr(str(tmp_path / "Amazon_few_shot")) in complaint(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.pkl", "a", "a.json.gz"])
def test_unknown_extension(tmp_path: Path, name: str) -> None:
    message = complaint(write(tmp_path / name, b"x"))
    assert repr(Path(name).suffix) in message and ".parquet" in message
    assert repr(Path(name).suffix) in complaint("http://127.0.0.1:1/" + name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '[{"text": "a",\n  oops}]', ["line 2 column 3", "correct the file"]),
        ("a.json", "[\n1,\n]", ["line 3 column 1"]),
        ("a.json", "oops", ["line 1 column 1"]),
        ("a.jsonl", '{"text": "a"}\n\n{"text": }\n', ["line 3 column 10"]),
        ("a.json", '{"rows": []}', ['without "data"', "['rows']"]),
        ("a.json", '{"data": {"a": 1}}', ["expected a list", "{'a': 1}"]),
        ("a.json", "3", ["expected a list", "3"]),
        ("a.json", "[" * 100_000, ["recursion"]),
        ("a.json", "[" + "1" * 5000 + "]", ["digits"]),
        ("a.json", b'[{"text": "\xff"}]', ["utf-8", "0xff", "position 11", "UTF-8"]),
        ("a.csv", b"text,label,domain\n\xe9,1,a\n", ["utf-8", "0xe9"]),
        ("a.csv", 'text,label,domain\n"open,1,a\n', ["unexpected end of data", "from line 2 on"]),
        ("a.csv", 'text,label,domain\n"a"b,1,a\n', ["line 2"]),
        ("a.parquet", b"not parquet at all", ["parquet"]),
        ("a.parquet", b"PAR1" + b"\xff" * 50 + b"PAR1", ["parquet"]),
    ],
)
def test_broken_file(tmp_path: Path, name: str, content: str | bytes, said: list[str]) -> None:
    path = write(tmp_path / name, content)
    message = complaint(path)
    for part in [str(path), f"cannot be read as {path.suffix}", "save it again", *said]:
        assert part in message


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_empty_file(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"empty.{extension}", b"")
    message = complaint(path)
    assert str(path) in message and "holds no records" in message and "at least one" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", " \n"),
        ("a.json", "[]"),
        ("a.json", '{"data": []}'),
        ("a.csv", "text,label,domain\n"),
        ("a.csv", "\n"),
    ],
)
def test_no_records(tmp_path: Path, name: str, content: str) -> None:
    assert "holds no records" in complaint(write(tmp_path / name, content))


def test_damaged_parquet_never_gives_another_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", RECORDS).read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(BadInput):
            load_reviews(write(tmp_path / "b.parquet", bytes(damaged)))


@settings(max_examples=150, deadline=None)
@given(content=st.one_of(st.binary(), st.text().map(str.encode)), extension=st.sampled_from(EXTENSIONS))
def test_any_bytes_give_reviews_or_bad_input(
    content: bytes, extension: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with contextlib.suppress(BadInput):
        load_reviews(write(tmp_path_factory.mktemp("any") / f"a.{extension}", content))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["positive", "\ud83d"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "domain"]), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(records=st.lists(JSON_VALUES, max_size=4))
def test_any_json_gives_reviews_or_bad_input(records: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "a.json"
    try:
        reviews = load_reviews(write(path, records))
    except BadInput as error:
        assert str(path) in str(error)
    else:
        assert 0 < len(reviews) <= len(records)


# Complaints about records


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("text", None, "no 'text': 2, 4 — fill it in"),
        ("label", None, "no 'label': 2, 4 — fill it in"),
        ("domain", None, "no 'domain': 2, 4 — fill it in"),
        ("text", ["a"], "a list as 'text': 2, 4 — make it a text"),
        ("text", 5, "a int as 'text': 2, 4 — make it a text"),
        ("domain", {"a": 1}, "a dict as 'domain': 2, 4 — make it a text"),
        ("text", " \n", "an empty text: 2, 4 — remove them or fill them"),
        ("domain", "", "an empty domain: 2, 4 — remove them or fill them"),
        ("text", "a\ud83d", "half a surrogate pair in 'text': 2, 4 — remove that character"),
        ("domain", "a\x1b[2Jb", "a control character in 'domain': 2, 4 — remove that character"),
        ("label", "neutral", "the unknown label 'neutral': 2, 4 — use positive or negative, 1 or 0"),
        ("label", "", "the unknown label '': 2, 4 — use positive"),
        ("label", -1, "the unknown label -1: 2, 4 — use positive"),
        ("label", 0.5, "the unknown label 0.5: 2, 4 — use positive"),
        ("label", ["positive"], "the unknown label ['positive']: 2, 4 — use positive"),
    ],
)
def test_bad_records_are_numbered(tmp_path: Path, field: str, value: Any, said: str) -> None:
    records = [{**record, field: value} if n in (2, 4) else record for n, record in enumerate(RECORDS, start=1)]
    path = write(tmp_path / "a.json", records)
    assert complaint(path) == f"{path}: 2 records have {said}" + complaint(path).partition(said)[2]
    if value is None:
        for record in records[1], records[3]:
            del record[field]
        assert said in complaint(write(path, records))


def test_null_and_missing_in_the_other_formats(tmp_path: Path) -> None:
    missing = [{**record, "text": None} for record in RECORDS]
    assert "6 records have no 'text': 1, 2, 3, 4, 5, … — " in complaint(write(tmp_path / "a.parquet", missing))
    renamed = [{"body": r["text"], "label": r["label"], "domain": r["domain"]} for r in RECORDS]
    for extension in EXTENSIONS:
        said = complaint(write(tmp_path / f"b.{extension}", renamed))
        assert "no column 'text' — rename its columns, which are 'body', 'label', 'domain'" in said
    assert "1 record has no 'domain': 2" in complaint(write(tmp_path / "c.csv", "text,label,domain\na,1,d\nb,0\n"))
    unrelated = pyarrow.table({"a": [1, 2]})
    pyarrow.parquet.write_table(unrelated, tmp_path / "d.parquet")
    assert "no column 'text' and no column 'label' and no column 'domain' — " in complaint(tmp_path / "d.parquet")


@pytest.mark.parametrize("spelled", [(0, 1), ("0.0", "1.0"), (0.0, 1.0), ("False", "True"), (False, True)])
def test_labels_as_pandas_writes_them(tmp_path: Path, spelled: tuple[Any, Any]) -> None:
    names = ("negative", "positive")
    records = [{**record, "label": spelled[names.index(record["label"])]} for record in RECORDS]
    found = plain(load_reviews(write(tmp_path / "a.json", records)))
    assert [review["label"] for review in found] == [record["label"] for record in RECORDS]


def test_wrong_types_in_parquet(tmp_path: Path) -> None:
    for value, said in ((b"a", "a bytes as 'text'"), (7, "a int as 'text'"), (["a"], "a list as 'text'")):
        assert said in complaint(write(tmp_path / "a.parquet", [{**RECORDS[0], "text": value}]))


def test_unquoted_comma_in_csv(tmp_path: Path) -> None:
    message = complaint(write(tmp_path / "a.csv", "text,label,domain\na,1,d\nfine, really,1,d\n"))
    assert "1 record has more values than the header has columns: 2 — put texts with commas into" in message


def test_record_that_is_no_object(tmp_path: Path) -> None:
    message = complaint(write(tmp_path / "a.json", [RECORDS[0], ["a", 1, "d"]]))
    assert "1 record has a list for an object: 2 — write" in message


def test_all_kinds_of_problem_at_once(tmp_path: Path) -> None:
    bad = [{"text": "x", "label": f"star {n}", "domain": "d"} for n in range(7)]
    message = complaint(write(tmp_path / "a.json", [*bad, {"text": "", "label": 1}]))
    assert message.count("unknown label") == 5 and "and 4 more kinds" in message


# URLs


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads allowed, whatever HF_HUB_OFFLINE said when `datasets` was loaded; their cache in tmp_path."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(tmp_path: Path, online: None) -> Iterator[tuple[str, Path]]:
    """Address of a small server on loopback and the folder that it serves."""
    if importlib.util.find_spec("aiohttp") is None:
        pytest.skip("aiohttp is not installed: datasets cannot download without it")
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_url(server: tuple[str, Path], extension: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address, folder = server
    path = write(folder / f"a.{extension}", RECORDS)
    url = f"{address}/a.{extension}?token=x.zip"
    assert plain(load_reviews(url)) == stripped(RECORDS)
    path.unlink()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert plain(load_reviews(url)) == stripped(RECORDS), "the second time it comes from the cache, also offline"


def test_bad_file_at_a_url_names_url_and_cached_file(server: tuple[str, Path]) -> None:
    address, folder = server
    write(folder / "a.json", "<html>")
    message = complaint(f"{address}/a.json")
    assert f"{address}/a.json" in message and "line 1 column 1" in message
    cached = message.partition("(kept in ")[2].partition(":")[0]
    assert Path(cached).read_text() == "<html>"


def test_no_such_page(server: tuple[str, Path]) -> None:
    message = complaint(f"{server[0]}/none.json")
    assert "/none.json: cannot be downloaded (404" in message and "pass the file's path" in message


def test_refused_port(online: None) -> None:
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.json"
        message = complaint(url)
    assert message.startswith(f"{url}: cannot be downloaded (")
    assert message.endswith("download it elsewhere and pass the file's path, or use --data world")
    if importlib.util.find_spec("aiohttp") is not None:
        assert "connect" in message.lower() and "pip install" not in message


def test_offline(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = complaint("https://example.invalid/a.json")
    assert "https://example.invalid/a.json" in message and "Offline mode is enabled" in message


def test_without_aiohttp(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ImportError("needs aiohttp") from ModuleNotFoundError("No module named 'aiohttp'")

    monkeypatch.setattr(datasets.DownloadManager, "download", refuse)
    message = complaint("http://127.0.0.1:1/a.json")
    assert "No module named 'aiohttp'" in message and "pip install aiohttp" in message


@pytest.mark.parametrize("url", ["http:///a.json", "http://[::1/a.json", "http://a b/c.json", "http://.json"])
def test_odd_urls(url: str, online: None) -> None:
    assert url in complaint(url)


@pytest.fixture
def amazon(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The served file that stands for the public one: its address and its git blob id are taken for the real ones."""
    address, folder = server
    path = write(folder / "dataset.json", RECORDS)
    monkeypatch.setattr(metalib.reviews, "AMAZON_URL", f"{address}/dataset.json")
    monkeypatch.setattr(metalib.reviews, "BLOB_IDS", {f"{address}/dataset.json": git_blob_id(path.read_bytes())})
    return path


def kept_files() -> list[Path]:
    """What the cache holds, less the empty locks."""
    cache = Path(datasets.config.DOWNLOADED_DATASETS_PATH)
    return sorted(path for path in cache.glob("*") if path.suffix != ".lock") if cache.is_dir() else []


def test_amazon(
    amazon: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.INFO, "metalib"):
        assert plain(load_reviews("amazon")) == stripped(RECORDS)
    assert "no licence" in caplog.text and "do not redistribute" in caplog.text
    assert "dataset.json: 100%" in capsys.readouterr().err, "a progress bar"
    amazon.unlink()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert plain(load_reviews("amazon")) == stripped(RECORDS), "the second time it comes from the cache, also offline"
    assert "dataset.json" not in capsys.readouterr().err, "and nothing is downloaded"
    assert kept_files()


def test_amazon_is_checked_and_another_file_is_not_kept(amazon: Path) -> None:
    right = amazon.read_bytes()
    wrong = write(amazon, right + b"\n").read_bytes()
    message = complaint("amazon")
    for part in (metalib.reviews.AMAZON_URL, git_blob_id(wrong), git_blob_id(right), "is deleted", "try again"):
        assert part in message
    copy = Path(message.partition("its copy ")[2].partition(" is deleted")[0])
    assert copy.parent == Path(datasets.config.DOWNLOADED_DATASETS_PATH) and not copy.exists()
    write(amazon, right)
    assert plain(load_reviews("amazon")) == stripped(RECORDS), "the next time it is downloaded again"
    write(copy, wrong)
    assert git_blob_id(wrong) in complaint("amazon"), "what was kept is checked too"


def test_git_blob_id() -> None:
    assert git_blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob_id(b"hello world\n") == "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"


def test_public_files() -> None:
    assert AMAZON_URL in BLOB_IDS
    for url, blob_id in BLOB_IDS.items():
        assert url.startswith("https://raw.githubusercontent.com/") and url.endswith("/dataset.json")
        assert len(bytes.fromhex(blob_id)) == 20


class Halved(Quiet):
    """Sends half of what it announces, then hangs up."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2])
        self.close_connection = True


def test_an_interrupted_download_leaves_nothing_half(amazon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Quiet, "copyfile", Halved.copyfile)
        message = complaint("amazon")
    assert "cannot be downloaded" in message
    assert all(path.suffix == ".incomplete" for path in kept_files()), "nothing that would be taken for the file"
    assert plain(load_reviews("amazon")) == stripped(RECORDS)
    assert {path.suffix for path in kept_files()} <= {"", ".json"}


# The real file


@pytest.fixture(scope="module")
def real() -> datasets.Dataset:
    if not REAL_FILE.exists():
        pytest.skip(f"{REAL_FILE} is not here")
    return load_reviews(REAL_FILE)


def test_real_file(real: datasets.Dataset) -> None:
    records = json.loads(REAL_FILE.read_text(encoding="utf-8"))["data"]
    assert len(records) == 19_956
    assert len(real) == len({(record["domain"], record["text"].strip()) for record in records})
    assert len(set(real["domain"])) == 22
    splits = split_domains(real)
    assert splits.test_domains == TEST_DOMAINS
    assert (len(splits.train_domains), len(splits.validation_domains), len(splits.test)) == (16, 3, 300)


# Splits


def dataset(rows: list[tuple[str, int, str]]) -> datasets.Dataset:
    columns = dict(zip(FEATURES, map(list, zip(*rows, strict=True)), strict=True))
    return datasets.Dataset.from_dict(columns, features=FEATURES)


SMALL = dataset([(f"{domain}{n}", n % 2, domain) for domain in "abcdef" for n in range(2)])


@settings(max_examples=80, deadline=None)
@given(
    drawn=st.lists(st.tuples(st.sampled_from("uvwxyz"), st.integers(0, 1), st.sampled_from("abcdefg"))),
    roles=st.lists(st.sampled_from(["test", "validation", "training"]), min_size=6, max_size=6),
    count=st.none() | st.integers(0, 5),
    name_training=st.booleans(),
    seed=st.integers(0, 5),
)
def test_split_properties(drawn: Any, roles: Any, count: int | None, name_training: bool, seed: int) -> None:
    rows = [*drawn, *((f"own {domain}", 1, domain) for domain in "abcdefg")]
    named = {kind: [d for d, role in zip("bcdefg", roles, strict=True) if role == kind] for kind in set(roles)}
    training = ["a", *named.get("training", [])]
    test, validation = named.get("test", []), named.get("validation", [])
    if count is not None:  # drawn from the training domains; those named for validation are left over
        training += [] if name_training else validation
        validation = min(count, len(training) - 1)
    splits = split_domains(dataset(rows), test, validation, seed, training if name_training else None)

    parts = [splits.test, splits.validation, splits.train]
    names = [splits.test_domains, splits.validation_domains, splits.train_domains]
    assert splits.test_domains == tuple(test)
    if count is None:
        assert (splits.validation_domains, splits.train_domains) == (tuple(validation), tuple(training))
    else:
        assert len(splits.validation_domains) == validation
        assert sorted(splits.validation_domains + splits.train_domains) == sorted(training)
    held_out: set[str] = set()
    for part, domains in zip(parts, names, strict=True):
        own = list({(row[0], row[2]): row for row in reversed(rows) if row[2] in domains}.values())[::-1]
        own.sort(key=rows.index)  # the first of each text in a domain
        got = [tuple(row.values()) for row in part.to_list()]
        assert got == [row for row in own if row[0] not in held_out], "all rows but doubles and shared ones, in order"
        assert part.features == FEATURES
        held_out |= {row[0] for row in own}


def test_drawn_validation_domains_depend_on_seed_and_names_only() -> None:
    shuffled = SMALL.shuffle(seed=1).select(range(len(SMALL) - 1))
    draws = {seed: split_domains(SMALL, ["a"], 2, seed).validation_domains for seed in range(20)}
    assert draws == {seed: split_domains(shuffled, ["a"], 2, seed).validation_domains for seed in range(20)}
    assert len(set(draws.values())) > 3
    assert Counter(name for names in draws.values() for name in names).keys() == set("bcdef")


def test_validation_as_names_and_none() -> None:
    splits = split_domains(SMALL, ["a"], ["c", "b"])
    assert (splits.train_domains, splits.validation_domains) == (("d", "e", "f"), ("b", "c"))
    splits = split_domains(SMALL, ["a"], 0)
    assert len(splits.validation) == 0 and splits.validation.features == FEATURES
    assert splits.validation_domains == ()


def test_training_domains_as_names() -> None:
    splits = split_domains(SMALL, ["a"], 1, train_domains=["b", "d"])
    assert sorted(splits.train_domains + splits.validation_domains) == ["b", "d"]
    assert split_domains(SMALL, ["a"], ["c"], train_domains=["d"]).train_domains == ("d",)


def test_doubles_in_a_domain_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [("p", 1, "test"), ("q", 0, "train"), ("q", 1, "train"), ("p", 1, "test"), ("q", 0, "unused")] * 2
    with caplog.at_level(logging.WARNING, "metalib"):
        splits = split_domains(dataset(rows), ["test"], 0, train_domains=["train"])
    assert [list(part["label"]) for part in (splits.test, splits.train)] == [[1], [0]]
    (message,) = [record.getMessage() for record in caplog.records if record.name == "metalib"]
    assert message == "dropped 6 reviews whose text came earlier in their domain"


def test_shared_texts_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        ("p", 1, "test"),
        ("p", 1, "val"),
        ("q", 0, "val"),
        ("p", 0, "train"),
        ("q", 1, "train"),
        ("r", 1, "train"),
    ]
    with caplog.at_level(logging.WARNING, "metalib"):
        splits = split_domains(dataset(rows), ["test"], ["val"])
    assert [list(part["text"]) for part in (splits.test, splits.validation, splits.train)] == [
        ["p"],
        ["q"],
        ["r"],
    ]
    messages = [record.getMessage() for record in caplog.records if record.name == "metalib"]
    assert len(messages) == 2
    assert "dropped 1 validation reviews" in messages[0] and "dropped 2 training reviews" in messages[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"test_domains": ["automotiv"]},
            ["unknown test domain 'automotiv'", "did you mean 'automotive'?", "books"],
        ),
        (
            {"validation_domains": ["zz"]},
            ["unknown validation domain 'zz'", "Known are: automotive, books, dvd"],
        ),
        ({"train_domains": ["zz"]}, ["unknown training domain 'zz'"]),
        ({"test_domains": "auto"}, ["unknown test domain 'auto'"]),
        (
            {"train_domains": ["automotive"]},
            ["'automotive' is both a test and a training domain", "take one out"],
        ),
        ({"validation_domains": ["automotive"]}, ["both a test and a validation domain"]),
        (
            {"validation_domains": ["dvd"], "train_domains": ["dvd"]},
            ["both a validation and a training domain"],
        ),
        ({"train_domains": ["dvd", "dvd"]}, ["'dvd' is twice among the training domains", "once"]),
        ({"validation_domains": 2}, ["no training domain is left", "2 domains", "fewer"]),
        ({"validation_domains": ["books", "dvd"]}, ["no training domain is left"]),
        ({"train_domains": []}, ["no training domain is left"]),
        ({"validation_domains": -1}, ["validation_domains=-1", "use 0 or more"]),
    ],
)
def test_split_complaints(arguments: dict[str, Any], said: list[str]) -> None:
    reviews = dataset([("x", 1, "automotive"), ("y", 0, "books"), ("z", 1, "dvd")])
    with pytest.raises(BadInput) as caught:
        split_domains(reviews, **{"test_domains": ["automotive"], "validation_domains": 0, **arguments})
    for part in said:
        assert part in str(caught.value)


def test_default_test_domains_in_other_data() -> None:
    with pytest.raises(BadInput, match=r"unknown test domain 'automotive'.*Known are: a, b"):
        split_domains(SMALL)


def test_training_texts_all_held_out() -> None:
    with pytest.raises(BadInput, match=r"no training review is left.*fewer"):
        split_domains(dataset([("x", 1, "a"), ("x", 1, "b")]), ["a"], 0)


def test_describe() -> None:
    table = describe(dataset([("one two", 1, "b"), ("one two three four", 0, "b"), ("one", 1, "a")]))
    assert list(table.index) == ["a", "b"]
    assert table.loc["b"].to_dict() == {"reviews": 2, "positive": 0.5, "median_words": 3}
