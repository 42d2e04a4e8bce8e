"""`RESULTS.md` and the figure of the benchmark, from its `results.json`."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from metalib.checkpoint import write_atomically
from metalib.report import table

NAMES = {"tiny": "tiny", "minilm": "MiniLM-L6"}
SAME_THETA = {
    "minilm_512": ("MiniLM-L6, 10 + 10 support, 5 steps of 10; plain way padded to 512", "≥ 6"),
    "minilm_original": ("MiniLM-L6, 100 support, 5 epochs in batches of 5, 30 query; plain way padded to 512", "≥ 6"),
    "minilm_longest": ("MiniLM-L6, 10 + 10 support, 5 steps of 10; plain way padded to the longest of its batch",
                       "≥ 1.5"),
    "tiny_padded": ("tiny, 10 + 10 support, 5 steps of 10; plain way padded to 128", ""),
    "tiny_longest": ("tiny, 10 + 10 support, 5 steps of 10; plain way padded to the longest of its batch", "≥ 3"),
    "tiny_processes": ("the same with both cores: metalib in one process a core, the plain way in one process", "≥ 3"),
}
PAGE = """# What metalib costs

Made by `make bench`; all figures stand in [results.json](results.json). Medians, with least and most of the
repetitions; *goal* is what was set before anything was measured. The *plain way*
([plain.py](plain.py)) is Reptile as most people write it: for every task filter, shuffle and tokenise, pad,
`deepcopy`, a new optimiser, a `DataLoader`, the query set scored after every inner epoch, differences summed parameter
by parameter. That scoring, which metalib does not do while it trains, is 60 of the plain way's 210 passes of a review
in a task of 5 steps of 10 and 20 queries (a backward pass counted as two).

Machine: {cpu}, {cores} cores; {threads} threads for MiniLM-L6, one for the tiny model; Python {python}, torch {torch},
transformers {transformers}. {commits}

## Seconds a task, with the same θ coming out

Same reviews, same minibatches, SGD, no dropout. metalib has tokenised all reviews once beforehand, which is not in its
seconds here; the plain way tokenises those of each task. Seconds: median task, least and most. *Ratio*: the seconds of
all tasks together, least and most of a task. *Difference*: that of both directions, relative to their length, at most;
more than 1e-4 stops the measurement.

{same}
## The rest

{rest}
The share of the matrix rate hangs on the machine: the faster its products are beside its memory, the more all else
weighs, and what is not forward or backward with it. The score that the plain way has after its tasks differs from run
to run: rounding grows while it trains.

![Seconds against tasks, shots, inner steps and text length](lines.png)

{elsewhere}## On a GPU

{gpu}
"""
ELSEWHERE = """## On another machine

{cpu}, {cores} cores; all else as above ([all figures]({file})). {commits}

{same}
{rest}
"""
GPU = """{name}, torch {torch}, bfloat16 (`make bench-gpu`). Real reviews cut at {longest} tokens, 10 + 10 support, 5
steps of {batch} reviews where nothing else is said; random weights of each model's size. *metalib* is the library as
it is, with its recorded passes; *in step* are n tasks in one lot of calls ([stack.py](stack.py): a BERT by hand, SGD,
no dropout, compiled between its products, with an [attention of its own](attention.py)), which the library does not
have. In float32, computed without these kernels, both give the same direction (to {difference} of its length; more
than 1e-3 would stop the measurement); bfloat16 moves it by up to {low}% (the first two tasks).
*Tasks a second*: all lots of tasks together, least and most of a lot (20 tasks one by one or in fours, 80 in
sixteens), each lot's median of three, once its shapes have been met and recorded. *Tokens*: of a task's step. *Matrix
rate*: bfloat16 products of a layer, forward and backward, for as many tasks of so many tokens; query, key and value
are one product. *Plain way*: padded to {longest} tokens, on the same GPU, the first 20 tasks, each once; at 20
reviews a step every step is an epoch, after which it scores the queries. *Ratio*: of both means, least and most over
the spread of both (goal ≥ 5).{missing}

{table}
The goal for BERT-base is 40% of the matrix rate; the most is {most} in step. Fewer tasks in step, and
the library with one, stay below. Ten short reviews are little work for weights that every task has to
itself: these are read, stepped and written at every step, as many bytes for ten reviews as for a
thousand. Beside the products stand attention, what is done between them, and the steps of SGD."""


def around(spread: dict[str, Any], digits: int = 1, unit: str = "", scale: float = 1) -> str:
    """ "6.1× (5.9 to 6.4)": median, least and most."""
    median, low, high = (f"{spread[key] * scale:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median}{unit} ({low} to {high})"


def same_theta_table(results: dict[str, Any]) -> str:
    """Seconds a task against the plain way, with the same θ."""
    rows = []
    for name, (what, goal) in SAME_THETA.items():
        if found := results.get(name):
            ratio = together(found["ratio"])
            rows.append([what, str(found["plain_seconds"]["repetitions"]),
                         around(found["plain_seconds"], 2), around(found["metalib_seconds"], 3), around(ratio, 1, "×"),
                         goal, met(goal, ratio["median"]), f"{found['difference']:.0e}"])  # fmt: skip
    return table(["", "tasks", "plain way, s", "metalib, s", "ratio", "goal", "met", "difference"], rows)


def together(ratio: dict[str, Any]) -> dict[str, Any]:
    """A ratio of all tasks together in the place of the median task's, where it was measured."""
    return {**ratio, "median": ratio.get("all", ratio["median"])}


def met(goal: str, value: float) -> str:
    """Whether a value reaches a goal like "≥ 6" or "≤ 5, flat"; "" where there is none."""
    if goal[:1] not in "≥≤<" or not goal:
        return ""
    bound = float(goal[2:].split()[0].strip(",×").replace(",", ""))
    return "yes" if (value >= bound if goal[0] == "≥" else value <= bound) else "no"


def share_rows(results: dict[str, Any], kind: str, rest: str, rate: str) -> list[list[str]]:
    """How far an inner loop is from the limit of the hardware; `rest` and `rate` are the goals."""
    if not (found := results.get(f"{kind}_shares")):
        return []
    name = NAMES[kind]
    share, limit = found["rest"], found["share_of_product_rate"]
    return [
        [f"{name}: not forward or backward, % of an inner loop", around(share, scale=100), rest,
         met(rest, 100 * share["median"])],
        [f"{name}: GFLOP/s, padding not counted as work", around(found["gflops"]), "", ""],
        [f"{name}: GFLOP/s of its matrix products alone", around(found["product_gflops"]), "", ""],
        [f"{name}: the one in % of the other", around(limit, 0, scale=100), rate, met(rate, 100 * limit["median"])],
    ]  # fmt: skip


def other_rows(results: dict[str, Any]) -> list[list[str]]:
    """What is neither a ratio of seconds nor a share."""
    rows: list[list[str]] = []

    def add(what: str, measured: str, goal: str = "", value: float | None = None) -> None:
        rows.append([what, measured, goal, met(goal, value) if value is not None else ""])

    if {"tiny_longest", "tiny_shares"} <= results.keys():
        bound = together(results["tiny_longest"]["ratio"])["median"] / (1 - results["tiny_shares"]["rest"]["median"])
        add("tiny: the ratio to the plain way padded to the longest of its batch, if all but forward and backward were "
            "free", f"{bound:.1f}×")  # fmt: skip
    if found := results.get("tiny_in_step"):
        add(f"tiny, one core: seconds of {found['at_a_time']} tasks one by one, to those of the same in step",
            around(together(found["ratio"]), 2, "×"))  # fmt: skip
    for tokens in (512, 64):
        for part, ratio in results.get(f"minilm_what_pays_{tokens}", {}).get("without", {}).items():
            add(f"MiniLM-L6, Adam, at most {tokens} tokens: seconds with {part}, to those without",
                around(together(ratio), 2, "×"))  # fmt: skip
    if found := results.get("minilm_to_plain_score"):
        plain = found["plain"]
        ratio = f"{found['ratio']:.0f}× ({found['seconds']:.0f} s)" if found["seconds"] else "not reached"
        goal = (f"{100 * plain['score']:.1f}% after {plain['tasks']} tasks; {plain['seconds']:.0f} s, from every tenth "
                f"task's")  # fmt: skip
        add(f"MiniLM-L6: time to the plain way's score on held-out domains ({goal}), by any method (64 tokens, three "
            f"frozen layers, 20 shots{', tokenising included' * ('setup' in found)})", ratio, "≥ 20×",
            found["ratio"] or 0)  # fmt: skip
    if found := results.get("minilm_memory"):
        sizes = {tasks: entry["in_parameters"] for tasks, entry in found.items() if tasks.isdigit()}
        add("MiniLM-L6: peak memory beside model and one minibatch, in parameters (tasks)",
            ", ".join(f"{size:.1f} ({tasks})" for tasks, size in sizes.items()), "≤ 5, flat",
            max(sizes.values()))  # fmt: skip
    if found := results.get("sampling"):
        held, rate = found["bytes_held_after"], found["tasks_per_second"]
        add("tasks drawn and batched a second", around(rate, 0), "≥ 2,000", rate["median"])
        add("bytes held after 100 and 1,000 tasks drawn", " and ".join(f"{size:,}" for size in held.values()), "equal")
    for kind, name in NAMES.items():
        if found := results.get(f"{kind}_lines"):
            fits = ", ".join(f"{axis} {found[axis]['r2']:.3f}" for axis in ("tasks", "shots", "steps", "tokens"))
            add(f"{name}: R² of a straight line, seconds against each (inner steps in proportion to shots)", fits, "1")
    for learner, entry in ((key, results["tiny_to_ninety"][key]) for key in ("reptile", "joint")
                           if "tiny_to_ninety" in results):  # fmt: skip
        add(f"tiny: time to 90% of its final balanced accuracy ({100 * entry['final']:.1f}%), {learner}",
            f"{entry['seconds']:.0f} s of {entry['all_seconds']:.0f} s", "stated")  # fmt: skip
    if found := results.get("import"):
        for what, goal in (("import metalib", "< 0.3"), ("from metalib import adapt", "")):
            add(f"{what}, after import torch, s", around(found[what], 3), goal, found[what]["median"])
    return rows


def gpu_text(results: dict[str, Any]) -> str:
    """The table of `benchmarks/gpu.py`, where it was run."""
    if not (gpu := results.get("gpu")):
        return "Not measured yet: no GPU was at hand. `make bench-gpu` writes this table."
    first, ways = gpu["rows"][0], {"library": "metalib", "stack": "in step"}
    found = {(row["model"], row["batch"], ways[row["way"]], row["at_a_time"]): row for row in gpu["rows"]}
    rows = []
    for (model, batch, way, count), row in found.items():
        speed, share = ({**row[key], "median": row["all"][key]} for key in ("tasks_per_second", "share"))
        plain = {**row["plain_seconds"], "median": row["plain_seconds"]["mean"]}
        ratio = {key: speed[key] * plain[key] for key in ("median", "min", "max")}
        rows.append([model + f", {batch} reviews a step" * (batch != first["batch"]), f"{way}, {count}", around(speed),
                     f"{row['tokens']:.0f}", around(share, 0, scale=100), f"{row['matrix_tflops']:.0f}",
                     around(plain, 2), around(ratio, 1, "×") + ", missed" * bool(ratio["median"] < 5)])  # fmt: skip
    head = ["model", "tasks at a time", "tasks a second", "tokens", "% of the matrix rate", "that rate, TFLOP/s",
            "plain way, s a task", "ratio"]  # fmt: skip
    models, batches = ({row[key]: None for row in gpu["rows"]} for key in ("model", "batch"))
    missing = [f"{model} with {count} tasks in step, {batch} reviews a step" for batch in batches for model in models
               for count in ((1, 4, 16) if batch == first["batch"] else (16,))
               if (model, batch, "in step", count) not in found]  # fmt: skip
    best = [max((row for row in gpu["rows"] if (row["model"], row["batch"]) == (first["model"], batch)),
                key=lambda row: row["all"]["share"]) for batch in batches]  # fmt: skip
    return GPU.format(
        name=gpu["name"], torch=gpu["torch"], batch=first["batch"], longest=first["max_length"],
        table=table(head, rows), difference=f"{max(row['difference'] for row in gpu['rows']):.0e}",
        low=f"{100 * max(row.get('low_difference', 0) for row in gpu['rows']):.0f}",
        missing=f"\nNot measured in the time there was: {', '.join(missing)}." if missing else "",
        most=" and ".join(f"{100 * row['all']['share']:.0f}% ({row['at_a_time']} tasks of {row['batch']} reviews)"
                          for row in best),
    )  # fmt: skip


def draw_lines(results: dict[str, Any], path: Path) -> None:
    """Seconds of inner loops against tasks, shots, inner steps and text length."""
    axes = {"tasks": "tasks", "shots": "shots per class, inner steps in proportion",
            "steps": "inner steps of 10 reviews", "tokens": "tokens of each review"}  # fmt: skip
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
    figure.suptitle("What inner loops cost against tasks, shots, steps and length: medians, with least and most")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def commits(results: dict[str, Any]) -> str:
    """At which commits the figures were measured."""
    found = {entry.get("commit", "") for name, entry in results.items() if name not in ("machine", "gpu")}
    if len(found) == 1 and "" not in found:
        return f"Measured at commit {found.pop()}."
    return "Measured at several commits, not in one go." if len(found) > 1 else "At which commit was not noted."


def rest_table(results: dict[str, Any]) -> str:
    """All that is measured besides the seconds of the same θ."""
    rows = [*share_rows(results, "minilm", "≤ 5", "≥ 75"), *share_rows(results, "tiny", "≤ 25", ""),
            *other_rows(results)]  # fmt: skip
    return table(["", "measured", "goal", "met"], rows)


def page(results: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """The whole of `RESULTS.md`; others: name of a file → what another machine measured."""
    elsewhere = "".join(ELSEWHERE.format(file=name, same=same_theta_table(found), rest=rest_table(found),
                                         commits=commits(found), **found["machine"])
                        for name, found in others.items())  # fmt: skip
    unknown = dict.fromkeys(("cpu", "cores", "threads", "python", "torch", "transformers"), "?")
    return PAGE.format(same=same_theta_table(results), rest=rest_table(results), elsewhere=elsewhere,
                       commits=commits(results), gpu=gpu_text(results),
                       **{**unknown, **results.get("machine", {})})  # fmt: skip


def other_machines(folder: Path) -> dict[str, dict[str, Any]]:
    """What other machines measured: `results-NAME.json`."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("results-*.json"))}


def write_tables(results: dict[str, Any], folder: Path) -> None:
    """Write `RESULTS.md` and `lines.png` beside the figures; where they are the project's, the README's table too."""
    write_atomically(folder / "RESULTS.md", page(results, other_machines(folder)).encode())
    if folder.resolve() == Path(__file__).resolve().parent:
        readme = folder.parent / "README.md"
        before, mark, rest = readme.read_text(encoding="utf-8").partition("<!-- benchmarks/results.json -->\n")
        _, end, after = rest.partition("<!-- end -->")
        write_atomically(readme, "".join([before, mark, same_theta_table(results), end, after]).encode())
    if any(f"{kind}_lines" in results for kind in NAMES):
        draw_lines(results, folder / "lines.png")
