"""What is given stays data: no code of a model runs, nothing is unpickled, no name leads out of the run folder."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import metalib
from metalib import report
from metalib.config import Config
from metalib.errors import BadInput
from metalib.folders import choose_folder, next_free_folder
from metalib.models import load_model, train_tokenizer
from metalib.reviews import describe, load_reviews

SOURCES = sorted(Path(metalib.__file__).parent.rglob("*.py"))
FORBIDDEN = re.compile(
    r"import pickle|torch\.load|trust_remote_code=True|gather_object|object_list|yaml\.(load|unsafe)"
    r"|(?<![.\w])(eval|exec)\(|save_state|load_state\(|np\.load|joblib|dill"
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_that_runs_what_it_reads(path):
    assert any(source.parent.name == "learners" for source in SOURCES)
    assert not FORBIDDEN.search(path.read_text(encoding="utf-8"))


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a small model, opened once to see that it can be."""
    tokenizer = train_tokenizer(["a fine lamp", "a bad lamp"])
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **SMALL))
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    load_model(str(tmp_path / "model"), [], ["negative", "positive"])
    return tmp_path / "model"


def test_weights_that_are_a_pickle_are_refused_and_not_opened(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    exploded = tmp_path / "exploded"
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(2)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"cannot be opened as a model.*safetensors"):
        load_model(str(checkpoint), [], ["negative", "positive"])
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(exploded)))
    with pytest.raises(BadInput):
        load_model(str(checkpoint), [], ["negative", "positive"])
    assert not exploded.exists()
    pickle.loads(pickle.dumps(Bomb(exploded)))
    assert exploded.exists()  # it would have been


def test_code_that_comes_with_a_model_does_not_run(checkpoint, tmp_path):
    exploded = tmp_path / "exploded"
    (checkpoint / "code.py").write_text(f"import pathlib\npathlib.Path({str(exploded)!r}).touch()\n")
    settings = json.loads((checkpoint / "config.json").read_text())
    settings["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    settings["model_type"] = "odd"
    (checkpoint / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="model"):
        load_model(str(checkpoint), [], ["negative", "positive"])
    assert not exploded.exists()


@pytest.mark.parametrize(
    "data", ["../../x", "/etc/../x.json", "..", "a/../../b.csv", "https://x.org/../../y.json", "~/x"]
)
def test_a_data_sets_name_does_not_lead_out_of_runs(data, tmp_path, monkeypatch, bench):
    monkeypatch.chdir(tmp_path)
    folder = next_free_folder(Config(data=data))
    assert folder.parent == Path("runs") and ".." not in folder.name
    assert choose_folder(replace(Config(), data=data), bench.accelerator) == folder


MARKUP = ["<script>alert(1)</script>", "<b>bold</b>", "[link](https://example.org)"]


def test_markup_in_reviews_is_shown_as_it_is(tmp_path):
    """Notebooks print reviews or show them in tables of pandas, which escape HTML; reports show names only."""
    records = [{"text": f"{text} {label}", "label": label, "domain": text} for text in MARKUP for label in (0, 1)]
    (tmp_path / "reviews.json").write_text(json.dumps(records))
    reviews = load_reviews(str(tmp_path / "reviews.json"))
    assert reviews["text"][:] == [record["text"] for record in records]
    for shown in (describe(reviews), reviews.to_pandas()):
        assert "<script>" not in shown.to_html() and "<b>" not in shown.to_html()
    table = report.table(["domain"], [[text] for text in MARKUP])
    assert "<" not in table and "[link]" not in table
