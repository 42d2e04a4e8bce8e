"""metalib: meta-learning on text, small enough to read. See the notebooks for a walk through it."""

__version__ = "0.1.0"
