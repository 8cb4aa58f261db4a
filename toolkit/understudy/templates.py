"""Templates of unit files and of the files of an instance, rendered by jinja2.

jinja2 is imported at the first template, not with this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.errors import RenderError
from understudy.unitfile import check_text, quote

if TYPE_CHECKING:
    import jinja2


class UnitText(str):
    """Text that is in unit-file syntax already: its ``%`` are specifiers and stay single."""

    __slots__ = ()


def render(folder: Path, name: str, context: Mapping[str, object], *, unit: bool) -> str:
    """Render one template.

    In a unit file a value's ``%`` is doubled, and a value that would change more than its own
    line is refused: ``--set root=…`` cannot smuggle in a directive. The filter ``quote`` makes
    one word of a value with spaces, or as many words as a list has.

    Args:
        folder: The folder of the template.
        name: The template's file name.
        context: What it finds, by name.
        unit: Whether it is a unit file; else a file in a format of its own.

    Raises:
        RenderError: A variable is undefined, a value is unfit, or the template is missing or
            wrong.
    """
    import jinja2

    try:
        return _environment(folder, unit).get_template(name).render(context)
    except jinja2.TemplateNotFound as exc:
        raise RenderError(f"Cannot render '{folder / name}': there is no such template") from exc
    except jinja2.UndefinedError as exc:
        known = ", ".join(sorted(key for key in context))
        raise RenderError(
            f"Cannot render '{folder / name}': {exc.message}", hint=f"defined are: {known}"
        ) from exc
    except jinja2.TemplateSyntaxError as exc:
        raise RenderError(f"Cannot render '{exc.filename}': line {exc.lineno}: {exc}") from exc
    except OSError as exc:
        raise RenderError(
            f"Cannot render '{folder / name}': {exc.strerror}",
            hint="who runs instances must be able to read all files of a definition",
        ) from exc
    except (jinja2.TemplateError, TypeError, ValueError) as exc:
        raise RenderError(f"Cannot render '{folder / name}': {exc}") from exc
    except RenderError as exc:
        raise RenderError(f"Cannot render '{folder / name}': {exc.message}", hint=exc.hint) from exc


@lru_cache
def _environment(folder: Path, unit: bool) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        finalize=_in_unit if unit else None,
    )
    environment.filters["quote"] = _quoted
    return environment


def _in_unit(value: object) -> str:
    """A value as it stands in a unit file."""
    text = str(value)
    if isinstance(value, UnitText):
        return text
    check_text("a value", text)
    if text.endswith("\\"):
        raise RenderError(
            f"the value '{text}' ends with a backslash",
            hint="systemd would take the next line for its continuation",
        )
    return text.replace("%", "%%")


def _quoted(value: object) -> str:
    """The filter ``quote``: one word, or the words of a list."""
    if isinstance(value, UnitText):
        return UnitText(quote(value))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return UnitText(" ".join(_quoted(entry) for entry in value))
    text = str(value)
    check_text("a value", text)
    return UnitText(quote(text.replace("%", "%%")))
