"""Run folder -> one self-contained page: the verdict first, then the evidence, then how it was made.

The page loads nothing and runs no script, so that it can be mailed, archived and printed as it is. Replies, prompts,
names and reasons are hostile text: jinja2 escapes all of it, `visible` makes invisible characters visible, and
only the plots, rebuilt from an allow-list of SVG elements, are marked safe. The same run folder gives the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from demeanor.workspace import Workspace

if TYPE_CHECKING:
    import jinja2

__all__ = ["page_template", "write_report"]


def write_report(workspace: Workspace) -> None:
    """Write `report.html` from what the run folder holds; a part whose file is missing is named as not shown.

    Raises:
        RunFolderError: there is no verdict yet, or a file is damaged.
    """
    from demeanor.report.view import read_view

    page = page_template("demeanor.report", "page.html.j2").render(view=read_view(workspace))
    workspace.write_text(workspace.report, page)


def page_template(package: str, name: str) -> jinja2.Template:
    """The template `name` of a package, which may include `page.css`; it escapes whatever is no Markup."""
    import jinja2

    from demeanor.report import words

    loaders = [jinja2.PackageLoader(place, ".") for place in dict.fromkeys((package, "demeanor.report"))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=words.printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": words.percent, "seconds": words.seconds, "number": words.number}
    return environment.get_template(name)
