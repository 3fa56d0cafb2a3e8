"""Blocks of a network: the modules that are reconstructed as one unit, from the tree of modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

FEWEST = 2  # layers of a block, and blocks of a module that holds blocks


class Blocks:
    """The tree of modules that hold layers.

    A module holds blocks if at least two of its children hold several layers and whole pieces of
    the chain each, or one of its children holds blocks. Otherwise it is one block.

    Args:
        pieces: names of the layers of each piece of the chain.
        containers: paths of modules such as ``nn.Sequential``, whose children count as those of
            their parent.
    """

    def __init__(self, pieces: Sequence[Sequence[str]], containers: Iterable[str]):
        self.pieces = [set(piece) for piece in pieces]
        self.containers = frozenset(containers)
        self.layers = list(dict.fromkeys(layer for piece in pieces for layer in piece))

    def block_of(self, layer: str) -> str:
        """The outermost module around a layer that holds no blocks, or the layer itself."""
        module = ""
        while module != layer:
            child = next(c for c in self._children[module] if _is_inside(layer, c))
            if not self._holds_blocks(child):
                return child
            module = child
        return layer

    def _holds_blocks(self, module: str) -> bool:
        children = self._children.get(module, [])
        blocks = [child for child in children if self._is_candidate(child)]
        return len(blocks) >= FEWEST or any(map(self._holds_blocks, children))

    def _is_candidate(self, module: str) -> bool:
        inside = {layer for layer in self.layers if _is_inside(layer, module)}
        whole = all(piece <= inside for piece in self.pieces if piece & inside)
        return len(inside) >= FEWEST and whole

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        """The children of each module, seen through containers; "" is the network."""
        children: dict[str, list[str]] = {}
        for layer in self.layers:
            parent = ""
            parts = layer.split(".")
            for depth in range(1, len(parts) + 1):
                path = ".".join(parts[:depth])
                if path in self.containers and path != layer:
                    continue
                known = children.setdefault(parent, [])
                if path not in known:
                    known.append(path)
                parent = path
        return children


def _is_inside(layer: str, module: str) -> bool:
    return layer == module or layer.startswith(module + ".")
