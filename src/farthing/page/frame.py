"""The frame of every page: one HTML file that loads nothing, under a policy that admits its own style alone."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Mapping

from farthing.page.typeset import Child, element, escaped, joined


def page(title: str, kicker: str, head: Child, content: Child, script: str = "", data: str = "") -> str:
    """A page: a head, sections, and a policy that lets in its own style and script.

    Args:
        title: of the page.
        kicker: a few words above the head: what kind of page it is.
        head, content: what is not HTML is escaped.
        script: JavaScript that is run; none if empty.
        data: JSON that the script finds in the element ``plot-data``, with nothing in it that HTML gives a meaning.
    """
    style = resource("page.css")
    admitted = f"default-src 'none'; style-src '{digest(style)}'; base-uri 'none'; form-action 'none'"
    scripts = ""
    if script:
        admitted += f"; script-src '{digest(script)}'; require-trusted-types-for 'script'"
        scripts = (
            f'<script type="application/json" id="plot-data">{data}</script>\n<script>{script}</script>\n'
        )
    parts = {
        "policy": admitted,
        "style": style,
        "title": escaped(title),
        "kicker": escaped(kicker),
        "head": joined([head]),
        "content": joined([content]),
        "scripts": scripts,
    }
    return filled(resource("page.html"), parts)


def plain_page(title: str, kicker: str, verdict: str, *content: Child) -> str:
    """A page without scripts: a heading, a sentence, and sections; see `page`."""
    head = joined([element("h1", element("bdi", title)), element("p", verdict, class_="verdict")])
    return page(title, kicker, head, joined(content))


def filled(frame: str, parts: Mapping[str, str]) -> str:
    """A frame with its ``{{names}}`` replaced, once: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], frame)


def resource(name: str, package: str = "farthing.page") -> str:
    """A file that lies beside the modules of a package."""
    return (importlib.resources.files(package) / name).read_text("utf-8")


def digest(text: str) -> str:
    """The hash by which a content security policy admits a script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
