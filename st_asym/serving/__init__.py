"""A model behind ``/v1/embeddings``, and whether a running server gives the vectors of a model.

``endpoint`` is the ASGI app (extra ``serve``); ``against`` asks a server and compares.
"""

from typing import TYPE_CHECKING, Any

from st_asym.serving.against import ServedSide, ServerComparison, compare_with_server

if TYPE_CHECKING:
    from st_asym.serving.endpoint import app

__all__ = ["app", "compare_with_server", "ServerComparison", "ServedSide"]


def __getattr__(name: str) -> Any:
    """Load the endpoint when it is asked for: a comparison needs no web framework."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from st_asym.serving.endpoint import app

    return app
