"""orch fills a GPU with as many model workers as it really holds, and sends every request to the least busy one.

    from orch import Client

    with Client() as client:
        vector = client.request("a sentence", timeout=5.0)

`Model` is what a worker loads, `Tensor` declares what it takes or gives; `errors` is everything that can go wrong.
Importing this needs pyzmq, msgpack and numpy, and loads them only when a client is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from orch import errors
from orch.model import Model, Tensor
from orch.version import __version__

if TYPE_CHECKING:
    from orch.aio import AsyncClient
    from orch.client import Client

__all__ = ["AsyncClient", "Client", "Model", "Tensor", "__version__", "errors"]

_LATE = {"AsyncClient": "orch.aio", "Client": "orch.client"}


def __getattr__(name: str) -> Any:
    """Load the clients when they are asked for: a worker or a command line starts without them."""
    if name not in _LATE:
        raise AttributeError(f"module 'orch' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
