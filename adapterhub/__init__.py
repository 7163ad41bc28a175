"""Many tasks on one frozen foundation model.

`from adapterhub import AdapterHub` gives the Python API; it is loaded on first use, so that the command line's help and
the light parts of the package never wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.data.output import Output
    from adapterhub.runtime.hub import AdapterHub

__all__ = ["AdapterHub", "Output"]


def __getattr__(name: str) -> Any:
    if name == "AdapterHub":
        from adapterhub.runtime.hub import AdapterHub

        return AdapterHub
    if name == "Output":
        from adapterhub.data.output import Output

        return Output
    raise AttributeError(f"module 'adapterhub' has no attribute {name!r}")
