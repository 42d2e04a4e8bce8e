"""RESULTS.md and its figures, from the files in results/."""

from pathlib import Path


def write(root: Path) -> None:
    """Write RESULTS.md and the figures."""
