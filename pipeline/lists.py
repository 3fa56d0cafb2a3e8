"""The lists that ``--list_archs``, ``--list_methods`` and ``--list_recipes`` print."""

from __future__ import annotations

from models import ALIASES, archs_by_origin
from pipeline.recipes import list_recipes, load_recipe
from quant import QuantizationManager

OTHER_ARCHS = (
    "further networks:",
    "timm/NAME (pip install -r requirements-timm.txt)",
    "file.py:NAME or package.module:NAME, a function or class of yours",
)


def list_text(what: str) -> str:
    """One name per line, with a description where there is one; architectures in groups.

    Args:
        what: ``archs``, ``methods`` or ``recipes``.
    """
    return "\n".join({"archs": _archs, "methods": _methods, "recipes": _recipes}[what]())


def _archs() -> list[str]:
    lines = []
    for origin, names in archs_by_origin().items():
        shown = (f"{name} = {ALIASES[name]}" if name in ALIASES else name for name in names)
        lines += [f"{origin}:", *shown, ""]
    return [*lines, *OTHER_ARCHS]


def _methods() -> list[str]:
    manager = QuantizationManager()
    names = manager.list_available_methods()
    width = max(map(len, names))
    return [f"{name:<{width}}  {manager.get_method_class(name).summary}" for name in names]


def _recipes() -> list[str]:
    return [load_recipe(name).describe() for name in list_recipes()]
