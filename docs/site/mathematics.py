"""Formulas of the pages, written as `$...$` and ```math blocks, as MathML: browsers draw it without a script or a font.

arithmatex finds the formulas; here each is converted when the site is built. A formula that cannot be converted ends
the build.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_UPRIGHT = re.compile(r'<mrow>((?:<mi mathvariant="normal">[a-zA-Z]</mi>){2,})</mrow>')
_COMMAND_LEFT = re.compile(r"<mi>(?:\\[a-zA-Z]+|&)</mi>|<mtext>\\[a-zA-Z]+</mtext>")


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Put MathML in the place of every formula of a page."""
    return _FORMULA.sub(lambda found: _as_mathml(found, page.file.src_uri), content)


def _as_mathml(found: re.Match[str], page: str) -> str:
    latex = html.unescape(found[3]).strip()
    try:
        mathml = convert(latex.replace("{aligned}", "{align*}"), display="block" if found[2] == "[" else "inline")
    except Exception as error:
        raise PluginError(f"{page}: the formula {latex!r} cannot be converted: {error!r}") from error
    if unknown := _COMMAND_LEFT.search(mathml):
        raise PluginError(f"{page}: the formula {latex!r} has an unknown command: {unknown[0]}")
    mathml = _UPRIGHT.sub(lambda word: f"<mi>{re.sub('<[^>]+>', '', word[1])}</mi>", mathml)  # one name, not letters
    mathml = mathml.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)
    return f'<{found[1]} class="formula" data-search-exclude>{mathml}</{found[1]}>'
