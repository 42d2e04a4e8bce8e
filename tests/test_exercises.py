"""Each exercise of the notebooks: its stub fails, its solution passes, typical mistakes get a hint that names them.

Stub and solution are taken from the notebook itself, so what a reader opens is what is tested.
"""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
sys.path.insert(0, str(FOLDER))

import exercises  # noqa: E402
from teaching import attempt  # noqa: E402

IMPORTS = "import math\nimport random\nfrom itertools import count\nimport numpy as np\nimport torch\n"
SOLUTION = re.compile(r"<summary>Solution</summary>\n\n```python\n(.+?)```\n\n</details>", re.DOTALL)
CALL = re.compile(r"attempt\(exercises\.(check_\w+), (\w+)\)")


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[str]:
    return [cell.source for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def read_exercises() -> dict[str, tuple[str, str, str]]:
    """Name of a check → (name of the answer, stub, solution), over all notebooks."""
    found = {}
    for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        parts = [tagged(notebook, f"exercise-{role}") for role in ("check", "stub", "solution")]
        for check, stub, solution in zip(*parts, strict=True):
            (name, answer), code = CALL.search(check).groups(), SOLUTION.search(solution).group(1)
            found[name] = (answer, stub, code)
    return found


EXERCISES = read_exercises()


def make(code: str, name: str) -> Any:
    """What `code` calls `name`."""
    names: dict[str, Any] = {}
    exec(IMPORTS + code, names)
    return names[name]


BALANCED = "def balanced_accuracy(predictions, labels):\n    "
BEST = "def best_class(signs, positive_share):\n    w, p = np.log(0.92 / 0.08), positive_share\n    "
DRAW = (
    "def draw_task(negatives, positives, shots, queries, seed, index):\n    "
    "rng = np.random.default_rng((seed, index))\n    "
)
ONE = "def chance_of_one_class(negatives, positives, draws):\n    n, p, k = negatives, positives, draws\n    "
CUT = "return np.concatenate([r[:shots] for r in rows]), np.concatenate([r[shots:] for r in rows])"
CHOOSE = "rows = [rng.choice(r, shots + queries, replace=False) for r in (negatives, positives)]\n    "

# Check → wrong answers: (words of the hint, code).
MISTAKES: dict[str, list[tuple[str, str]]] = {
    "check_balanced_accuracy": [
        ("plain accuracy", BALANCED + "return np.mean(predictions == labels)"),
        ("precision", BALANCED + "return np.mean([np.mean(labels[predictions == c] == c) for c in (0, 1)])"),
        ("recall of one class", BALANCED + "return np.mean(predictions[labels == 1] == 1)"),
        ("absent from the labels", BALANCED
         + "return np.mean([np.mean(predictions[labels == c] == c) for c in (0, 1)])"),
        ("average over the classes that are present", BALANCED + "return sum(np.sum((predictions == c) & (labels == c))"
         " / max(np.sum(labels == c), 1) for c in (0, 1)) / 2"),
        ("take their mean", BALANCED + "return sum(np.mean(predictions[labels == c] == c) for c in np.unique(labels))"),
        ("wrong answers", BALANCED + "return np.mean([np.mean(predictions[labels == c] != c) for c in (0, 1)])"),
        ("return one number", BALANCED + "return [np.mean(predictions[labels == c] == c) for c in (0, 1)]"),
        ("forget `return`", BALANCED + "np.mean(predictions == labels)"),
    ],
    "check_best_class": [
        ("flipped sign", BEST + "return int(-sum(signs) * w + np.log(p / (1 - p)) >= 0)"),
        ("leave out the prior", BEST + "return int(sum(signs) >= 0)"),
        ("prior has the wrong sign", BEST + "return int(sum(signs) * w + np.log((1 - p) / p) >= 0)"),
        ("do not count signs as 1", BEST + "return int(sum(signs) + np.log(p / (1 - p)) >= 0)"),
        ("tie goes to class 1", BEST + "return int(sum(signs) * w + np.log(p / (1 - p)) > 0)"),
        ("tie", BEST + "return int(sum(signs) * w + np.log(p) >= 0)"),
        ("return the class", BEST + "return sum(signs) * w + np.log(p / (1 - p))"),
    ],
    "check_draw_task": [
        ("without replacement", DRAW + CHOOSE.replace("False", "True") + CUT),
        ("query reviews stand in the support set", DRAW + "return tuple(np.concatenate([rng.choice(r, k, replace=False)"
         " for r in (negatives, positives)]) for k in (shots, queries))"),
        ("unbalanced", DRAW + "r = rng.permutation(np.concatenate([negatives, positives]))\n    "
         "return r[:2 * shots], r[2 * shots:2 * (shots + queries)]"),
        ("shots and queries are per class", DRAW + CHOOSE + CUT.replace("[:shots]", "[:shots // 2]")),
        ("rows, not their places", DRAW + "rows = [rng.choice(len(r), shots + queries, replace=False) for r in "
         "(negatives, positives)]\n    " + CUT),
        ("every index gives the same task", DRAW.replace("(seed, index)", "seed") + CHOOSE + CUT),
        ("every seed gives the same task", DRAW.replace("(seed, index)", "index") + CHOOSE + CUT),
        ("seed with the pair", DRAW.replace("(seed, index)", "seed + index") + CHOOSE + CUT),
        ("generator inside", "state = np.random.default_rng(0)\n" + DRAW + "rng = state\n    " + CHOOSE + CUT),
    ],
    "check_chance_of_one_class": [
        ("chance of positives only", ONE + "return math.comb(p, k) / math.comb(n + p, k)"),
        ("chance of negatives only", ONE + "return math.comb(n, k) / math.comb(n + p, k)"),
        ("with replacement", ONE + "return (p / (n + p)) ** k + (n / (n + p)) ** k"),
        ("with replacement", ONE + "return (p / (n + p)) ** k"),
        ("chance of both classes", ONE + "return 1 - (math.comb(p, k) + math.comb(n, k)) / math.comb(n + p, k)"),
        ("add, do not multiply", ONE + "return math.comb(p, k) * math.comb(n, k) / math.comb(n + p, k) ** 2"),
    ],
}  # fmt: skip


def names_of_checks() -> set[str]:
    return {name for name in vars(exercises) if name.startswith("check_")}


def test_checks_notebooks_and_mistakes_belong_together():
    assert set(EXERCISES) == names_of_checks() == set(MISTAKES)
    assert all(len(wrong) >= 3 for wrong in MISTAKES.values())


@pytest.mark.parametrize("name", EXERCISES)
def test_the_stub_fails(name):
    answer, stub, _ = EXERCISES[name]
    with pytest.raises(AssertionError, match="nothing is written yet"):
        getattr(exercises, name)(make(stub, answer))


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes_and_says_so_in_one_line(name, capsys):
    answer, stub, solution = EXERCISES[name]
    getattr(exercises, name)(make(stub + "\n" + solution, answer))
    printed = capsys.readouterr().out
    assert printed.startswith("Right: ") and printed.count("\n") == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "name, hint, code",
    [(name, hint, code) for name, wrong in MISTAKES.items() for hint, code in wrong],
    ids=[f"{name}-{hint}" for name, wrong in MISTAKES.items() for hint, _ in wrong],
)
def test_a_mistake_is_named(name, hint, code):
    with pytest.raises(AssertionError) as error:
        getattr(exercises, name)(make(code, EXERCISES[name][0]))
    assert hint in str(error.value)


@pytest.mark.parametrize("name", EXERCISES)
def test_whatever_an_answer_raises_becomes_a_hint(name):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    with pytest.raises(AssertionError, match="ZeroDivisionError: division by zero"):
        getattr(exercises, name)(broken)


def test_attempt_prints_the_hint_and_goes_on(capsys):
    name, (answer, stub, _) = next(iter(EXERCISES.items()))
    attempt(getattr(exercises, name), make(stub, answer))
    assert capsys.readouterr().out.startswith("Not yet: nothing is written yet")
