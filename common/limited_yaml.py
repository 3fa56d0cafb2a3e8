"""PyYAML's safe loader with limits; import this only where PyYAML is installed."""

from __future__ import annotations

from typing import Any

import yaml

MAX_NODES = 10_000  # keys, values and lists of a text, each alias counted as what it stands for
MAX_DEPTH = 32  # levels of lists and mappings inside each other
MERGE = "tag:yaml.org,2002:merge"  # of the key <<, which may be given more than once


class LimitedLoader(yaml.SafeLoader):
    """Counts nodes while they are read, so that a text that unfolds is refused at once.

    A text beyond the limits, with a key twice in a mapping, or with an alias inside what it stands
    for raises ValueError.

    Attributes:
        nodes: nodes read, each alias counted as the nodes that it stands for.
        depth: level of the node that is being read.
        sizes: anchor -> number of its nodes; missing until its last node is read.
    """

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.nodes = self.depth = 0
        self.sizes: dict[str, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Read one node with everything in it (the hook of PyYAML's composer)."""
        event = self.peek_event()
        if self.check_event(yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self.sizes:
                raise ValueError(f"alias *{event.anchor} stands for itself")
            self._count(self.sizes.get(event.anchor, 1))
            return super().compose_node(parent, index)
        before, self.depth = self.nodes, self.depth + 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels, line {event.start_mark.line + 1}")
        self._count(1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if event.anchor is not None:
            self.sizes[event.anchor] = self.nodes - before
        return node

    def _count(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} values, aliases counted as their content")

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Read a mapping and check that its keys differ (the hook of PyYAML's composer)."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                value = self.construct_object(key)
                if value in seen:
                    line = key.start_mark.line + 1
                    raise ValueError(f"key {value!r} must be given once, got it in line {line}")
                seen.add(value)
        return node
