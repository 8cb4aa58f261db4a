"""Values that a definition calls secret: which variables tell them, and who is told. Pure.

A secret is in no unit, no argument and no file that others may read: only in ``secrets.env`` of an
instance, in files of production that its owner alone may read, and in what is sent to the service.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

from understudy import envfile
from understudy.errors import RenderError
from understudy.model import Service

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\|sha256)?\}")
"""``{name}`` is a value, ``{name|sha256}`` the base64 of its SHA-256 digest."""

_WORD = (
    r"pass(?:word|wd|phrase|code)|requirepass|masterauth|secret|(?<!server_)token|credential"
    r"|(?:api|private|access|auth|signing|encryption)[._-]?key|apikey"
)
_SECRET_NAME = re.compile(
    rf"(?i)(?:{_WORD})|(?:^|[._-])(?:pass|pw|pwd|psk|auth|authorization|bearer|salt)$"
    r"|(?-i:[a-z](?:Pass|Pwd|Psk)$)"
)
_NO_SECRET = re.compile(r"(?i)(?:fastcgi|proxy|uwsgi|scgi|grpc|memcached|auth_request|by)[_]?pass$")


class Hidden:
    """What a template finds in the place of a secret that it must not show."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *_: object) -> NoReturn:
        raise RenderError(
            f"'{self._name}' is a secret",
            hint="it is for [secrets] environment, and for files of [deploy] with mode 0600",
        )

    __str__ = __bool__ = __len__ = __iter__ = __getitem__ = __hash__ = _refuse
    __eq__ = __ne__ = __add__ = __mod__ = _refuse


def filled(text: str, known: Mapping[str, str]) -> str:
    """A text with the values in it that it names.

    Args:
        text: The text; `PLACEHOLDER` says what is filled in.
        known: All values, secret ones included, by name.
    """

    def fill(match: re.Match[str]) -> str:
        value = known[match[1]]
        if match[2] is None:
            return value
        import base64
        import hashlib

        return base64.b64encode(hashlib.sha256(value.encode()).digest()).decode()

    return PLACEHOLDER.sub(fill, text)


def known(
    service: Service, values: Mapping[str, str], secrets: Mapping[str, str]
) -> dict[str, str]:
    """All values of a definition by name; a secret that nobody has set is "".

    Args:
        service: The definition.
        values: Values that override the definition's.
        secrets: Its secrets, as far as they were set.
    """
    return {**service.values, **dict.fromkeys(service.secrets, ""), **values, **secrets}


def environment(
    service: Service, values: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that tell a service its secrets, as far as these are set.

    Args:
        service: The definition.
        values: What `known` gives.

    Returns:
        Those that hold no secret, and those that do.

    Raises:
        RenderError: A value cannot be told by a variable.
    """
    plain: dict[str, str] = {}
    secret: dict[str, str] = {}
    for name, own in service.secrets.items():
        if not values[name]:
            continue
        for variable, text in own.environment.items():
            named = {match[1] for match in PLACEHOLDER.finditer(text)}
            told = secret if named & service.secrets.keys() else plain
            told[variable] = filled(text, values)
            envfile.check(variable, told[variable])
    return plain, secret


def used(service: Service, confided: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The variables that tell a service secrets of those that it uses.

    Args:
        service: The definition.
        confided: By service name: what `known` gives of the one that it uses.

    Raises:
        RenderError: A value cannot be told by a variable.
    """
    variables = {
        variable: confided[name][value]
        for name, told in service.uses_secrets.items()
        for value, names in told.items()
        if confided.get(name, {}).get(value)
        for variable in names
    }
    for variable, value in variables.items():
        envfile.check(variable, value)
    return variables


def credentials(service: Service, values: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password of the ready check; None where it has none, or no password is set.

    Args:
        service: The definition.
        values: What `known` gives.
    """
    check = service.ready
    if check is None or not (password := filled(check.password, values)):
        return None
    return filled(check.user, values), password


def from_environment(service: Service, variables: Mapping[str, str]) -> dict[str, str]:
    """Secrets of production, and values that go with them, as the caller's environment has them.

    ``UNDERSTUDY_MEDIAMTX_API_PASSWORD`` is mediamtx's ``api_password``.

    Args:
        service: The definition.
        variables: The environment.
    """
    stem = f"UNDERSTUDY_{service.name.upper().replace('-', '_')}_"
    names = {name: f"{stem}{name.upper()}" for name in (*service.secrets, *service.values)}
    found = {name: variables[key] for name, key in names.items() if variables.get(key)}
    return found if found.keys() & service.secrets.keys() else {}


def secret_name(name: str) -> bool:
    """Whether what is called so is a secret, by all appearances.

    Args:
        name: That of a variable or a setting.
    """
    return _SECRET_NAME.search(name) is not None and _NO_SECRET.search(name) is None
