"""Operands: the tensors that the plugins of a route bring into a module's forward, in one order.

Two routes of one `Kind` make the same calls on tensors of the same shapes, so that what was recorded under the one runs
under the other, given its tensors' addresses: a switch of plugins copies nothing and records nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar
from weakref import WeakSet, WeakValueDictionary

from torch import Tensor

from fluvial.adapters.lora import Route, Update

MOST = 64  # routes that a module keeps operands of
AMBIGUOUS = -1  # the place of a tensor that several plugins share


class Kind:
    """What has to be alike; one object for each, so that it is compared at once."""

    __slots__ = ("__weakref__", "about")

    def __init__(self, about: tuple[Any, ...]) -> None:
        self.about = about


_kinds = WeakValueDictionary[tuple[Any, ...], Kind]()


@dataclass(frozen=True)
class Operands:
    """`tensors` and their `addresses`; `acting`, the route's places whose plugins change anything here; `owners`, by a
    tensor's id, its plugin's place among these."""

    kind: Kind
    tensors: tuple[Tensor, ...]
    addresses: ctypes.Array[ctypes.c_int64]
    acting: tuple[int, ...]
    owners: Mapping[int, int]

    def strengths(self, route: Route) -> tuple[list[list[float]], tuple[Any, ...]]:
        """The strengths of those that act, one for all rows or one each; and what has to be alike of them too."""
        given = list(route.values())
        acting = [given[place] for place in self.acting]
        values = [one.tolist() if isinstance(one, Tensor) else [one] for one in acting]
        return values, tuple((one.shape, one.dtype) if isinstance(one, Tensor) else None for one in acting)


class Routes:
    """The operands of a module's routes, given what each of its projections has attached, until `forget`."""

    _all: ClassVar = WeakSet["Routes"]()

    def __init__(self, doors: Iterable[Mapping[str, Update]]) -> None:
        self._doors, self._known = list(doors), dict[tuple[str, ...], Operands]()
        self._all.add(self)

    def operands(self, route: Route) -> Operands:
        """Those of this route."""
        known, names = self._known, tuple(route)
        if names not in known:
            found = _operands(self._doors, names)
            while len(known) >= MOST:
                known.pop(next(iter(known)), None)
            known[names] = found
        return known[names]

    @classmethod
    def forget(cls) -> None:
        """To be called when a plugin comes or goes: no operands outlive what they belong to."""
        for routes in list(cls._all):
            routes._known = {}  # who is making one keeps the old


def _operands(doors: Sequence[Mapping[str, Update]], names: Sequence[str]) -> Operands:
    acting = tuple(i for i, name in enumerate(names) if any(name in door for door in doors))
    tensors, owners, about = list[Tensor](), dict[int, int](), list[Any]()
    for door in doors:
        for place, name in enumerate(names[i] for i in acting):
            update = door.get(name)
            if update is None:
                about.append(None)
                continue
            about.append((place, type(update)))
            values: Iterable[Any] = (getattr(update, f.name) for f in fields(update)) if is_dataclass(update) else ()
            for value in values:
                if isinstance(value, Tensor):
                    about.append((value.shape, value.stride(), value.dtype, value.device))
                    owners[id(value)] = place if owners.get(id(value), place) == place else AMBIGUOUS
                    tensors.append(value)
                else:
                    about.append(value)
    starts = dict[int, int]()  # what doors of one plugin share, those of another need not
    about += [starts.setdefault(t.data_ptr(), i) for i, t in enumerate(tensors)]
    kind = Kind(tuple(about))
    kind = _kinds.setdefault(kind.about, kind)
    addresses = (ctypes.c_int64 * len(tensors))(*(t.data_ptr() for t in tensors))
    return Operands(kind, tuple(tensors), addresses, acting, owners)
