"""Deep learning recommendation models on sharded tables with row-sparse updates."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrm_jax.job import fit

__all__ = ["fit"]


def __getattr__(name: str) -> Any:
    """`fit`, imported when it is used: it takes seconds, and devices must be asked for before."""
    if name == "fit":
        from dlrm_jax.job import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
