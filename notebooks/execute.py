"""Run notebooks from top to bottom and store their outputs: `python notebooks/execute.py notebooks/01_dataset.ipynb`.

The views of widgets are not stored: without a running kernel they would show as errors. Each widget has a figure
beside it that stands still, and that is what a static page shows.
"""

import os
import sys
import time
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

WIDGET = "application/vnd.jupyter.widget-view+json"


def smaller(png: str) -> str:
    """The same figure, base64 to base64, with at most 256 colours: a third of the bytes, and no difference to see."""
    small = BytesIO()
    image = Image.open(BytesIO(b64decode(png))).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return min(b64encode(small.getvalue()).decode(), png, key=len)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Take out what differs from run to run or from machine to machine, and make the figures small."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        if cell.cell_type == "code" and any(WIDGET in output.get("data", {}) for output in cell.outputs):
            cell.outputs = []
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "image/png" in data:
                data["image/png"] = smaller(data["image/png"])


def execute(path: Path) -> None:
    """Run one notebook in a fresh kernel, without a network, and write it back. Raises where a cell does."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["HF_HUB_OFFLINE"] = "1"
    resources = {"metadata": {"path": str(path.parent)}}
    options = {"timeout": 600, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    client = NotebookClient(notebook, resources=resources, **options)
    client.comm_open_handlers = {}  # with its own for widgets' outputs, it now and then waits for ever at a widget
    client.execute()
    tidy(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        start = time.perf_counter()
        execute(Path(name))
        print(f"{name}: {time.perf_counter() - start:.0f} s")
