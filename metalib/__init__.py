"""metalib: meta-learning on text, small enough to read. See the notebooks for a walk through it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalib.adapting import adapt
    from metalib.predicting import predict

__version__ = "0.1.0"
__all__ = ["__version__", "adapt", "predict"]


def __getattr__(name: str) -> Any:
    """`from metalib import adapt, predict`, which is when torch and Transformers are imported, and not before."""
    if name == "adapt":
        from metalib.adapting import adapt

        return adapt
    if name == "predict":
        from metalib.predicting import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
