"""Blocks of a network: the modules that are reconstructed as one unit, from the tree of modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

FEWEST = 2  # layers of a block, and blocks of a module that holds blocks


class Blocks:
    """The tree of modules that hold layers.

    A module holds blocks if at least two of its children hold several layers and whole pieces of
    the chain each, or one of its children holds blocks. Otherwise it is one block. The attention
    and the feed-forward module of a transformer's block are no blocks of their own, however its
    code is divided into modules.

    Args:
        pieces: names of the layers of each piece of the chain.
        containers: paths of modules such as ``nn.Sequential``, whose children count as those of
            their parent.
        attention: names of the layers of pieces that multiply two activations.
    """

    def __init__(
        self,
        pieces: Sequence[Sequence[str]],
        containers: Iterable[str],
        attention: Iterable[str] = (),
    ):
        self.pieces = [set(piece) for piece in pieces]
        self.containers = frozenset(containers)
        self.attention = frozenset(attention)
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
        several = len(blocks) >= FEWEST and not self._are_transformer(module, blocks)
        return several or any(map(self._holds_blocks, children))

    def _is_candidate(self, module: str) -> bool:
        inside = self._inside(module)
        whole = all(piece <= inside for piece in self.pieces if piece & inside)
        return len(inside) >= FEWEST and whole

    def _are_transformer(self, module: str, children: Sequence[str]) -> bool:
        """Whether the children are a module's own attention and feed-forward, one of each."""
        own = all(child.rpartition(".")[0] == module for child in children)
        attending = [child for child in children if self._inside(child) & self.attention]
        return own and len(children) == 2 and len(attending) == 1

    def _inside(self, module: str) -> set[str]:
        return {layer for layer in self.layers if _is_inside(layer, module)}

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
