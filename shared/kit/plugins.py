"""A named set of implementations, filled at its first use by importing the modules of one package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Plugins(Generic[T]):
    """Implementations of one seam by name. A new one is a new file, and nothing else."""

    def __init__(self, kind: str, package: str) -> None:
        """Name the seam.

        Args:
            kind: how error messages call it (`engine`, `backend`, `policy`).
            package: every module in it whose name has no leading underscore is an implementation.
        """
        self._kind = kind
        self._package = package
        self._is_filled = False
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds its argument under `name`.

        Raises:
            ValueError: the name is taken by another implementation.
        """

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self._kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        """Return the implementation, or raise a `LookupError` that lists the known names."""
        try:
            return self._filled()[name]
        except KeyError:
            known = ", ".join(self)
            raise LookupError(f"unknown {self._kind} {name!r}; known: {known}") from None

    def __contains__(self, name: object) -> bool:
        """Tell whether `name` is known."""
        return name in self._filled()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(sorted(self._filled()))

    def _filled(self) -> dict[str, T]:
        if not self._is_filled:
            module = importlib.import_module(self._package)
            for info in pkgutil.iter_modules(module.__path__):
                if not info.name.startswith("_"):
                    importlib.import_module(f"{self._package}.{info.name}")
            self._is_filled = True
        return self._items
