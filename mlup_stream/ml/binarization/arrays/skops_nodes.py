"""skops's tree of nodes over members that are not read: marks in place of arrays until the audit has passed.

A node reads its member from the zip file while it is made. Here it gets a mark of this load in place of an array's bytes, and
once the tree was audited, each node of an array is told how to make it. Everything else is skops's own code: the check of the
protocol, which node a loader names, what each trusts, the audit, and how objects are built.

The audit asks a shared node once for each way that leads to it, 2**60 times in a file of 20 KB that was made for it, so what
such a node answers is kept.
"""

from __future__ import annotations

import io
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.arrays.npz import NpzMember
from mlup_stream.formats.frameworks.skops import SCHEMA, SkopsFile
from mlup_stream.formats.kinds import Format

__all__ = ["Members", "Nodes"]

_ARRAY_NODE, _COPYING_NODE, _OWNING_NODE = "NdArrayNode", "TreeNode", "ObjectNode"
_NOTHING: frozenset[str] = frozenset()


class Members:
    """What skops takes for its zip file.

    Args:
        found: What the file holds. A member is read as often as the pass over the schema saw it named, and no more: what was
            estimated is what is made.
        read: Reads a member that is no array.
        name: What to call the file in a message.
    """

    def __init__(self, found: SkopsFile, read: Callable[[NpzMember], bytes], name: str) -> None:
        self._members = {SCHEMA: found.schema, **found.members}
        self._left = Counter({SCHEMA: 1, **found.references})
        self._read = read
        self._name = name
        self._mark = secrets.token_bytes(16)

    def read(self, name: str) -> bytes:
        """The bytes of a member, or in place of an array's a mark that `array_of` knows."""
        member = self._members.get(name)
        self._left[name] -= 1
        if member is None or self._left[name] < 0:
            raise self.corrupt("members that are there, each named plainly", repr(name)[:200])
        return self._read(member) if member.header is None else self._mark + name.encode()

    def array_of(self, content: Any) -> NpzMember | None:
        """The member that a mark stands for; None for what is no mark."""
        if not isinstance(content, io.BytesIO):
            return None
        said = content.getvalue()
        return self._members[said[len(self._mark) :].decode()] if said.startswith(self._mark) else None

    def corrupt(self, expected: str, found: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self._name}: expected a schema as skops writes it, with {expected}, found {found}; the file may be damaged: copy"
            " it or write it again",
            path=self._name,
            format=Format.SKOPS.value,
        )


class _Seen(NamedTuple):
    """A node, what has it, and whether more than one does."""

    node: Any
    owner: Any
    shared: bool


class Nodes:
    """The tree of nodes, of which nothing was built. Leaving it as a context lets every node go, and with them what they hold.

    Args:
        members: Stands for the zip file.
        trusted: What may be built beside what skops trusts.

    Raises:
        CorruptModelError: A member is not there, or an array is where none belongs.
        Exception: Whatever skops raises for values that it does not expect.
    """

    def __init__(self, members: Members, trusted: list[Any]) -> None:
        from skops.io._audit import get_tree
        from skops.io._utils import read_schema

        self._members = members
        self._trusted = trusted
        schema, context = read_schema(members)
        self._root = get_tree(schema, context, trusted=trusted)
        self._seen = _distinct(self._root)
        self._arrays = {key: member for key, each in self._seen.items() if (member := self._array_of(each.node)) is not None}

    def _array_of(self, node: Any) -> NpzMember | None:
        member = self._members.array_of(node.children.get("content"))
        if member is not None and type(node).__name__ != _ARRAY_NODE:
            raise self._members.corrupt("arrays where they belong", f"{member.place.name!r} in a {type(node).__name__}")
        return member

    def audit(self) -> list[str]:
        """skops's own audit: the types that it does not trust and that were not named as trusted, none if it passed."""
        from skops.io._audit import audit_tree
        from skops.io._utils import get_type_paths
        from skops.io.exceptions import UntrustedTypesFoundException

        for each in self._seen.values():
            if each.shared:
                each.node.get_unsafe_set = _Once(each.node)
        try:
            audit_tree(self._root, trusted=self._trusted)
        except UntrustedTypesFoundException:
            return sorted(self._root.get_unsafe_set() - set(get_type_paths(self._trusted)))
        return []

    def construct(self, array: Callable[[NpzMember, Any], Any], dropped: Callable[[], None]) -> Any:
        """The object.

        Args:
            array: Makes an array, given its member and what will have it: something with `__module__` and `__qualname__`.
            dropped: Called when arrays were let go of.
        """
        for key, each in self._seen.items():
            if key in self._arrays:
                each.node._construct = _array_maker(each, self._arrays[key], array)
            elif type(each.node).__name__ == _COPYING_NODE:
                each.node._construct = _copying_maker(each.node, self._seen, dropped)
        return self._root.construct()

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        for each in self._seen.values():
            each.node.__dict__.clear()  # nodes lead to each other in circles
        self._seen, self._root = {}, None


def _array_maker(seen: _Seen, member: NpzMember, array: Callable[[NpzMember, Any], Any]) -> Callable[[], Any]:
    """What `NdArrayNode._construct` does, with an array that is not read from its bytes."""

    def construct() -> Any:
        from skops.io._utils import gettype

        made, node = array(member, seen.owner), seen.node
        if f"{node.module_name}.{node.class_name}" == "numpy.ndarray":
            return made
        return gettype(node.module_name, node.class_name)(made)

    return construct


def _copying_maker(node: Any, seen: dict[int, _Seen], dropped: Callable[[], None]) -> Callable[[], Any]:
    """The node's own `_construct`, after which nothing holds the arrays that its object has copied."""

    def construct() -> Any:
        from skops.io._audit import UNINITIALIZED

        made = type(node)._construct(node)
        for each in (node.attrs, *_children(node.attrs)):
            if not seen[id(each)].shared:
                each._constructed = UNINITIALIZED
        dropped()
        return made

    return construct


class _Once:
    """A node's answer to the audit, which is the same each time; to itself, within a circle, none as yet."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._found: Any = None

    def __call__(self) -> Any:
        if self._found is None:
            self._found = _NOTHING
            self._found = type(self._node).get_unsafe_set(self._node) or _NOTHING
        return self._found


def _distinct(root: Any) -> dict[int, _Seen]:
    """Every node once, by its id, with the estimator whose attribute it is or is in."""
    seen = {id(root): _Seen(root, None, False)}
    left = [root]
    while left:
        node = left.pop()
        owner = seen[id(node)].owner
        if type(node).__name__ in (_OWNING_NODE, _COPYING_NODE):
            owner = SimpleNamespace(__module__=node.module_name, __qualname__=node.class_name)
        for child in _children(node):
            if id(child) in seen:
                seen[id(child)] = seen[id(child)]._replace(shared=True)
            else:
                seen[id(child)] = _Seen(child, owner, False)
                left.append(child)
    return seen


def _children(node: Any) -> Iterator[Any]:
    from skops.io._audit import Node

    for child in (*node.children.values(), getattr(node, "cached", None)):
        for each in child if isinstance(child, list) else child.values() if isinstance(child, dict) else (child,):
            if isinstance(each, Node):
                yield each
