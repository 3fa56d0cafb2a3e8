"""The space of a search: methods, their settings and those of the correction, from YAML files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.configs import read_config
from common.errors import InputError, require_known
from correction import GridRequest, plan_grid
from correction.checks import check_alpha, check_shrinkage
from quant import QuantizationManager
from quant.settings import check_setting, flag_name, setting_type
from sweeps.search.entries import Check, Entry, OneOf, Range, read_entry

DEFAULT_SPACE = Path(__file__).resolve().parents[2] / "configs" / "search_space.yaml"
METHOD, METHODS, CORRECTION = "method", "methods", "correction"
CORRECTION_TYPES: Mapping[str, type] = {
    "alpha": float,
    "num_clusters": int,
    "pca_dim": int,
    "shrinkage": float,
}
# Settings that are given once for the whole search, and their short forms.
GIVEN_ONCE = ("n_bits_w", "n_bits_a", "num_bits", "seed", "num_samples", "calib_size")


@dataclass(frozen=True)
class Candidate:
    """A configuration to try.

    Attributes:
        settings: settings of the method that differ from its defaults for the network, by field.
        correction: settings of the correction; those left out have their default lists.
    """

    method: str
    settings: Mapping[str, Any]
    correction: Mapping[str, Any]

    def request(self, default: GridRequest) -> GridRequest:
        """The grid of corrections to fit: ``default`` where no value is set."""
        one = {name: (value,) for name, value in self.correction.items()}
        shrinkage = self.correction.get("shrinkage", default.shrinkage)
        return dataclasses.replace(
            default,
            alphas=one.get("alpha", default.alphas),
            num_clusters=one.get("num_clusters", default.num_clusters),
            pca_dims=one.get("pca_dim", default.pca_dims),
            shrinkage=shrinkage,
        )

    def flags(self) -> dict[str, Any]:
        """The flags of ``main_imagenet.py`` that set what differs from the defaults."""
        settings = {flag_name(name): value for name, value in self.settings.items()}
        return {**settings, **self.correction}

    def describe(self) -> str:
        """The flags in words."""
        texts = (f"{name}={value}" for name, value in sorted(self.flags().items()))
        return " ".join(texts) or "defaults"


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        methods: method -> field of its settings -> entry.
        correction: setting of the correction -> entry; empty: it is not searched.
        is_default: whether the entries of the correction are those of ``DEFAULT_SPACE``, which are
            cut to what the images allow.
    """

    methods: Mapping[str, Mapping[str, Entry]]
    correction: Mapping[str, Entry]
    is_default: bool = False

    def suggest(self, trial: Any) -> Candidate:
        """The candidate of an Optuna trial."""
        method = trial.suggest_categorical(METHOD, tuple(self.methods))
        entries = self.methods[method].items()
        settings = {name: entry.suggest(trial, f"{method}.{name}") for name, entry in entries}
        correction = {
            name: entry.suggest(trial, f"{CORRECTION}.{name}")
            for name, entry in self.correction.items()
        }
        return Candidate(method, settings, correction)

    def suggest_default(self, trial: Any, method: str, settings: Any) -> Candidate:
        """The candidate without any flag, in a trial where its values were enqueued.

        Args:
            settings: the settings of the method by default.
        """
        trial.suggest_categorical(METHOD, tuple(self.methods))
        for name, entry in self._with_default(method, settings).items():
            entry.suggest(trial, f"{method}.{name}")
        return Candidate(method, {}, {})

    def default_values(self, method: str, settings: Any) -> dict[str, Any]:
        """What to enqueue for the defaults of a method: those that its entries may take."""
        held = self._with_default(method, settings)
        values = {f"{method}.{name}": getattr(settings, name) for name in held}
        return {METHOD: method, **values}

    def _with_default(self, method: str, settings: Any) -> dict[str, Entry]:
        entries = self.methods[method].items()
        return {name: entry for name, entry in entries if entry.holds(getattr(settings, name))}

    def names(self) -> list[str]:
        """The parameters that Optuna chooses; those with a single value are left out."""
        groups = {**self.methods, CORRECTION: self.correction}
        found = [
            f"{group}.{name}"
            for group, entries in groups.items()
            for name, entry in entries.items()
            if not entry.is_fixed
        ]
        return [METHOD, *found] if len(self.methods) > 1 else found

    def plain(self) -> dict[str, Any]:
        """The space as it is written in a file."""
        methods = {
            method: {flag_name(name): entry.plain() for name, entry in entries.items()}
            for method, entries in self.methods.items()
        }
        correction = {name: entry.plain() for name, entry in self.correction.items()}
        return {METHODS: methods, CORRECTION: correction}

    def without_correction(self) -> Space:
        """The space without settings of the correction."""
        return dataclasses.replace(self, correction={})

    def fitted_to(self, samples: int, classes: int) -> Space:
        """The space with entries of the correction that the images and classes allow.

        Args:
            samples: images that corrections are fitted on.

        Raises:
            InputError: an entry of the user's file is out of range.
        """
        if not self.is_default:
            ends = {name: _values(entry) for name, entry in self.correction.items()}
            clusters, dims = ends.get("num_clusters", (1,)), ends.get("pca_dim", (1,))
            plan_grid(GridRequest(num_clusters=clusters, pca_dims=dims), samples, classes)
            return self
        limits = {"num_clusters": samples // 2, "pca_dim": min(classes, samples // 2)}
        cut = {
            name: _cut(entry, max(1, limits[name])) if name in limits else entry
            for name, entry in self.correction.items()
        }
        return dataclasses.replace(self, correction=cut)


def _values(entry: Entry) -> tuple[Any, ...]:
    """The values of an entry, or the ends of its range."""
    return entry.values if isinstance(entry, OneOf) else (entry.low, entry.high)


def _cut(entry: Entry, limit: int) -> Entry:
    if isinstance(entry, Range):
        return dataclasses.replace(entry, high=min(entry.high, limit))
    return OneOf(tuple(value for value in entry.values if value <= limit) or (limit,))


def read_space(
    path: Path | None, methods: Sequence[str] | None, given: Callable[[str], Collection[str]]
) -> Space:
    """Read the space of a search.

    Args:
        path: file of the user; None, or a method or ``correction`` that it does not name:
            ``DEFAULT_SPACE``, except that a file without ``correction`` leaves it as it is.
        methods: the methods to search; None: those of the file.
        given: from a method to the fields of its settings that flags set, to which entries of the
            default space give way.

    Raises:
        InputError: the file cannot be read, or a method, setting or value in it cannot be used.
    """
    default = _read_file(DEFAULT_SPACE)
    own = default if path is None else _read_file(path)
    chosen = tuple(methods or own[METHODS] or default[METHODS])
    manager = QuantizationManager()
    found: dict[str, Mapping[str, Entry]] = {}
    for method in chosen:
        require_known("quant_method", method, manager.list_available_methods())
        is_own = path is not None and method in own[METHODS]
        entries = (own if is_own else default)[METHODS].get(method, {})
        fixed = set(given(method))
        for name in sorted(fixed & set(entries)) if is_own else ():
            raise InputError(f"{flag_name(name)} must be left out after --, because {path} sets it")
        found[method] = {name: entry for name, entry in entries.items() if name not in fixed}
    return Space(found, own[CORRECTION], is_default=path is None)


def _read_file(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a file: of each method, and of the correction.

    Raises:
        InputError: as ``read_space``; the text names the file.
    """
    content = read_config(path, "search_space")
    try:
        for key in content:
            require_known("entry", str(key), (METHODS, CORRECTION))
        methods = {
            _known_method(method): _read_method(method, _mapping(str(method), entries))
            for method, entries in _mapping(METHODS, content.get(METHODS)).items()
        }
        entries = _mapping(CORRECTION, content.get(CORRECTION))
        correction = {key: _read_correction(key, value) for key, value in entries.items()}
    except InputError as error:
        raise InputError(f"search_space {path}: {error}") from None
    if not methods and not correction:
        raise InputError(f"search_space {path}: must have methods or correction, got neither")
    return {METHODS: methods, CORRECTION: correction}


def _mapping(name: str, content: Any) -> dict[Any, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{name} must map names to values, got {content!r}")
    return content


def _known_method(method: Any) -> str:
    return require_known("method", str(method), QuantizationManager().list_available_methods())


def _read_method(method: str, content: Mapping[Any, Any]) -> dict[str, Entry]:
    """The entries of a method, by field of its settings.

    Raises:
        InputError: a setting or value is not one of the method, or belongs to the whole search.
    """
    cls = QuantizationManager().get_method_class(method)
    fields = {flag_name(field.name): field for field in dataclasses.fields(cls.settings_class)}
    found: dict[str, Entry] = {}
    for key, entry in content.items():
        field = fields[require_known(f"setting of {method}", str(key), fields)]
        if field.name in GIVEN_ONCE:
            raise InputError(f"{key} must be given once for the whole search, got it in {method}")
        check = partial(_checked, field)
        found[field.name] = read_entry(f"{method}.{key}", entry, setting_type(field), check)
    fixed = {name: e.values[0] for name, e in found.items() if isinstance(e, OneOf) and e.is_fixed}
    if len(fixed) == len(found):
        cls(**fixed)
    return found


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """The value of a setting; null only where it is the default, since no flag gives it."""
    if value is None and field.default is not None:
        raise InputError(f"{flag_name(field.name)} must be a value, got none")
    return check_setting(field, value)


def _read_correction(key: Any, content: Any) -> Entry:
    kind = CORRECTION_TYPES[require_known("setting of correction", str(key), CORRECTION_TYPES)]
    return read_entry(f"{CORRECTION}.{key}", content, kind, _correction_check(str(key), kind))


def _correction_check(name: str, kind: type) -> Check:
    def check(value: Any) -> Any:
        is_whole = type(value) is int
        if not (is_whole or (kind is float and type(value) is float)):
            raise InputError(f"{name} must be of type {kind.__name__}, got {value!r}")
        if not math.isfinite(value):
            raise InputError(f"{name} must be finite, got {value!r}")
        if name == "alpha":
            check_alpha(value)
        elif name == "shrinkage":
            check_shrinkage(value)
        elif value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
        return kind(value)

    return check
