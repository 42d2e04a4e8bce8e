"""What the notebooks share: claims that are checked, source shown from the library, answers that get a hint."""

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import matplotlib.pyplot as plt
from IPython.display import Markdown, display

# The same colours in every notebook, and none of those that `metalib.plots` gives to a method (same palette).
POSITIVE, NEGATIVE = "#56B4E9", "#D55E00"
SUPPORT, QUERY = "#CC79A7", "#F0E442"


def setup() -> None:
    """Figures of one size and sharpness; no progress bars."""
    plt.rcParams.update({"figure.figsize": (8, 4), "figure.dpi": 90, "figure.constrained_layout.use": True})
    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
    datasets.disable_progress_bars()


def claim(name: str, condition: Any) -> None:
    """The assertion behind the sentence of the text that carries `<!-- claim: name -->`. Silent where it holds."""
    if not bool(condition):
        raise AssertionError(f"claim {name!r} does not hold: the sentence that carries this name is wrong")


def show_source(thing: Any) -> None:
    """Show the source of one of the library's functions, classes or methods, as it is installed here."""
    source = textwrap.dedent(inspect.getsource(thing)).rstrip()
    file = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "")
    display(Markdown(f"`{file.parent.name}/{file.name}`\n\n```python\n{source}\n```"))


def attempt(check: Callable[[Any], None], answer: Any) -> None:
    """Check an answer to an exercise; where it is not right yet, print the hint instead of stopping the notebook."""
    try:
        check(answer)
    except AssertionError as hint:
        print(f"Not yet: {hint}")
