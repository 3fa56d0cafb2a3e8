"""Command-line parsing of the scripts: one-line errors, dash aliases, ``--config`` files.

Flags are written with underscores, as in the published scripts; dashes work as well.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.configs import read_config
from common.errors import InputError, require_known

CLASS_ORDER_HELP = (
    "order of the class folders, which must be that of the network's outputs: text (10 before 2; "
    "the default, but must be given if all names are numbers and the orders differ), natural (2 "
    "before 10), or a text file with a class name on each line"
)
# argparse's own pattern mistakes -1e-3 and -inf for flags.
HINT = " (--help lists the flags)"
NEGATIVE_NUMBER = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|^-(inf|nan)$", re.IGNORECASE)


class FlagParser(argparse.ArgumentParser):
    """An argument parser that raises ``InputError`` instead of printing its usage and exiting."""

    def __init__(self, **arguments: Any):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **arguments
        )
        self._negative_number_matcher = NEGATIVE_NUMBER

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}{HINT}")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.type is Path and "" in arg_strings:
            self.error(f"{action.dest} must be a path, got an empty text")
        return super()._get_values(action, arg_strings)

    def flags(self) -> dict[str, argparse.Action]:
        """Map each flag without its dashes to its action; ``--no-x`` forms are left out."""
        found = {}
        for action in self._actions:
            for option in action.option_strings:
                if option.startswith("--") and not option.startswith("--no-"):
                    found[option.removeprefix("--")] = action
        return found

    def parse(
        self, argv: Sequence[str], presets: Mapping[str, Any] | None = None, source: str = ""
    ) -> argparse.Namespace:
        """Parse ``argv``; its flags override its ``--config`` file, which overrides ``presets``.

        Args:
            presets: flag -> value.
            source: where the presets come from, for error texts.

        Raises:
            InputError: unknown or malformed flags in any of the three.
        """
        if any("\0" in argument for argument in argv):
            raise InputError("arguments must be free of null characters")
        arguments = [self._canonical(argument) for argument in argv]
        namespace = argparse.Namespace()
        if presets:
            namespace = self._parse_known(self.arguments(presets, source), namespace)
        config = self._config_path(arguments)
        if config is not None:
            try:
                namespace = self._parse_known(self._from_file(config), namespace)
            except InputError as error:
                raise InputError(_named(str(config), str(error))) from None
        return self._parse_known(arguments, namespace)

    def refuse(self, options: argparse.Namespace, names: Iterable[str], why: str) -> None:
        """Refuse flags that do not apply.

        Args:
            names: attributes of ``options``.
            why: end of the sentence "NAME must be left out ...".

        Raises:
            InputError: a flag does not have its default value.
        """
        for name in names:
            value = getattr(options, name)
            if value != self.get_default(name):
                raise InputError(f"{name} must be left out {why}, got {value}")

    def _parse_known(
        self, arguments: list[str], namespace: argparse.Namespace
    ) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(arguments, namespace)
        if unknown:
            if unknown[0].startswith("--"):
                every = (option for action in self._actions for option in action.option_strings)
                known = [option for option in every if option.startswith("--")]
                require_known("flag", unknown[0].partition("=")[0], known)
            raise InputError(f"arguments must be flags and their values, got {unknown[0]!r}")
        return parsed

    def _canonical(self, argument: str) -> str:
        """Rewrite ``--n-bits-w=4`` to ``--n_bits_w=4`` and ``--no_plots`` to ``--no-plots``.

        Only if the result is a flag and the argument as written is none.
        """
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return argument
        body = name.removeprefix("--").replace("-", "_")
        candidates = [f"--{body}"]
        if body.startswith("no_"):
            candidates.append(f"--no-{body.removeprefix('no_')}")
        for candidate in candidates:
            if candidate in self._option_string_actions:
                return candidate + equals + value
        return argument

    def _config_path(self, arguments: list[str]) -> Path | None:
        finder = FlagParser(add_help=False)
        finder.add_argument("--config", type=Path)
        return finder.parse_known_args(arguments)[0].config

    def _from_file(self, path: Path) -> list[str]:
        """The flags in a file as command-line arguments, so that the same checks apply."""
        return self.arguments(read_config(path, "config"), str(path))

    def arguments(self, content: Mapping[Any, Any], source: str) -> list[str]:
        """Flags and their values as command-line arguments.

        Args:
            source: where they come from, for error texts.

        Raises:
            InputError: an unknown flag, or a value of the wrong kind.
        """
        arguments: list[str] = []
        for key, value in content.items():
            known = [flag for flag in self.flags() if flag not in ("config", "help")]
            require_known(f"flag in {source}", str(key), known)
            arguments += _as_arguments(str(key), value, self.flags()[key])
        return arguments


def arch_name(text: str) -> str:
    """An architecture as the suite writes it: known names in lower case, code of the user as is."""
    return text if ":" in text or "/" in text else text.lower()


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1, as the ``type`` of a flag.

    Raises:
        argparse.ArgumentTypeError: the text is not such a number.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def positive_float(text: str) -> float:
    """Parse a finite number above 0, as the ``type`` of a flag.

    Raises:
        argparse.ArgumentTypeError: the text is not such a number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def _named(source: str, text: str) -> str:
    """An error text that names its source."""
    return text if source in text else f"{source}: {text.removesuffix(HINT)}"


def _as_arguments(flag: str, value: Any, action: argparse.Action) -> list[str]:
    if value is None:
        return []
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        if not isinstance(value, bool):
            raise InputError(f"{flag} in the config must be true or false, got {value!r}")
        positive = [f"--{flag}"]
        negative = [f"--no-{flag}"] if isinstance(action, argparse.BooleanOptionalAction) else []
        return positive if value else negative
    if isinstance(value, list):
        if action.nargs is None:
            raise InputError(f"{flag} in the config must be one value, got {value!r}")
        if any(str(item).startswith("--") for item in value):
            raise InputError(f"{flag} in the config must be a list of values, got {value!r}")
        return [f"--{flag}", *map(str, value)]
    if isinstance(value, bool):  # YAML reads an unquoted on or off as a bool
        value = "on" if value else "off"
    return [f"--{flag}={value}"]
