"""Files that are not what they should be: each one loads or ends with the project's own error, and none hangs.

Hypothesis makes 600 files of reviews and 600 files of settings out of good ones by doing harm to them, the same ones in
every run; the sizes that are too large to be generated often stand below as cases of their own.
"""

import json
import string
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metalib.config import Config, make_config, parse_assignments, read_config
from metalib.errors import BadInput, MetalibError
from metalib.reviews import load_reviews, split_domains
from metalib.tasks import TaskSampler
from metalib.tuning import combinations, parse_grid

CASES = 600
fuzz = settings(max_examples=CASES, deadline=20_000, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck))  # fmt: skip

# --- reviews -----------------------------------------------------------------------------------------------------

ODD_TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", " ", "\t\n", "\x00", "nul\x00inside", "\ufeffbom", "\ud83d", "e\u0301", "=1+1", '"', "a,b",
                     "'", "<script>alert(1)</script>", "[x](javascript:x)", "../../x", "/", "NaN", "null", "1e999"]),
)  # fmt: skip
ODD_VALUES = st.one_of(
    ODD_TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.lists(st.text(max_size=3), max_size=3),
    st.recursive(st.none(), lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=5),
)  # fmt: skip
LABELS = st.one_of(st.sampled_from(["positive", "negative", "Positive", "NEGATIVE", " positive ", "0", "1", "2"]),
                   st.sampled_from([0, 1, 0.0, 1.0, 2, -1, 0.5, True, False]), ODD_VALUES)  # fmt: skip
GOOD = st.fixed_dictionaries({
    "text": st.text(string.ascii_letters + " ", min_size=1, max_size=20),
    "label": st.sampled_from(["positive", "negative"]),
    "domain": st.sampled_from(["books", "dvd", "../../x"]),
})  # fmt: skip
FIELDS = {"text": ODD_TEXTS | ODD_VALUES, "label": LABELS, "domain": ODD_TEXTS | ODD_VALUES}


@st.composite
def review_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """An extension, and the bytes of a file to which some harm was done."""
    records: list[Any] = draw(st.lists(GOOD, max_size=8))
    for _ in range(draw(st.integers(0, 3))):
        if not records:
            break
        place = draw(st.integers(0, len(records) - 1))
        harm = draw(st.sampled_from(["value", "missing", "more", "double", "other"]))
        if not isinstance(records[place], dict):
            continue
        field = draw(st.sampled_from(sorted(FIELDS)))
        if harm == "value":
            records[place] = {**records[place], field: draw(FIELDS[field])}
        elif harm == "missing":
            records[place] = {k: v for k, v in records[place].items() if k != field}
        elif harm == "more":
            records[place] = {**records[place], draw(st.text(max_size=5)): draw(ODD_VALUES)}
        elif harm == "double":
            records.append(records[place])
        else:
            records[place] = draw(ODD_VALUES)
    extension = draw(st.sampled_from(["json", "jsonl", "csv", "txt", ""]))
    if extension == "csv":
        rows = [[str(value) for value in r.values()] if isinstance(r, dict) else [str(r)] for r in records]
        quote = draw(st.booleans())
        content = "\n".join(
            ",".join(json.dumps(v) if quote else v for v in row) for row in [["text", "label", "domain"], *rows]
        )
    elif extension == "jsonl":
        content = "\n".join(json.dumps(record) for record in records)
    else:
        content = json.dumps(records, ensure_ascii=draw(st.booleans()))
    data = content.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(data)))
        cut = draw(st.sampled_from(["insert", "cut off", "drop", "encoding"]))
        if cut == "insert":
            data = (
                data[:place]
                + draw(st.sampled_from([b"\x00", b"\xff\xfe", b"\xc3", b'"', b"\r", b"}{", b"[" * 50]))
                + data[place:]
            )
        elif cut == "cut off":
            data = data[:place]
        elif cut == "drop":
            data = data[:place] + data[place + 1 :]
        else:
            data = data.decode("utf-8", "replace").encode(draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32"])))
    return extension, data


@fuzz
@given(case=review_files())
def test_review_files(case: tuple[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    extension, data = case
    file = tmp_path_factory.getbasetemp() / f"fuzzed.{extension}"
    file.write_bytes(data)
    try:
        reviews = load_reviews(str(file))
        assert set(reviews.column_names) == {"text", "label", "domain"}
        assert all(isinstance(text, str) and text.strip() for text in reviews["text"][:])
        assert set(reviews["label"][:]) <= {0, 1}
        splits = split_domains(reviews, ("dvd",), 0, 0)
        task = TaskSampler(splits.train, 1, 1)[0]
        assert not set(task.support) & set(task.query)
    except MetalibError as error:
        assert str(error)


def large(tmp_path: Path, content: Any) -> Path:
    file = tmp_path / "large.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in content))
    return file


def test_a_line_of_10_mb(tmp_path: Path) -> None:
    records = [{"text": "a b " * 2_500_000, "label": "positive", "domain": "books"}]
    assert len(load_reviews(str(large(tmp_path, records)))) == 1


def test_100_000_domains(tmp_path: Path) -> None:
    records = [{"text": f"text {i}", "label": i % 2, "domain": f"domain {i}"} for i in range(100_000)]
    reviews = load_reviews(str(large(tmp_path, records)))
    assert len(set(reviews["domain"][:])) == 100_000
    splits = split_domains(reviews, ("domain 1",), 3, 0)
    assert len(splits.train_domains) == 99_996
    with pytest.raises(BadInput, match="shots") as error:
        TaskSampler(splits.train, 1, 1)
    assert len(str(error.value)) < 1000


def test_json_nested_100_000_deep(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(BadInput):
        load_reviews(str(tmp_path / "deep.json"))


# --- settings ----------------------------------------------------------------------------------------------------

DEFAULTS = asdict(Config())
SETTING_VALUES = st.one_of(
    ODD_VALUES,
    st.sampled_from(["world", "amazon", "reptile", "joint", "adam", 0, 1, -1, 10**400, 1e400, "1e-3", "0x10",
                     ".inf", ".nan", "joint,finetuned", {"epsilon": {}}, ["epsilon=1"], ["epsilon"], [[]]]),
)  # fmt: skip
PIECES = ["&a [*a]", "*b", "!!python/object/apply:os.system ['true']", "!!int x", "2001-99-99", "1" * 5000, "? {}",
          "- x", "{", "\t", "'", "| \n", "<<: 1", "!!binary x", "\x00", "\u2028", "%YAML 9.9", "---\n---",
          "0o9", "1:99:99"]  # fmt: skip


@st.composite
def settings_files(draw: st.DrawFn) -> bytes:
    """The bytes of a file of settings to which some harm was done."""
    chosen = draw(st.lists(st.sampled_from(sorted(DEFAULTS)), max_size=5))
    found: dict[Any, Any] = {name: DEFAULTS[name] for name in chosen}
    for name in draw(st.lists(st.sampled_from(sorted(DEFAULTS)), max_size=2)):
        found[name] = draw(SETTING_VALUES)
    if draw(st.integers(0, 5)) == 0:
        found[draw(ODD_TEXTS | st.integers())] = draw(ODD_VALUES)
    text = yaml.safe_dump(json.loads(json.dumps({str(k): v for k, v in found.items()}, default=str)))
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(sorted(DEFAULTS)))
        text += f"\n{name}: {draw(st.sampled_from(PIECES))}\n"
    data = text.encode("utf-8", "replace")
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(st.sampled_from([b"\xff", b"\x00", b":", b"\n", b"- ", b"{"])) + data[place:]
    return data


def use(config: Config) -> None:
    """What a run asks of its settings before it looks at the data."""
    for name in (config.learner, *config.baselines):
        config.for_learner(name).training_loop()
        config.for_learner(name).adaptation_loop()


@fuzz
@given(data=settings_files())
def test_settings_files(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_bytes(data)
    try:
        use(read_config(file))
    except MetalibError as error:
        assert str(error) and len(str(error)) < 2000


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", ["seed", "data", "baselines", "joint", "inner_lr"])
def test_odd_yaml(piece: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(f"{name}: {piece}\n")
    try:
        use(read_config(tmp_path / "odd.yaml"))
    except MetalibError as error:
        assert str(error) and len(str(error)) < 2000


SEVERAL = ["", *sorted(set(DEFAULTS) - {"data", "test_domains", "baselines", "joint", "seed"})]


def test_yaml_that_grows_when_it_is_written_out(tmp_path: Path) -> None:
    """Nine lines whose aliases would become 10⁹ words."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines) + "\ndata: *a8\n")
    with pytest.raises(BadInput, match="a0"):
        read_config(tmp_path / "bomb.yaml")
    for name in ("data", "test_domains", "baselines", "joint", "seed"):
        text = "\n".join(lines).replace("a0: ", "joint: ", 1)
        for level in range(1, 9):
            text = text.replace(f"a{level}: ", f"{SEVERAL[level]}: ", 1)
        (tmp_path / "bomb.yaml").write_text(f"{text}\n{name}: *a8\n")
        with pytest.raises(BadInput) as error:
            read_config(tmp_path / "bomb.yaml")
        assert len(str(error.value)) < 2000


@fuzz
@given(name=st.sampled_from(sorted(field.name for field in fields(Config))), value=SETTING_VALUES, text=ODD_TEXTS)
def test_settings_from_the_command_line(name: str, value: Any, text: str) -> None:
    for act in (
        lambda: use(make_config({name: value}, "command line")),
        lambda: use(make_config({"joint": (f"{name}={text}",)}, "command line")),
        lambda: parse_assignments([text], "command line"),
        lambda: combinations(Config(), parse_grid([f"{name}={text}"])),
    ):
        try:
            act()
        except MetalibError as error:
            assert str(error)
