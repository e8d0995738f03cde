"""`${env.NAME}` in the values of the agent's YAML file; what it stands for gets into no message."""

from __future__ import annotations

import re
from collections.abc import Mapping

from local_agent.yaml_text import Loc, YamlError

_VARIABLE = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_SEPARATORS = re.compile(r"[\s/:@=]+")
_LEAST_HIDDEN = 4


class UsedVariables:
    """Fills in variables, and remembers them: an error may quote the value that is wrong."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Take the values by name."""
        self._env = env
        self._used: set[str] = set()

    def fill(self, value: object, loc: Loc = ()) -> object:
        """Return the value with `${env.NAME}` in its strings replaced.

        Raises:
            YamlError: a variable is not set.
        """
        if isinstance(value, dict):
            return {key: self.fill(item, (*loc, str(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, (*loc, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value

        def replace(found: re.Match[str]) -> str:
            name = found[1]
            if name not in self._env:
                raise YamlError(f"the environment variable {name} is not set", loc=loc)
            self._used.add(name)
            return self._env[name]

        return _VARIABLE.sub(replace, value)

    def hide(self, text: str) -> str:
        """Return the text with the variables' names in place of their values, and of parts of these."""
        hidden: dict[str, str] = {}
        for name in sorted(self._used):
            for part in (self._env[name], *_SEPARATORS.split(self._env[name])):
                if len(part) >= _LEAST_HIDDEN:
                    hidden.setdefault(part, name)
                    hidden.setdefault(repr(part)[1:-1], name)
        if not hidden:
            return text
        longest_first = "|".join(map(re.escape, sorted(hidden, key=len, reverse=True)))
        return re.sub(longest_first, lambda found: f"${{env.{hidden[found[0]]}}}", text)
