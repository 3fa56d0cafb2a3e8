"""The lists that ``--list_archs``, ``--list_methods`` and ``--list_recipes`` print."""

from __future__ import annotations

from models import list_archs
from pipeline.recipes import list_recipes, load_recipe
from quant import QuantizationManager


def list_text(what: str) -> str:
    """One name per line, with a description where there is one.

    Args:
        what: ``archs``, ``methods`` or ``recipes``.
    """
    return "\n".join({"archs": list_archs, "methods": _methods, "recipes": _recipes}[what]())


def _methods() -> list[str]:
    manager = QuantizationManager()
    names = manager.list_available_methods()
    width = max(map(len, names))
    return [f"{name:<{width}}  {manager.get_method_class(name).summary}" for name in names]


def _recipes() -> list[str]:
    return [load_recipe(name).describe() for name in list_recipes()]
