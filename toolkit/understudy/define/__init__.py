"""``understudy define``: a service definition from a unit that is installed.

`look` finds out (it changes and starts nothing), `define` makes files of that without touching the
machine, `place` writes them. What could not be found out is in `Definition.notes`.
"""

from __future__ import annotations

from understudy.define.facts import Definition, Facts, Listener, Note, PathKind, Source
from understudy.define.looking import find, look, unit_names
from understudy.define.placing import place
from understudy.define.writing import define, service_name

__all__ = [
    "Definition",
    "Facts",
    "Listener",
    "Note",
    "PathKind",
    "Source",
    "define",
    "find",
    "look",
    "place",
    "service_name",
    "unit_names",
]
