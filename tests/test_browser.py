"""The notebooks as a newcomer meets them: JupyterLab in a browser, Run All Cells, a widget moved.

Chromium is driven through menus and keyboard. Nothing may stop the reader (a dialog), nothing may be red (an error, a
line on stderr, the browser's console), and every slider, dropdown and text field must change the figure below it. All
of it happens in a copy. At the end stand small notebooks that were made up to break each rule.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest
from jupyter_server.serverapp import list_running_servers
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Locator, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
MINUTE = 60_000  # milliseconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the notebooks (apt install chromium)"),
]

# What the page is asked. The state of kernel and cells comes from JupyterLab's own objects (--expose-app-in-browser),
# since a cell out of sight need not be in the page.
QUESTIONS = """
window.panel = () => window.jupyterapp?.shell.currentWidget;
window.hasDialog = () => document.querySelector('.jp-Dialog') !== null;
window.isIdle = () => panel()?.sessionContext?.session?.kernel?.status === 'idle';
window.codeCells = () => [...panel().content.model.cells].filter(cell => cell.type === 'code');
window.outputs = () => codeCells().flatMap(cell => cell.outputs.toJSON());
window.isDone = () => isIdle() && (codeCells().every(cell => cell.executionCount)
                                   || outputs().some(output => output.output_type === 'error'));
"""
WIDGET = "application/vnd.jupyter.widget-view+json"
CONTROL = ".noUi-handle, .widget-dropdown select, .widget-text input"
RED = "[data-mime-type='application/vnd.jupyter.stderr']"  # tracebacks are shown as this, too


@contextmanager
def jupyter_lab(folder: Path, own: Path) -> Iterator[str]:
    """The server of `make lab` in a folder that holds `notebooks/`: gives an address to put a notebook's name into.

    Settings, workspaces and the log go to the folder `own`; the user's own are neither read nor changed. It listens on
    localhost, on a port and with a token that it chooses itself, and ends its kernels when it is ended.
    """
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # else no figure reaches the page
    env |= {f"JUPYTER_{kind}_DIR": str(own / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    env |= {"IPYTHONDIR": str(own / "ipython"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "notebooks", "--no-browser", "--expose-app-in-browser"]
    command += ["--allow-root"] if IS_ROOT else []
    own.mkdir()
    with open(own / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (running := list(list_running_servers(str(own / "runtime")))):
            assert server.poll() is None and time.monotonic() < deadline, (own / "server.log").read_text()
            time.sleep(0.2)
        yield f"{running[0]['url']}lab/tree/{{}}?token={running[0]['token']}"
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):  # now and then it hangs, stopped so soon after a page was opened
            server.wait(20)
        server.kill()
        server.wait()


def choose(page: Page, menu: str, item: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=item, exact=True).click()


def move(control: Locator) -> None:
    """Move a slider by one step, back from its end; choose a dropdown's next entry, after its last the first; type."""
    if control.get_attribute("role") == "slider":
        at_end = control.get_attribute("aria-valuenow") == control.get_attribute("aria-valuemax")
        control.press("ArrowLeft" if at_end else "ArrowRight")
    elif control.evaluate("control => control.tagName") == "INPUT":
        control.fill("The handle is dull.")
        control.press("Enter")
    else:
        control.select_option(index=control.evaluate("list => (list.selectedIndex + 1) % list.length"))


def moved(page: Page, cell: Locator, number: int, patience: float) -> list[str]:
    """Move a control of a cell and list what went wrong: a figure in the output must be another one after a while."""

    def figures(other_than: list[str]) -> list[str]:
        deadline = time.monotonic() + patience
        while True:
            now = cell.locator("img").evaluate_all("images => images.map(image => image.src)")
            if now not in ([], other_than) or cell.locator(RED).count() or time.monotonic() > deadline:
                return now
            page.wait_for_timeout(200)

    before = figures(other_than=[])
    move(cell.locator(CONTROL).nth(number))
    after = figures(other_than=before)
    if red := cell.locator(RED).all_inner_texts():
        return [f"in the output of a widget: {text}" for text in red]
    return [f"control {number + 1} does not change the figure below it"] if after in ([], before) else []


def dialogs(page: Page, when: str) -> list[str]:
    return [f"a dialog {when}: {text}" for text in page.locator(".jp-Dialog-content").all_inner_texts()]


def use(page: Page, address: str, patience: float = 60) -> list[str]:
    """Open a notebook, run all its cells, move its widgets, and list what went wrong on the way.

    A figure may take `patience` seconds to follow its widget, all cells together five minutes.
    """
    wrong: list[str] = []
    # Nothing is let through: JupyterLab itself writes no error to the console.
    page.on("console", lambda line: wrong.append(f"on the console: {line.text}") if line.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"on the console: {error}"))
    page.set_default_timeout(MINUTE)
    page.add_init_script(QUESTIONS)
    page.goto(address)
    page.wait_for_function("hasDialog() || isIdle()", polling=500)
    if at_start := dialogs(page, "at the start"):
        return wrong + at_start

    choose(page, "Edit", "Clear Outputs of All Cells")  # those that are stored
    choose(page, "Run", "Run All Cells")
    page.wait_for_function("hasDialog() || isDone()", polling=500, timeout=5 * MINUTE)
    outputs = page.evaluate("outputs()")
    wrong += [f"an error: {output['evalue']}" for output in outputs if output["output_type"] == "error"]
    wrong += [f"on stderr: {output['text']}" for output in outputs if output.get("name") == "stderr"]
    wrong += dialogs(page, "after running")
    if wrong:
        return wrong

    shown = [output["data"] for output in outputs if WIDGET in output.get("data", {})]
    views = sum(data["text/plain"].startswith("interactive") for data in shown)  # a bar that is full may be gone
    page.wait_for_function(f"document.querySelectorAll('.jp-OutputArea-output > .jupyter-widgets').length >= {views}")
    page.wait_for_timeout(1000)  # a widget is there a moment before its sliders are
    cells = page.locator(".jp-CodeCell", has=page.locator(CONTROL)).all()
    for cell in cells:
        for number in range(cell.locator(CONTROL).count()):
            wrong += moved(page, cell, number, patience)
    return wrong + dialogs(page, "at the end") + ([] if cells else ["no control"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=not IS_ROOT)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield context.new_page()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the notebooks need of this checkout. What one of them leaves under `runs/` the next will find."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("notebooks", "configs", "results", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook(path, copy, page, tmp_path):
    with jupyter_lab(copy, tmp_path / "jupyter") as address:
        assert use(page, address.format(path.name)) == []


# --- the test itself: a small notebook that passes, and one that breaks each rule --------------------------------

DRAW = """
import matplotlib.pyplot as plt
from IPython.display import Javascript
from ipywidgets import IntSlider, interact

def draw(x):
    plt.plot([0, x])
    plt.show()
"""
SLIDER = "interact(draw, x=(1, 9));"


def made_up(*sources: str) -> NotebookNode:
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    return new_notebook(metadata={"kernelspec": kernel}, cells=[new_code_cell(source) for source in (DRAW, *sources)])


FAULTS = [
    ("a dialog at the start", new_notebook(cells=made_up(SLIDER).cells)),  # no kernelspec
    ("an error: division by zero", made_up(SLIDER, "1 / 0", "2")),
    ("on stderr", made_up(SLIDER, "import warnings; warnings.warn('look')")),
    ("on the console: red", made_up(SLIDER, "Javascript('console.error(\"red\")')")),
    ("on the console: thrown", made_up(SLIDER, "Javascript('setTimeout(() => {throw new Error(\"thrown\")})')")),
    ("no control", made_up("draw(1)")),
    ("control 2 does not change", made_up("interact(lambda x, y: draw(x), x=(1, 9), y=(1, 9));")),
    ("control 1 does not change", made_up("interact(lambda x: print(x), x=(1, 9));")),
    ("in the output of a widget", made_up("interact(lambda x: draw(5 / (x - 6)), x=(1, 9));")),
]


def use_made_up(notebook: NotebookNode, page: Page, folder: Path, patience: float) -> list[str]:
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks" / "made_up.ipynb")
    with jupyter_lab(folder, folder / "jupyter") as address:
        return use(page, address.format("made_up.ipynb"), patience)


@pytest.mark.parametrize("control", [SLIDER, "interact(draw, x=IntSlider(9, 1, 9));", "interact(draw, x=[1, 2]);"])
def test_the_made_up_notebook_passes(control, page, tmp_path):
    assert use_made_up(made_up(control), page, tmp_path, patience=60) == []


@pytest.mark.parametrize("what, notebook", FAULTS, ids=[f"{n}-{what}" for n, (what, _) in enumerate(FAULTS)])
def test_a_fault_is_found(what, notebook, page, tmp_path):
    wrong = use_made_up(notebook, page, tmp_path, patience=5)
    assert len(wrong) == 1 and wrong[0].startswith(what), wrong
