"""What MkDocs does not do by itself: pages outside docs/, links to the sources, and what only the running program tells.

MkDocs calls the functions whose names begin with `on_`.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

import art_entropic
from art_entropic.cli.main import _COMMANDS, main
from art_entropic.fields import field_specs

ROOT = Path(__file__).parent.parent
# They stay where they are: GitHub, the tests and the archive look for them there.
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "notebooks/*.ipynb")
COMMAND_LINE = "reference/command-line.md"
_DECLARED = re.compile(r"^<!-- (?P<kind>settings|rows):(?P<name>\w+) -->$", re.M)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]+)\]\((?P<target>[^()\s:]+?)(?P<anchor>#[^()\s]*)?\)")
_FROM_ELSEWHERE = re.compile(r"<script[^>]*\ssrc=\"https?://[^\"]*\"[^>]*>\s*</script>")
_MERMAID = re.compile(r"<script type=\"module\">(?:(?!</script>).)*?mermaid.*?</script>", re.S)


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside docs/, and the page that is made of the parsers."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, COMMAND_LINE, content=command_line()))
    return files


def command_line() -> str:
    """The page of the command line: what each `--help` says."""
    parts = ["# Command line", "Made from the parsers of the program. `art-entropic COMMAND --help` prints the same."]
    for name in _COMMANDS:
        parts += [f"## art-entropic {name}", f"```text\n{_help(name)}\n```"]
    return "\n\n".join(parts) + "\n"


def _help(name: str) -> str:
    printed = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="100"), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([name, "--help"])
    return printed.getvalue().strip()


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links of the repository become links of the site, or of the sources where the site does not have the file."""
    here = posixpath.dirname(_in_repository(page.file))

    def on_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link["target"]))
        if not (ROOT / target).exists():
            return link[0]  # of which MkDocs warns
        file = files.get_file_from_path(target.removeprefix("docs/"))
        if file is None:
            return f"[{link['text']}]({config.extra['sources']}/{target})"
        start = posixpath.dirname(page.file.src_uri)
        return f"[{link['text']}]({posixpath.relpath(file.src_uri, start or '.')}{link['anchor'] or ''})"

    return _LINK.sub(on_site, _DECLARED.sub(_table, markdown))


def _table(found: re.Match[str]) -> str:
    """The settings of a struct, or the rows of a literal table, which no docstring in the source lists."""
    value = getattr(art_entropic, found["name"])
    if found["kind"] == "rows":
        cells = [(name, getattr(row, "title", row)) for name, row in value.items()]
        lines = [f"| `{name}` | {told if isinstance(told, str) else ', '.join(told)} |" for name, told in cells]
        return "\n".join(["| name | what it is |", "| --- | --- |", *lines])
    specs = field_specs(value).values()
    lines = [f"| `{one.name}` | {'' if one.is_required else f'`{one.default!r}`'} | {one.description} |" for one in specs]
    return "\n".join(["| setting | default | what it is |", "| --- | --- | --- |", *lines])


def _in_repository(file: File) -> str:
    """Where a page lies, seen from the root of the repository."""
    generated = file.abs_src_path is None or not Path(file.abs_src_path).is_relative_to(ROOT)
    return f"docs/{file.src_uri}" if generated else Path(file.abs_src_path).relative_to(ROOT).as_posix()


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Notebooks come with scripts from elsewhere, for formulas and drawings that ours have not, and with links to files."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    html = _MERMAID.sub("", _FROM_ELSEWHERE.sub("", html))
    return re.sub(r'href="(\w+)\.ipynb"', r'href="../\1/"', html)
