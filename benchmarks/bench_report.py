"""`RESULTS.md` and the figure of the benchmark, from its `results.json`."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from metalib.checkpoint import write_atomically
from metalib.report import table

NAMES = {"tiny": "tiny", "minilm": "MiniLM-L6"}


def around(spread: dict[str, Any], digits: int = 1, unit: str = "", scale: float = 1) -> str:
    """ "6.1× (5.9 to 6.4)": median, least and most."""
    median, low, high = (f"{spread[key] * scale:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median}{unit} ({low} to {high})"


def ratio_rows(results: dict[str, Any]) -> list[list[str]]:
    """Tasks a second against the plain way, with the same θ."""
    settings = {
        "minilm_512": ("MiniLM-L6, 10 + 10 support, 5 steps of 10, plain way padded to 512", "≥ 6"),
        "minilm_original": ("MiniLM-L6, the original's setting: 100 support, 5 epochs in batches of 5, 30 query", "≥ 6"),
        "minilm_longest": ("MiniLM-L6, 10 + 10 support, 5 steps of 10, plain way padded to its longest", "≥ 1.5"),
        "tiny_padded": ("tiny, 10 + 10 support, 5 steps of 10, plain way padded to 128", ""),
        "tiny_longest": ("tiny, 10 + 10 support, 5 steps of 10, plain way padded to its longest", "≥ 3"),
    }
    rows = []
    for name, (what, goal) in settings.items():
        if found := results.get(name):
            rows.append([what, around(found["plain_seconds"], 2), around(found["metalib_seconds"], 3),
                         around(found["ratio"], 1, "×"), goal, f"{found['difference']:.0e}"])  # fmt: skip
    return rows


def figure_rows(results: dict[str, Any]) -> list[list[str]]:
    """What is not a ratio of two seconds a task."""
    rows = []
    for kind, most in (("minilm", "≤ 5"), ("tiny", "≤ 25")):
        if found := results.get(f"{kind}_shares"):
            rows.append([f"everything but forward and backward, share of an inner loop, %, {NAMES[kind]}",
                         around(found["rest"], 1, scale=100), most])  # fmt: skip
            rows.append([f"operations a second, padding not counted, GFLOP/s, {NAMES[kind]}", around(found["gflops"]), ""])
            rows.append([f"matrix products at the same shapes, GFLOP/s, {NAMES[kind]}",
                         around(found["product_gflops"]), ""])  # fmt: skip
            rows.append([f"the one in percent of the other, {NAMES[kind]}",
                         around(found["share_of_product_rate"], 0, scale=100), "≥ 75" if kind == "minilm" else ""])  # fmt: skip
    if found := results.get("minilm_to_plain_score"):
        plain = found["plain"]
        ratio = f"{found['ratio']:.0f}× ({found['seconds']:.0f} s)" if found["seconds"] else "not reached"
        rows.append([f"time to the plain way's balanced accuracy on held-out domains ({100 * plain['score']:.1f}% after "
                     f"{plain['tasks']} tasks, {plain['seconds']:.0f} s), any method", ratio, "≥ 20"])  # fmt: skip
    if found := results.get("minilm_memory"):
        sizes = [f"{entry['in_parameters']:.1f} at {tasks} task{'s' * (int(tasks) > 1)}"
                 for tasks, entry in found.items() if tasks.isdigit()]  # fmt: skip
        rows.append(["peak memory above the model and one minibatch's activations, in parameters, MiniLM-L6",
                     ", ".join(sizes), "≤ 5, flat"])  # fmt: skip
    if found := results.get("sampling"):
        rows.append(["tasks drawn and batched a second", around(found["tasks_per_second"], 0), "≥ 2,000"])
        held = found["bytes_held_after"]
        rows.append(["bytes held after 100, 1,000 tasks drawn", ", ".join(f"{size:,}" for size in held.values()), "equal"])
    for kind in NAMES:
        if found := results.get(f"{kind}_lines"):
            fits = ", ".join(f"{axis} {found[axis]['r2']:.3f}" for axis in ("tasks", "shots", "steps", "tokens"))
            rows.append([f"R² of a straight line, seconds against each, {NAMES[kind]}", fits, "1"])
    if found := results.get("tiny_to_ninety"):
        for name in ("reptile", "joint"):
            entry = found[name]
            rows.append([f"time to 90% of its final balanced accuracy ({100 * entry['final']:.1f}%), {name}, tiny",
                         f"{entry['seconds']:.0f} s of {entry['all_seconds']:.0f} s", "stated"])  # fmt: skip
    if found := results.get("import"):
        rows.append(["`import metalib` after `import torch`, s", around(found["import metalib"], 3), "< 0.3"])
        rows.append(["`from metalib import adapt` after `import torch`, s", around(found["from metalib import adapt"], 1), ""])
    return rows


def draw_lines(results: dict[str, Any], path: Path) -> None:
    """Seconds of an inner loop against tasks, shots, inner steps and text length, relative to the first point."""
    axes = {"tasks": "tasks", "shots": "shots a class (one pass more or less over them)", "steps": "inner steps",
            "tokens": "tokens of each review"}  # fmt: skip
    kinds = [kind for kind in NAMES if f"{kind}_lines" in results]
    figure, places = plt.subplots(len(kinds), 4, figsize=(13, 3 * len(kinds)), squeeze=False, layout="constrained")
    for row, kind in zip(places, kinds, strict=True):
        for place, (axis, label) in zip(row, axes.items(), strict=True):
            points = results[f"{kind}_lines"][axis]["points"]
            x, y = [p["x"] for p in points], [p["seconds"]["median"] for p in points]
            low, high = ([p["seconds"][end] for p in points] for end in ("min", "max"))
            place.plot(x, y, "o-", color="#0072B2")
            place.fill_between(x, low, high, alpha=0.2, color="#0072B2")
            place.set(xlabel=label, ylabel="seconds", xlim=(0, None), ylim=(0, None), title=NAMES[kind])
    figure.suptitle("What an inner loop costs grows in straight lines: medians, with least and most")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_tables(results: dict[str, Any], folder: Path) -> None:
    """Write `RESULTS.md` and `lines.png` beside the figures."""
    where = results.get("machine", {})
    text = ["# What metalib costs", "",
            "Made by `make bench`; all figures stand in [results.json](results.json). Medians, with least and most of the "
            "repetitions. The *plain way* ([plain.py](plain.py)) is Reptile as most people write it: for every task filter, "
            "shuffle and tokenise, pad, `deepcopy`, a new optimiser, a `DataLoader`, the query set scored after every "
            "inner epoch, differences summed parameter by parameter.", "",
            f"Machine: {where.get('cpu')}, {where.get('cores')} cores, {where.get('threads')} threads for MiniLM-L6 and one "
            f"for the tiny model; Python {where.get('python')}, torch {where.get('torch')}, transformers "
            f"{where.get('transformers')}.", "",
            "## Seconds a task, with the same θ coming out", "",
            "Same reviews, same minibatches, SGD, no dropout; *difference* is that of the two directions, relative to "
            "their length, at most.", "",
            table(["", "plain way, s", "metalib, s", "ratio", "goal", "difference"], ratio_rows(results)),
            "## The rest", "", table(["", "measured", "goal"], figure_rows(results)),
            "![Seconds against tasks, shots, inner steps and text length](lines.png)", "",
            "## On a GPU", "",
            "Not measured yet: no GPU was at hand. `make bench-gpu MODEL=path/to/checkpoint` writes this table.", ""]  # fmt: skip
    if gpu := results.get("gpu"):
        rows = [[entry["model"], entry["at_a_time"], around(entry["tasks_per_second"], 1), around(entry["share"], 0, scale=100),
                 around(entry["ratio"], 1, "×")] for entry in gpu["rows"]]  # fmt: skip
        head = ["model", "tasks at a time", "tasks a second", "% of the bf16 matrix rate", "against the plain way"]
        text[-2:] = [f"{gpu['name']}.", "", table(head, rows)]
    write_atomically(folder / "RESULTS.md", "\n".join(text).encode())
    if any(f"{kind}_lines" in results for kind in NAMES):
        draw_lines(results, folder / "lines.png")
