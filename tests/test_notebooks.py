"""The notebooks as they are stored: complete, executed, honest. Nothing is executed here; nbval does that.

Each check is a function from a notebook to the list of what is wrong with it. Below the checks stand notebooks that
were made up to break them.

nbval compares outputs exactly, but never images, and it passes what is empty. Hence two rules: an output that no two
runs share (a figure, a widget, a trained number) is tagged `nbval-ignore-output`, and what matters in it is asserted by
a claim.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
LARGEST = 1_000_000  # bytes

# A slash, a folder that holds one machine's files, a slash; but not inside a longer path or an address.
MACHINE_PATH = re.compile(r"(?<![\w./~:-])/(?:home|root|Users|work|tmp|private|var)/|[A-Z]:\\\\")
WIDGET = "application/vnd.jupyter.widget-view+json"


def cells(notebook: NotebookNode, kind: str, tag: str = "") -> list[NotebookNode]:
    """The cells of one kind, or those of them that carry a tag."""
    found = [cell for cell in notebook.cells if cell.cell_type == kind]
    return [cell for cell in found if not tag or tag in cell.metadata.get("tags", [])]


def ignored(cell: NotebookNode) -> bool:
    """Whether nbval leaves the outputs of a code cell alone."""
    marked = re.search(r"^\s*# NBVAL_(IGNORE_OUTPUT|SKIP)\s*$", cell.source, re.MULTILINE)
    return bool(marked) or bool({"nbval-ignore-output", "nbval-skip"} & set(cell.metadata.get("tags", [])))


def calls(cell: NotebookNode, name: str) -> Iterator[ast.Call]:
    """Calls of a function by its bare name in a code cell."""
    source = re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.MULTILINE)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def has_figure(cell: NotebookNode) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


# --- outputs -----------------------------------------------------------------------------------------------------


def executed_in_order(notebook: NotebookNode) -> list[str]:
    counts = [cell.execution_count for cell in cells(notebook, "code")]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts {counts}: run it from the top"]


def no_error_or_warning(notebook: NotebookNode) -> list[str]:
    outputs = [output for cell in cells(notebook, "code") for output in cell.outputs]
    errors = [f"error output: {output.ename}" for output in outputs if output.output_type == "error"]
    return errors + [f"on stderr: {output.text[:80]!r}" for output in outputs if output.get("name") == "stderr"]


def no_machine_path(notebook: NotebookNode) -> list[str]:
    places = [cell.source for cell in notebook.cells]
    for cell in cells(notebook, "code"):
        for output in cell.outputs:
            texts = {kind: text for kind, text in output.get("data", {}).items() if kind != "image/png"}
            places.append(output.get("text", "") + json.dumps(texts))
    return [f"path of one machine: …{place[m.start() : m.start() + 60]!r}" for place in places
            for m in [MACHINE_PATH.search(place)] if m]  # fmt: skip


def outputs_are_compared(notebook: NotebookNode) -> list[str]:
    """An output that says something: not an image, and not the mere name of an object."""
    wrong = []
    for cell in cells(notebook, "code"):
        for output in [] if ignored(cell) else cell.outputs:
            data = output.get("data", {"text/plain": output.get("text", "")})
            texts = [text for kind, text in data.items() if kind.startswith("text/")]
            if WIDGET in data or all(re.fullmatch(r"\s*(<.*>)?\s*", text) for text in texts):
                wrong.append(f"nbval cannot compare the output of {cell.source[:60]!r}: tag it nbval-ignore-output")
            elif any(re.search(r"\bat 0x[0-9a-f]{6,}", text) for text in texts):
                wrong.append(f"an address in memory in the output of {cell.source[:60]!r}")
    return wrong


def kernel_is_named(notebook: NotebookNode) -> list[str]:
    name = notebook.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"kernelspec {name!r}: JupyterLab would ask for one; use python3"]


def no_stored_widget(notebook: NotebookNode) -> list[str]:
    stored = any(WIDGET in output.get("data", {}) for cell in cells(notebook, "code") for output in cell.outputs)
    return ["a stored widget view shows as an error without a kernel: run notebooks/execute.py"] if stored else []


# --- what every notebook holds -----------------------------------------------------------------------------------

OPENING = ("You will be able to", "Know first", "Minutes", "Hardware", "Downloads")


def opening_is_complete(notebook: NotebookNode) -> list[str]:
    boxes = cells(notebook, "markdown", "opening")
    if len(boxes) != 1 or boxes[0] not in notebook.cells[:3]:
        return ["one of the first three cells must be tagged 'opening'"]
    rows = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \|$", boxes[0].source, re.MULTILINE))
    wrong = [f"the opening box lacks {name!r}" for name in OPENING if name not in rows]
    if not re.match(r"\d+", rows.get("Minutes", "0")):
        wrong.append("the opening box must give a number of minutes")
    return wrong + (["downloads must be none"] if rows.get("Downloads", "none") != "none" else [])


def figures_and_widget(notebook: NotebookNode) -> list[str]:
    code = cells(notebook, "code")
    wrong = [] if sum(map(has_figure, code)) >= 2 else ["fewer than two figures"]
    moved = {ast.unparse(call.args[0]) for cell in code for call in calls(cell, "interact")}
    still = {name for name in moved for cell in code if has_figure(cell) and any(calls(cell, name))}
    return wrong + ([] if still else ["no interact(f, …) with a cell beside it that calls f and stores the figure"])


def source_is_shown(notebook: NotebookNode) -> list[str]:
    shown = [call for cell in cells(notebook, "code") for call in calls(cell, "show_source")]
    return [] if shown else ["no show_source(…): the library's own code is not shown"]


def exercises_are_complete(notebook: NotebookNode) -> list[str]:
    tasks = cells(notebook, "markdown", "exercise")
    wrong = [] if len(tasks) >= 2 else [f"{len(tasks)} cells tagged 'exercise'; two at least are wanted"]
    roles = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", []) if tag.startswith("exercise")]
    if roles != ["exercise", "exercise-stub", "exercise-check", "exercise-solution"] * len(tasks):
        wrong.append(f"an exercise is exercise, -stub, -check, -solution, in this order; found {roles}")
    for task in tasks:
        title = task.source.splitlines()[0]
        if not re.search(r"^\*\d+ minutes · difficulty [●○]{3}\*$", task.source, re.MULTILINE):
            wrong.append(f"{title}: no line '*10 minutes · difficulty ●○○*'")
        if not re.search(r"<details><summary>Hint", task.source):
            wrong.append(f"{title}: no folded hint")
    for solution in cells(notebook, "markdown", "exercise-solution"):
        if not re.search(
            r"<details><summary>Solution</summary>\n\n```python\n.+?```\n\n</details>", solution.source, re.S
        ):
            wrong.append("a solution is not folded into <details>, or holds no python")
    for cell in cells(notebook, "code", "exercise-check"):
        if not any(calls(cell, "attempt")):
            wrong.append("a check cell without attempt(exercises.check_…, …)")
    return wrong


def questions_and_next(notebook: NotebookNode) -> list[str]:
    questions = "\n".join(cell.source for cell in cells(notebook, "markdown", "questions")).split("<details>")[0]
    count = len(re.findall(r"^\d\. ", questions, re.MULTILINE))
    wrong = [] if count == 5 else [f"{count} questions in the cell tagged 'questions'; five are wanted"]
    reading = "\n".join(cell.source for cell in cells(notebook, "markdown", "next"))
    return wrong if "glossary.md" in reading else [*wrong, "no cell tagged 'next' with a link to the glossary"]


def glossary_links_lead_somewhere(notebook: NotebookNode) -> list[str]:
    terms = re.findall(r"^### (.+)$", (FOLDER / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {term.replace(" ", "-") for term in terms}
    used = [used for cell in cells(notebook, "markdown") for used in re.findall(r"glossary\.md#([^)]+)\)", cell.source)]
    wrong = [f"glossary.md has no entry {anchor!r}" for anchor in used if anchor not in anchors]
    return wrong if used else ["no link to a term of the glossary"]


# --- claims ------------------------------------------------------------------------------------------------------

WORDS = {"three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
         "twelve": 12, "hundred": 100, "thousand": 1000, "million": 1_000_000}  # fmt: skip
NUMBER = re.compile(r"(?<![\w.,])[-−]?(\d[\d,]*(?:\.\d+)?)(?![\w])")
# One and two are no counts in most sentences; the others state something.
NUMBER_WORD = re.compile(rf"\b({'|'.join(WORDS)}|percent|dozen)\b", re.IGNORECASE)
COMPARISON = re.compile(
    r"\b(better|worse|best(?! possible| reader)|worst|higher|highest|lower|lowest|larger|largest|smaller|smallest"
    r"|longer|longest|shorter|shortest|faster|fastest|slower|slowest|beats?|wins|outperforms?|exceeds?|twice|half"
    r"|(more|less|fewer) than)\b",
    re.IGNORECASE,
)
CLAIM = re.compile(r"<!-- claim: ([\w-]+) -->")
EXEMPT = re.compile(r"<!-- not a claim: \w.* -->")


def sentences(cell: NotebookNode) -> list[str]:
    """The sentences of a markdown cell, each with the comments behind it.

    Left out are headings, code, mathematics, links to other notebooks, references such as (2018), §2 or equation (1).
    """
    text = re.sub(
        r"```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]+`|^#+ [^\n]*$", " … ", cell.source, flags=re.DOTALL | re.MULTILINE
    )
    text = re.sub(r"\[[^\]]*\]\([^)]*\.ipynb[^)]*\)", " … ", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"§ ?[\d.]+|\((?:[^()]*\s)?(?:19|20)\d\d\)|\(\d\)", " ", text)
    # a paragraph or an item of a list ends a sentence, and so does a full stop; comments stay with what they follow
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d\.|\|) )", text)
    ends = re.compile(r"(?<=[.!?])[)*_]*\s+(?!\s|<!--)|(?<=-->)\s+(?!\s|<!--)")
    return [part for block in blocks for part in ends.split(re.sub(r"^\s*(?:[-*]|\d\.) ", "", block)) if part.strip()]


def states_something(sentence: str) -> bool:
    """Whether a sentence states a number or a winner. Questions do not."""
    bare = re.sub(r"<!--.*?-->", "", sentence).strip()
    return not bare.endswith("?") and bool(NUMBER.search(bare) or NUMBER_WORD.search(bare) or COMPARISON.search(bare))


def numbers_in(sentence: str) -> set[float]:
    """The numbers that a sentence states, in figures or as words from three on."""
    bare = re.sub(r"<!--.*?-->", "", sentence)
    figures = {float(number.replace(",", "")) for number in NUMBER.findall(bare)}
    return figures | {float(WORDS[w.lower()]) for w in NUMBER_WORD.findall(bare) if w.lower() in WORDS}


def claimed(notebook: NotebookNode) -> dict[str, tuple[int, ast.Call]]:
    """Name of a claim → the number of its cell and the call."""
    found = {}
    for place, cell in enumerate(notebook.cells):
        for call in calls(cell, "claim") if cell.cell_type == "code" else ():
            name = call.args[0].value if isinstance(call.args[0], ast.Constant) else "(not a plain text)"
            found[name if name not in found else f"{name} (twice)"] = (place, call)
    return found


def claims_are_asserted(notebook: NotebookNode) -> list[str]:
    """Each claim in the text has one assertion close by, which says the same numbers, and the other way round."""
    asserted, wrong = claimed(notebook), []
    stated: Counter[str] = Counter()
    for place, cell in enumerate(notebook.cells):
        for sentence in sentences(cell) if cell.cell_type == "markdown" else ():
            for name in CLAIM.findall(sentence):
                stated[name] += 1
                if name not in asserted:
                    wrong.append(f"claim {name!r} has no assertion")
                    continue
                where, call = asserted[name]
                if abs(where - place) > 2:
                    wrong.append(f"claim {name!r} is asserted {abs(where - place)} cells away; two at most")
                literals = {float(node.value) for node in ast.walk(call) if isinstance(node, ast.Constant)
                            and isinstance(node.value, int | float)}  # fmt: skip
                if missing := numbers_in(sentence) - literals:
                    wrong.append(f"claim {name!r} states {sorted(missing)}, which its assertion does not")
    wrong += [f"claim {name!r} stands {count} times in the text" for name, count in stated.items() if count > 1]
    wrong += [f"assertion {name!r} belongs to no sentence" for name in asserted if name not in stated]
    for name, (_, call) in asserted.items():
        if len(call.args) != 2 or not any(isinstance(node, ast.Name) for node in ast.walk(call.args[1])):
            wrong.append(f"assertion {name!r} depends on nothing that was computed")
    return wrong


ROLES = {"opening", "exercise", "exercise-solution", "questions", "next"}


def statements_are_claims(notebook: NotebookNode) -> list[str]:
    """A sentence with a number or a winner carries a claim, or says why it is none."""
    text = [cell for cell in cells(notebook, "markdown") if not ROLES & set(cell.metadata.get("tags", []))]
    return [
        f"a statement without a claim: {' '.join(sentence.split())!r}"
        for cell in text
        for sentence in sentences(cell)
        if states_something(sentence) and not CLAIM.search(sentence) and not EXEMPT.search(sentence)
    ]


CHECKS: list[Callable[[NotebookNode], list[str]]] = [
    executed_in_order, no_error_or_warning, no_machine_path, outputs_are_compared, kernel_is_named, no_stored_widget,
    opening_is_complete, figures_and_widget, source_is_shown, exercises_are_complete, questions_and_next,
    glossary_links_lead_somewhere, claims_are_asserted, statements_are_claims,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook(path, check):
    wrong = check(nbformat.read(path, as_version=4))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_is_small(path):
    assert path.stat().st_size < LARGEST


def test_there_are_notebooks_and_their_numbers_run_from_one():
    assert [int(path.name[:2]) for path in PATHS] == list(range(1, len(PATHS) + 1)) != []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_claims_carry_the_notebooks_number(path):
    for name in claimed(nbformat.read(path, as_version=4)):
        assert name.startswith(path.name[:3].replace("_", "-")), name


# --- the checks themselves: a small notebook that passes them all, and one that breaks each ----------------------

FIGURE = new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure size 1x1 with 1 Axes>"})
FOLDED = "<details><summary>Solution</summary>\n\n```python\nx = 1\n```\n\n</details>"


def text(source: str, *tags: str) -> NotebookNode:
    return new_markdown_cell(source, metadata={"tags": list(tags)})


def code(source: str, *tags: str, outputs: tuple = ()) -> NotebookNode:
    return new_code_cell(source, metadata={"tags": list(tags)}, outputs=list(outputs))


def exercise() -> list[NotebookNode]:
    hint = "<details><summary>Hint</summary>\n\nx\n\n</details>"
    return [
        text(f"## Exercise\n\n*5 minutes · difficulty ●○○*\n\n{hint}", "exercise"),
        code("def f():\n    raise NotImplementedError", "exercise-stub"),
        code("attempt(check, f)", "exercise-check"),
        text(FOLDED, "exercise-solution"),
    ]


def made_up(*extra: NotebookNode) -> NotebookNode:
    """A notebook without a fault, and then some more cells."""
    box = "\n".join(f"| **{name}** | {'none' if name == 'Downloads' else '10'} |" for name in OPENING)
    notebook = new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        cells=[
            text("# Title"),
            text(box, "opening"),
            code("show_source(x)"),
            text("A [task](glossary.md#task) has 3 parts. <!-- claim: 01-parts -->"),
            code('claim("01-parts", len(parts) == 3)'),
            code("draw(1)", "nbval-ignore-output", outputs=(FIGURE,)),
            code("draw(2)", "nbval-ignore-output", outputs=(FIGURE,)),
            code("interact(draw, x=2)", "nbval-ignore-output"),
            *exercise(),
            *exercise(),
            text("1. a\n2. b\n3. c\n4. d\n5. e\n\n<details>\n\n1. A\n\n</details>", "questions"),
            text("[glossary](glossary.md)", "next"),
            *extra,
        ],
    )
    for number, cell in enumerate(cells(notebook, "code"), start=1):
        cell.execution_count = number
    return notebook


def without(tag_or_start: str) -> NotebookNode:
    """The made-up notebook less the cells with a tag, or whose source starts so."""
    notebook = made_up()
    notebook.cells = [
        c for c in notebook.cells if tag_or_start not in c.metadata.tags and not c.source.startswith(tag_or_start)
    ]
    return notebook


def changed(old: str, new: str) -> NotebookNode:
    """The made-up notebook with a text replaced in its cells."""
    notebook = made_up()
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)
    return notebook


def other_kernel() -> NotebookNode:
    notebook = made_up()
    notebook.metadata.kernelspec.name = "conda-env-x"
    return notebook


def unordered() -> NotebookNode:
    notebook = made_up()
    cells(notebook, "code")[0].execution_count = 7
    return notebook


def stream(name: str, words: str) -> NotebookNode:
    return code("x", outputs=(new_output("stream", name=name, text=words),))


def result(**data: str) -> NotebookNode:
    kinds = {kind.replace("_", "/"): value for kind, value in data.items()}
    return code("x", outputs=(new_output("display_data", kinds),))


VIEW = new_output("display_data", {WIDGET: {"model_id": "1"}, "text/plain": "interactive(children=())"})
FAULTS = [
    (executed_in_order, unordered()),
    (no_error_or_warning, made_up(code("1 / 0", outputs=(new_output("error", ename="ZeroDivisionError", evalue=""),)))),
    (no_error_or_warning, made_up(stream("stderr", "UserWarning: …"))),
    (no_machine_path, made_up(stream("stdout", "read " + "/home" + "/ada/reviews.csv"))),
    (no_machine_path, made_up(text("Look into " + "/tmp" + "/x."))),
    (no_machine_path, made_up(result(text_html="<a href='" + "/Users" + "/ada/x'>"))),
    (outputs_are_compared, made_up(result(image_png="aGk=", text_plain="<Figure size 1x1 with 1 Axes>"))),
    (outputs_are_compared, made_up(result(image_png="aGk="))),
    (outputs_are_compared, made_up(result(text_plain="[<Line2D at 0x7f0000001234>]"))),
    (outputs_are_compared, made_up(code("interact(f)", outputs=(VIEW,)))),
    (kernel_is_named, other_kernel()),
    (no_stored_widget, made_up(code("interact(f)", "nbval-ignore-output", outputs=(VIEW,)))),
    (opening_is_complete, without("opening")),
    *((opening_is_complete, changed(f"| **{name}** |", "| **Other** |")) for name in OPENING),
    (opening_is_complete, changed("| **Minutes** | 10 |", "| **Minutes** | a few |")),
    (opening_is_complete, changed("| **Downloads** | none |", "| **Downloads** | 90 MB |")),
    (figures_and_widget, without("draw(1)")),
    (figures_and_widget, without("interact")),
    (figures_and_widget, changed("interact(draw,", "interact(other,")),
    (source_is_shown, without("show_source")),
    *((exercises_are_complete, without(f"exercise{role}")) for role in ("", "-stub", "-check", "-solution")),
    (exercises_are_complete, changed("*5 minutes · ", "*")),
    (exercises_are_complete, changed(" · difficulty ●○○", "")),
    (exercises_are_complete, changed("<details><summary>Hint", "Hint")),
    (exercises_are_complete, changed("<details><summary>Solution</summary>", "Solution")),
    (exercises_are_complete, changed("attempt(check, f)", "f()")),
    (questions_and_next, changed("5. e", "")),
    (questions_and_next, without("next")),
    (glossary_links_lead_somewhere, changed("#task", "#no-such-term")),
    (glossary_links_lead_somewhere, changed("(glossary.md#task)", "(x)")),
    (claims_are_asserted, changed('claim("01-parts"', 'claim("01-other"')),
    (claims_are_asserted, changed("<!-- claim: 01-parts -->", "")),
    (claims_are_asserted, changed("len(parts) == 3", "True")),
    (claims_are_asserted, changed("has 3 parts", "has 4 parts")),
    (claims_are_asserted, made_up(code('claim("01-parts", x)'))),
    (claims_are_asserted, made_up(text("Again 3 of them. <!-- claim: 01-parts -->"))),
    (claims_are_asserted, made_up(text("It is 3. <!-- claim: 01-far -->"), text("x"), text("x"),
                                  code('claim("01-far", x == 3)'))),
    (statements_are_claims, changed("<!-- claim: 01-parts -->", "")),
    *((statements_are_claims, made_up(text(sentence))) for sentence in (
        "Reptile reaches 84% here.",
        "There are 21,855 reviews.",
        "Loss falls to 0.3.",
        "First this. Then Reptile beats joint training. And so on.",
        "- Reptile is better",
        "The largest domain is apparel.",
        "Of seven words, all are known.",
        "It is right in more than\nhalf of the cases.",
        "## Heading\n\nIt falls to 2 points.",
        "It grew. <!-- claim: 01-parts --> It then fell to 2 points.",
    )),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_made_up_notebook_passes(check):
    assert check(made_up()) == []


@pytest.mark.parametrize(
    "check, notebook", FAULTS, ids=[f"{check.__name__}-{n}" for n, (check, _) in enumerate(FAULTS)]
)
def test_a_fault_is_found(check, notebook):
    assert check(notebook)


def test_every_check_has_a_fault():
    assert {check for check, _ in FAULTS} == set(CHECKS)


@pytest.mark.parametrize(
    "sentence",
    [
        "Is it better than 70%?",
        "See equation (1) in §5.2 of Nichol et al. (2018).",
        "Go on to [02 · Tasks](02_task_sampling.ipynb).",
        "Run `range(10)`; then look at $x_1 + 3$.",
        "$$ y = 3 x $$",
        "Two helpers turn up; one is `claim`.",
        "## 3 ways",
        "A shot is 1 review per class. <!-- not a claim: definition -->",
        "```python\nx = 3\n```",
    ],
)
def test_what_states_nothing_passes(sentence):
    assert statements_are_claims(made_up(text(sentence))) == []
