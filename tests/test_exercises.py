"""Each exercise of the notebooks: its stub fails, its solution passes, typical mistakes get a hint that names them.

Stub and solution are taken from the notebook itself, so what a reader opens is what is tested.
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
sys.path.insert(0, str(FOLDER))

import exercises  # noqa: E402
from teaching import attempt  # noqa: E402

IMPORTS = "import math\nimport random\nfrom itertools import count\nimport numpy as np\nimport torch\n"
MAGIC = "%%writefile"
SOLUTION = re.compile(r"<summary>Solution</summary>\n\n```python\n(.+?)```\n\n</details>", re.DOTALL)
CALL = re.compile(r"attempt\(exercises\.(check_\w+), (\w+)\)")


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[str]:
    return [cell.source for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def imports_of(notebook: nbformat.NotebookNode) -> str:
    """The notebook's own imports: an answer can use nothing else."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code" and MAGIC not in cell.source)
    imports = [each for each in ast.parse(code).body if isinstance(each, ast.Import | ast.ImportFrom)]
    return "\n".join(map(ast.unparse, imports))


def read_exercises() -> dict[str, tuple[str, str, str]]:
    """Name of a check → (name of the answer, stub after the notebook's imports, solution), over all notebooks."""
    found = {}
    for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        parts = [tagged(notebook, f"exercise-{role}") for role in ("check", "stub", "solution")]
        for check, stub, solution in zip(*parts, strict=True):
            (name, answer), code = CALL.search(check).groups(), SOLUTION.search(solution).group(1)
            found[name] = (answer, stub if MAGIC in stub else f"{imports_of(notebook)}\n{stub}", code)
    return found


EXERCISES = read_exercises()
SCRATCH = tempfile.TemporaryDirectory()


def make(code: str, name: str) -> Any:
    """What `code` calls `name`; where it is a cell that writes a file, the path of that file."""
    if MAGIC in code:
        file = Path(tempfile.mkdtemp(dir=SCRATCH.name)) / "answer.py"
        file.write_text(code.rpartition(MAGIC)[2].partition("\n")[2], encoding="utf-8")
        return file
    names: dict[str, Any] = {}
    exec(code, names)
    return names[name]


BALANCED = "def balanced_accuracy(predictions, labels):\n    "
BEST = "def best_class(signs, positive_share):\n    w, p = np.log(0.92 / 0.08), positive_share\n    "
DRAW = (
    "def draw_task(negatives, positives, shots, queries, seed, index):\n    "
    "rng = np.random.default_rng((seed, index))\n    "
)
ONE = "def chance_of_one_class(negatives, positives, draws):\n    n, p, k = negatives, positives, draws\n    "
CUT = "return np.concatenate([r[:shots] for r in rows]), np.concatenate([r[shots:] for r in rows])"
PART = "def contribution(direction_of, size, meta_batch, rank, processes):\n    "
MINE = "np.array([direction_of(p) for p in range(rank, meta_batch, processes)])"
SECONDS = (
    "def meta_step_seconds(numbers, meta_batch, gpus, task_seconds, gbits):\n    "
    "n, bits = gpus, 64 * numbers\n    turns = math.ceil(meta_batch / n)\n    return "
)
CHOOSE = "rows = [rng.choice(r, shots + queries, replace=False) for r in (negatives, positives)]\n    "
LEARN = "def learn_task(weights, x, y, batches, alpha):\n    phi = weights.copy()\n    "
STEPS = "for r in batches:\n        phi = phi - alpha * x[r].T @ (x[r] @ phi - y[r]) / len(r)\n    "
CUTS = (
    "def gradient_in_parts(gradient, rows, micro_batch):\n    "
    "parts = [rows[i : i + micro_batch] for i in range(0, len(rows), micro_batch)]\n    "
)
OUTER = "def reptile_step(weights, tasks, adapt, epsilon):\n    theta, phis = weights.copy(), []\n    "
EACH_TASK = "for task in tasks:\n        weights[:] = theta; adapt(weights, task); phis.append(weights.copy())\n    "
FOMAML = "def fomaml_direction(theta, batches, gradient, alpha):\n    phi = theta.copy()\n    "
ALL_BUT_LAST = "for batch in batches[:-1]:\n        phi = phi - alpha * gradient(phi, batch)\n    "
OVERALL = (
    "def recall(p, y):\n    return np.mean([np.mean(p[y == c] == c) for c in np.unique(y)])\n\n"
    "def by_domain(scores, domains):\n    domains = np.array(domains)\n    "
    "return [np.mean(np.array(scores)[domains == d]) for d in np.unique(domains)]\n\n"
    "def overall_score(logits, labels, domains):\n    p = logits.argmax(-1)\n    "
)
EACH = "scores = [recall(*pair) for pair in zip(p, labels)]\n    "
PAIRED = (
    "def paired_difference(first, second, overlap):\n    keys = sorted(first)\n    "
    "a, b = (np.array([scores[key] for key in keys]) for scores in (first, second))\n    "
    "d, factor = a - b, 1 / len(keys) + overlap / (1 - overlap)\n    "
)
LINEAR = (
    "def linear_prototypes(support, labels):\n    "
    "c = np.stack([support[labels == k].mean(axis=0) for k in np.unique(labels)])\n    "
)
MAML = (
    "def maml_direction(theta, batches, gradient, hessian, alpha):\n    "
    "phi, one, hs = theta, np.eye(len(theta)), []\n    "
    "for batch in batches[:-1]:\n        hs.append(hessian(phi, batch))\n        "
    "phi = phi - alpha * gradient(phi, batch)\n    g = gradient(phi, batches[-1])\n    "
)
BACK = "for h in reversed(hs):\n        g = (one - alpha * h) @ g\n    "
HEAD = MAGIC + (
    " x.py\nimport sys\nimport torch\nfrom metalib.inner import untouched, adapt\n"
    "from metalib.learners import Learner, MetricLearner, Reptile\nfrom metalib.learners.metric import prototypes\n"
)
RULE = "class Mine(Reptile):\n    name = 'mine'\n    "
FOUND = (
    "def direction(self, reviews, task, seed):\n        "
    "d, losses = super().direction(reviews, task, seed)\n        "
)
END = "\nif __name__ == '__main__':\n    from metalib.__main__ import main\n    sys.exit(main())\n"
WHO = "def who_wins(cell):\n    joint = [p for p in cell['paired'] if p['b'] == 'joint']\n    "
SURE = "sure = [p for p in joint if (p['simultaneous'][0] or 0) > 0]\n    "
BY_MOST = "return max(sure, key=lambda p: p['difference'])['a'] if sure else 'joint'"
SHARE = "(1 - conflict) * (1 - cue / 2)"
KNOWN = (
    "def known_beforehand(conflict, cue):\n    k, total = {k}, 0\n    for n in {counts}:\n        "
    "for j in range(n + 1):\n            for a in range(j + 1):\n                "
    "worth = 1 if 2 * a > j else {tie} if 2 * a == j else 0\n"
    "                total += worth * math.comb(n, j) * k**j * (1 - k)**(n - j) * math.comb(j, a) * "
    ".92**a * .08**(j - a)\n"
    "    return "
)

ANSWERS = "def to_answers(logits, names):\n    p = np.exp(logits - logits.max(axis=1, keepdims=True))\n    "
SHARES = "p = p / p.sum(axis=1, keepdims=True)\n    "
NAMED = "return [(names[row.argmax()], row.max()) for row in p]"
NEEDED = (
    "def labels_needed(recalls, half_width):\n    r, h, z = np.array(recalls), half_width, 1.96\n    "
    "s, c = sum(r * (1 - r)), len(r)\n    return "
)

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
    "check_learn_task": [
        ("weights not restored", LEARN.replace(".copy()", "") + STEPS.replace("phi = phi -", "phi -=") + "return phi"),
        ("weights not restored", LEARN + STEPS + "weights[:] = phi\n    return weights"),
        ("you return θ", LEARN + STEPS + "return weights"),
        ("you return θ", LEARN + STEPS.replace("phi", "weights") + "end, weights = weights, phi\n    return weights"),
        ("flipped sign", LEARN + STEPS.replace("phi - alpha", "phi + alpha") + "return phi"),
        ("gradients pile up", LEARN + "g = np.zeros_like(phi)\n    for r in batches:\n        "
         "g += x[r].T @ (x[r] @ phi - y[r]) / len(r)\n        phi = phi - alpha * g\n    return phi"),
        ("taken at θ", LEARN + STEPS.replace("@ phi", "@ weights") + "return phi"),
        ("all examples", LEARN + STEPS.replace("len(r)", "len(x)").replace("[r]", "") + "return phi"),
        ("you add the gradients", LEARN + STEPS.replace(" / len(r)", "") + "return phi"),
        ("number of all examples", LEARN + STEPS.replace("len(r)", "len(x)") + "return phi"),
        ("inside the loop", LEARN + STEPS + "    return phi"),
        ("φ − θ", LEARN + STEPS + "return phi - weights"),
        ("forget `return`", LEARN + STEPS),
    ],
    "check_gradient_in_parts": [
        ("mean of means", CUTS + "return np.mean([gradient(p) for p in parts], axis=0)"),
        ("add the means", CUTS + "return sum(gradient(p) for p in parts)"),
        ("summed loss", CUTS + "return sum(gradient(p) * len(p) for p in parts)"),
        ("is dropped", CUTS + "return np.mean([gradient(p) for p in parts if len(p) == micro_batch], axis=0)"),
        ("is dropped", CUTS + "return sum(gradient(p) * len(p) for p in parts[:-1]) / len(rows)"),
        ("overwrites", CUTS + "for p in parts:\n        total = gradient(p) * len(p) / len(rows)\n    return total"),
        ("as if it were full", CUTS + "return sum(gradient(p) * micro_batch for p in parts) / len(rows)"),
        ("at once", CUTS + "return gradient(rows)"),
        ("empty part", CUTS + "return sum(gradient(rows[i : i + micro_batch]) for i in range(0, 99, micro_batch))"),
        ("forget `return`", CUTS + "sum(gradient(p) * len(p) for p in parts) / len(rows)"),
    ],
    "check_reptile_step": [
        ("flipped sign", OUTER + EACH_TASK + "weights[:] = theta - epsilon * np.mean(np.array(phis) - theta, axis=0)"),
        ("take their mean", OUTER + EACH_TASK
         + "weights[:] = theta + epsilon * np.sum(np.array(phis) - theta, axis=0)"),
        ("wrong axis", OUTER + EACH_TASK + "weights[:] = theta + epsilon * np.mean(np.array(phis) - theta, axis=1)"),
        ("weights not restored", OUTER + EACH_TASK.replace("weights[:] = theta; ", "")
         + "weights[:] = theta + epsilon * (np.mean(phis, axis=0) - theta)"),
        ("weights not restored", OUTER + EACH_TASK.replace("weights[:] = theta; ", "")
         + "weights += epsilon * (np.mean(phis, axis=0) - theta)"),
        ("weights not restored after the last", OUTER + EACH_TASK
         + "weights += epsilon * (np.mean(phis, axis=0) - theta)"),
        ("algorithm 1", OUTER + "for task in tasks:\n        theta = weights.copy(); adapt(weights, task)\n"
         "        weights[:] = theta + epsilon * (weights - theta)"),
        ("ε times φ", OUTER + EACH_TASK + "weights[:] = epsilon * np.mean(phis, axis=0)"),
        ("ε times φ", OUTER + EACH_TASK + "weights[:] = theta + epsilon * np.mean(phis, axis=0)"),
        ("exchanged", OUTER + EACH_TASK + "weights[:] = epsilon * theta + (1 - epsilon) * np.mean(phis, axis=0)"),
        ("ε is left out", OUTER + EACH_TASK + "weights[:] = np.mean(phis, axis=0)"),
        ("second name", OUTER.replace(".copy()", "") + EACH_TASK
         + "weights[:] = theta + epsilon * (np.mean(phis, axis=0) - theta)"),
        ("must be a copy", OUTER + EACH_TASK.replace("append(weights.copy())", "append(weights)")
         + "weights[:] = theta\n    weights[:] = theta + epsilon * (np.mean(phis, axis=0) - theta)"),
        ("write into them", OUTER + EACH_TASK
         + "weights[:] = theta\n    return theta + epsilon * (np.mean(phis, axis=0) - theta)"),
    ],
    "check_fomaml_direction": [
        ("flipped sign", FOMAML + ALL_BUT_LAST + "return gradient(phi, batches[-1])"),
        ("gradient at θ", FOMAML + ALL_BUT_LAST + "return -gradient(theta, batches[-1])"),
        ("among the inner steps", FOMAML + ALL_BUT_LAST.replace("[:-1]", "") + "return -gradient(phi, batches[-1])"),
        ("Reptile's direction", FOMAML + ALL_BUT_LAST.replace("[:-1]", "") + "return phi - theta"),
        ("Reptile's direction", FOMAML + ALL_BUT_LAST.replace("[:-1]", "") + "return (phi - theta) / alpha"),
        ("a gradient on the query", FOMAML + ALL_BUT_LAST + "return phi - theta"),
        ("not the first", FOMAML + ALL_BUT_LAST.replace("[:-1]", "[1:]") + "return -gradient(phi, batches[0])"),
        ("one α too many", FOMAML + ALL_BUT_LAST + "return -alpha * gradient(phi, batches[-1])"),
        ("taken at θ", FOMAML + ALL_BUT_LAST.replace("gradient(phi", "gradient(theta")
         + "return -gradient(phi, batches[-1])"),
        ("θ itself has moved", FOMAML.replace(".copy()", "") + ALL_BUT_LAST.replace("phi = phi -", "phi -=")
         + "return -gradient(phi, batches[-1])"),
        ("forget `return`", FOMAML + ALL_BUT_LAST + "-gradient(phi, batches[-1])"),
    ],
    "check_overall_score": [
        ("argmax over the wrong axis", OVERALL.replace("argmax(-1)", "argmax(1)")
         + EACH + "return np.mean(by_domain(scores, domains))"),
        ("plain accuracy", OVERALL + "return np.mean(by_domain(np.mean(p == labels, axis=1), domains))"),
        ("plain accuracy", OVERALL + "return np.mean(p == labels)"),
        ("pooled", OVERALL + "return recall(p, labels)"),
        ("pooled", OVERALL + "d = np.array(domains)\n    "
         "return np.mean([recall(p[d == one], labels[d == one]) for one in np.unique(d)])"),
        ("mean over the wrong tasks", OVERALL + EACH + "return np.mean(scores)"),
        ("take their mean", OVERALL + EACH + "return np.sum(by_domain(scores, domains))"),
        ("classes that occur", OVERALL + EACH.replace("recall(*pair)", "sum(np.sum((pair[0] == c) & (pair[1] == c)) / "
         "max(np.sum(pair[1] == c), 1) for c in (0, 1)) / 2") + "return np.mean(by_domain(scores, domains))"),
        ("0 / 0", OVERALL.replace("np.unique(y)", "(0, 1)") + EACH + "return np.mean(by_domain(scores, domains))"),
        ("return one number", OVERALL + EACH + "return by_domain(scores, domains)"),
    ],
    "check_paired_difference": [
        ("flipped sign", PAIRED + "return -d.mean(), np.sqrt(factor * d.var(ddof=1))"),
        ("wrong order", PAIRED + "d = np.array(list(first.values())) - np.array(list(second.values()))\n    "
         "return d.mean(), np.sqrt(factor * d.var(ddof=1))"),
        ("unpaired variance", PAIRED + "return d.mean(), np.sqrt(factor * (a.var(ddof=1) + b.var(ddof=1)))"),
        ("standard deviation", PAIRED + "return d.mean(), d.std(ddof=1)"),
        ("population variance", PAIRED + "return d.mean(), np.sqrt(factor * d.var())"),
        ("naive", PAIRED + "return d.mean(), d.std(ddof=1) / np.sqrt(len(d))"),
        ("you add ρ", PAIRED + "return d.mean(), np.sqrt((1 / len(d) + overlap) * d.var(ddof=1))"),
        ("square root", PAIRED + "return d.mean(), factor * d.var(ddof=1)"),
        ("two numbers", PAIRED + "return d.mean()"),
        ("forget `return`", PAIRED + "d.mean(), np.sqrt(factor * d.var(ddof=1))"),
    ],
    "check_contribution": [
        ("nobody learns task 4", PART + "own = meta_batch // processes\n    return sum((direction_of(p) for p in "
         "range(rank * own, rank * own + own)), np.zeros(size)) / meta_batch"),
        ("learned more than once", PART + "return sum((direction_of(p) for p in range(meta_batch)), np.zeros(size)) "
         "/ meta_batch / processes"),
        ("mean of means", PART + f"d = {MINE}\n    return d.astype(float).mean(0) / processes"),
        ("the sum of these means", PART + f"d = {MINE}\n    return d.astype(float).mean(0)"),
        ("divide by the number of tasks", PART + f"d = {MINE}\n    return d.astype(float).sum(0) / processes"),
        ("add up to the sum", PART + f"d = {MINE}\n    return d.astype(float).sum(0)"),
        ("add up in float64", PART + f"return {MINE}.sum(0) / meta_batch"),
        ("sends zeros", PART + "return sum(direction_of(p).astype(float) for p in range(rank, meta_batch, processes))"
         " / meta_batch"),
        ("there is no task 5", PART + "return sum((direction_of(p) for p in range(rank + 1, meta_batch + 1, "
         "processes)), np.zeros(size)) / meta_batch"),
        ("share them out evenly", PART + "mine = range(meta_batch) if rank == 0 else []\n    "
         "return sum((direction_of(p) for p in mine), np.zeros(size)) / meta_batch"),
        ("forget `return`", PART + MINE),
    ],
    "check_meta_step_seconds": [
        ("not bytes", SECONDS + "turns * task_seconds + 2 * (n - 1) / n * bits / 8 / (gbits * 1e9)"),
        ("8 bytes (not 4)", SECONDS + "turns * task_seconds + 2 * (n - 1) / n * bits / 2 / (gbits * 1e9)"),
        ("round the ring twice", SECONDS + "turns * task_seconds + (n - 1) / n * bits / (gbits * 1e9)"),
        ("round up", SECONDS + "meta_batch / n * task_seconds + 2 * (n - 1) / n * bits / (gbits * 1e9)"),
        ("round up", SECONDS + "meta_batch // n * task_seconds + 2 * (n - 1) / n * bits / (gbits * 1e9)"),
        ("side by side", SECONDS + "meta_batch * task_seconds + 2 * (n - 1) / n * bits / (gbits * 1e9)"),
        ("keeps one piece", SECONDS + "turns * task_seconds + 2 * bits / (gbits * 1e9)"),
        ("one piece of N", SECONDS + "turns * task_seconds + 2 * (n - 1) * bits / (gbits * 1e9)"),
        ("not once the vector", SECONDS + "turns * task_seconds + bits / (gbits * 1e9)"),
        ("not 2³⁰", SECONDS + "turns * task_seconds + 2 * (n - 1) / n * bits / (gbits * 2**30)"),
        ("the computing alone", SECONDS + "turns * task_seconds"),
        ("the sending alone", SECONDS + "2 * (n - 1) / n * bits / (gbits * 1e9)"),
    ],
    "check_linear_prototypes": [
        ("factor 2", LINEAR + "return c, -(c**2).sum(1)"),
        ("wrong sign", LINEAR + "return 2 * c, (c**2).sum(1)"),
        ("b is left out", LINEAR + "return 2 * c, np.zeros(len(c))"),
        ("must be squared", LINEAR + "return 2 * c, -np.linalg.norm(c, axis=1)"),
        ("near must score high", LINEAR + "return -2 * c, (c**2).sum(1)"),
        ("their mean", LINEAR.replace("mean", "sum") + "return 2 * c, -(c**2).sum(1)"),
        ("transpose", LINEAR + "return 2 * c.T, -(c**2).sum(1)"),
        ("one number for each class", LINEAR + "return 2 * c, -(c**2).sum()"),
        ("two arrays", LINEAR + "return 2 * c"),
        ("do not differ", LINEAR + "return 2 * c[::-1], -(c**2).sum(1)"),
        ("forget `return`", LINEAR + "2 * c, -(c**2).sum(1)"),
    ],
    "check_maml_direction": [
        ("first-order MAML", MAML + "return -g"),
        ("flipped sign", MAML + BACK + "return g"),
        ("wrong order", MAML + BACK.replace("reversed(hs)", "hs") + "return -g"),
        ("with a minus", MAML + BACK.replace("one - alpha", "one + alpha") + "return -g"),
        ("α is missing", MAML + BACK.replace("alpha * h", "h") + "return -g"),
        ("taken at θ", MAML.replace("hessian(phi", "hessian(theta") + BACK + "return -g"),
        ("one step too late", MAML.replace("hs.append(hessian(phi, batch))\n        ", "").replace(
            "gradient(phi, batch)\n", "gradient(phi, batch)\n        hs.append(hessian(phi, batch))\n")
         + BACK + "return -g"),
        ("no inner step", MAML + "hs.append(hessian(phi, batches[-1]))\n    " + BACK + "return -g"),
        ("only the last inner step", MAML + BACK.replace("reversed(hs)", "hs[-1:]") + "return -g"),
        ("use `@`", MAML + BACK.replace("(one - alpha * h) @ g", "(one * (one - alpha * h)) @ g") + "return -g"),
        ("of shape (3,)", MAML + BACK.replace("@ g", "* g") + "return -g"),
        ("θ itself has moved", MAML.replace("phi = phi -", "phi -=") + BACK + "return -g"),
        ("forget `return`", MAML + BACK + "-g"),
    ],
    "check_tenth_learner": [
        ("40 at most", HEAD + RULE + "pass\n" + "# \n" * 40 + END),
        ("no learner is defined", HEAD + "x = 1\n" + END),
        ("no learner is defined", HEAD + "class Mine(Reptile):\n    pass\n" + END),
        ("is taken", HEAD + "class Mine(Reptile):\n    name = 'reptile'\n" + END),
        ("one learner is wanted", HEAD + RULE + "pass\nclass Other(Reptile):\n    name = 'other'\n" + END),
        ("outer optimiser", HEAD + "class Mine(Learner):\n    name = 'mine'\n" + END),
        ("starts nothing", HEAD + RULE + "pass\n"),
        ("starts a run", HEAD + RULE + "pass\nfrom metalib.__main__ import main\nmain()\n"),
        ("ends the program", HEAD + RULE + "pass\nsys.exit()\n"),
        ("leave the library alone", HEAD + "import metalib.inner\nmetalib.inner.adapt = adapt.__call__\n" + RULE
         + "pass\n" + END),
        ("leave the library alone", HEAD + RULE + "pass\nReptile.direction = lambda *_: None\n" + END),
        ("returns two tensors", HEAD + RULE + FOUND + "return d\n" + END),
        ("has the shape", HEAD + RULE + FOUND + "return d[:-1], losses\n" + END),
        ("do not end at θ", HEAD + RULE + FOUND + "self.weights.flat.add_(d)\n        return d, losses\n" + END),
        ("losses are a tensor", HEAD + RULE + FOUND + "return d, losses.sum()\n" + END),
        ("not finite", HEAD + RULE + FOUND + "return d / 0, losses\n" + END),
        ("direction is zero", HEAD + RULE + FOUND + "return 0 * d, losses\n" + END),
        ("another direction", HEAD + RULE + FOUND + "return d + torch.randn_like(d), losses\n" + END),
        ("another direction", HEAD + RULE + "count = 0\n    " + FOUND
         + "Mine.count += 1\n        return d * Mine.count, losses\n" + END),
        ("look at `task`", HEAD + RULE + FOUND + "return torch.ones_like(d), losses\n" + END),
        ("random state", HEAD + RULE + FOUND + "torch.rand(1)\n        return d, losses\n" + END),
        ("another mode", HEAD + RULE + FOUND + "self.model.train()\n        return d, losses\n" + END),
        ("classes are 0 and 1", HEAD + RULE + "def predict(self, reviews, task, seed):\n        "
         "return super().predict(reviews, task, seed) + 1\n" + END),
        ("left its trace", HEAD + RULE + "def predict(self, reviews, task, seed):\n        "
         "self.fit(reviews, task.support)\n        return super().predict(reviews, task, seed)\n" + END),
    ],
    "check_who_wins": [
        ("protonet has the largest difference", WHO + "return max(joint, key=lambda p: p['difference'])['a']"),
        ("protonet has the largest difference", WHO + "return max(cell['methods'], key=lambda n: "
         "cell['methods'][n]['mean'])"),
        ("the plain `ci95`", WHO + SURE.replace("simultaneous", "ci95") + BY_MOST),
        ("take the larger difference", WHO + SURE + "return sure[0]['a'] if sure else 'joint'"),
        ("does not count", WHO.replace("if p['b'] == 'joint'", "") + SURE
         + "return min(sure, key=lambda p: (-p['difference'], p['a']))['a'] if sure else 'joint'"),
        ("ends None", WHO + "sure = [p for p in joint if p['simultaneous'][0] is None or p['simultaneous'][0] > 0]\n"
         "    " + BY_MOST),
        ("TypeError", WHO + SURE.replace("(p['simultaneous'][0] or 0)", "p['simultaneous'][0]") + BY_MOST),
        ("*below* joint", WHO + "sure = [p for p in joint if p['simultaneous'][0] and "
         "p['simultaneous'][0] * p['simultaneous'][1] > 0]\n    " + BY_MOST),
        ("No winner is 'joint'", WHO + SURE + "return max(sure, key=lambda p: p['difference'])['a'] if sure else None"),
        ("a learner's name", WHO + SURE + "return max(sure, key=lambda p: p['difference']) if sure else 'joint'"),
    ],
    "check_known_beforehand": [
        ("leave out the cue", KNOWN.format(k="1 - conflict", tie=".5", counts="(2, 3, 4)") + "total / 3"),
        ("only half of the cue", KNOWN.format(k="(1 - conflict) * (1 - cue)", tie=".5", counts="(2, 3, 4)")
         + "total / 3"),
        ("leave out the conflict", KNOWN.format(k="1 - cue / 2", tie=".5", counts="(2, 3, 4)") + "total / 3"),
        ("flipped", KNOWN.format(k=f"1 - {SHARE}", tie=".5", counts="(2, 3, 4)") + "total / 3"),
        ("count it as wrong", KNOWN.format(k=SHARE, tie="0", counts="(2, 3, 4)") + "total / 3"),
        ("count it as right", KNOWN.format(k=SHARE, tie="1", counts="(2, 3, 4)") + "total / 3"),
        ("three words are the mean", KNOWN.format(k=SHARE, tie=".5", counts="(3,)") + "total"),
        ("a review of one word", KNOWN.format(k=SHARE, tie=".5", counts="(1,)") + "total"),
        ("the probability 1/3", KNOWN.format(k=SHARE, tie=".5", counts="(2, 3, 4)") + "total"),
        ("not percent", KNOWN.format(k=SHARE, tie=".5", counts="(2, 3, 4)") + "100 * total / 3"),
        ("forget `return`", KNOWN.format(k=SHARE, tie=".5", counts="(2, 3, 4)").removesuffix("return ") + "total / 3"),
    ],
    "check_to_answers": [
        ("overflows", ANSWERS.replace(" - logits.max(axis=1, keepdims=True)", "") + SHARES + NAMED),
        ("must not depend on its neighbours", ANSWERS.replace(" - logits.max(axis=1, keepdims=True)", "")
         + "p = p / p.sum(axis=0)\n    return [(names[x.argmax()], row[x.argmax()]) for x, row in zip(logits, p)]"),
        ("sum of everything", ANSWERS.replace(" - logits.max(axis=1, keepdims=True)", "") + "p = p / p.sum()\n    "
         + NAMED),
        ("divide the powers", ANSWERS.replace(" - logits.max(axis=1, keepdims=True)", "") + NAMED),
        ("the logits themselves", ANSWERS + "p = logits\n    " + NAMED),
        ("the last class's scores", ANSWERS + SHARES + "return [(names[row.argmax()], row[-1]) for row in p]"),
        ("argmax, not argmin", ANSWERS + SHARES + NAMED.replace("argmax", "argmin")),
        ("along the classes", ANSWERS + SHARES + "return [(names[x % 3], 1.0) for x in [*p.argmax(axis=0), 0]]"),
        ("the class's name", ANSWERS + SHARES + NAMED.replace("names[row.argmax()]", "row.argmax()")),
        ("a pair", ANSWERS + SHARES + NAMED.replace("row.max())", "row.max(), row)")),
        ("four answers", ANSWERS + SHARES + "return (names[p[0].argmax()], p[0].max())"),
        ("work on a copy", ANSWERS + "logits -= 1\n    " + SHARES + NAMED),
        ("the first score is", ANSWERS + SHARES + NAMED.replace("row.max()", "1 - row.max()")),
        ("forget `return`", ANSWERS + SHARES + NAMED.removeprefix("return ")),
    ],
    "check_labels_needed": [
        ("a quarter of that sum", NEEDED + "math.ceil(z**2 * s / h**2)"),
        ("not over 2", NEEDED + "math.ceil(z**2 * s / c / h**2)"),
        ("you take one", NEEDED + "math.ceil(s / c**2 / h**2)"),
        ("to *one* side", NEEDED + "math.ceil(z**2 * s / c**2 / (2 * h) ** 2)"),
        ("not r / n", NEEDED + "math.ceil(z**2 * sum(r) / c**2 / h**2)"),
        ("average the recalls first", NEEDED + "math.ceil(z**2 * r.mean() * (1 - r.mean()) / c / h**2)"),
        ("square it", NEEDED + "math.ceil(z * math.sqrt(s) / c / h)"),
        ("of *each*", NEEDED + "c * math.ceil(z**2 * s / c**2 / h**2)"),
        ("round up", NEEDED + "z**2 * s / c**2 / h**2"),
        ("rounded down", NEEDED + "int(z**2 * s / c**2 / h**2)"),
        ("three classes", NEEDED + "math.ceil(z**2 * s / 4 / h**2)"),
        ("forget `return`", NEEDED.removesuffix("return ") + "math.ceil(z**2 * s / c**2 / h**2)"),
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
        getattr(exercises, name)(make(IMPORTS + code, EXERCISES[name][0]))
    assert hint in str(error.value)


@pytest.mark.parametrize("name", EXERCISES)
def test_whatever_an_answer_raises_becomes_a_hint(name):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    answer = make(f"{MAGIC} x.py\n1 / 0", name) if MAGIC in EXERCISES[name][1] else broken
    with pytest.raises(AssertionError, match="ZeroDivisionError: division by zero"):
        getattr(exercises, name)(answer)


def test_a_right_file_leaves_the_library_as_it_was():
    before = dict(exercises.LEARNERS)
    answer, _, solution = EXERCISES["check_tenth_learner"]
    exercises.check_tenth_learner(make(solution, answer))
    assert before == exercises.LEARNERS


@pytest.mark.slow
def test_the_tenth_learner_runs_in_two_processes(tmp_path):
    answer, _, solution = EXERCISES["check_tenth_learner"]
    settings = "--learner tenth --baselines tenth --meta-steps 2 --meta-batch 2 --train-shots 5 --validations 0"
    words = [make(solution, answer), "train", *settings.split(), "--eval-episodes", "3", "--out", tmp_path / "run"]
    torchrun, environment = Path(sys.executable).with_name("torchrun"), {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [torchrun, "--nproc_per_node", "2", *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "tenth" in (tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8")


def test_attempt_prints_the_hint_and_goes_on(capsys):
    name, (answer, stub, _) = next(iter(EXERCISES.items()))
    attempt(getattr(exercises, name), make(stub, answer))
    assert capsys.readouterr().out.startswith("Not yet: nothing is written yet")
