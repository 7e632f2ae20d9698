"""The frame of every page: one HTML file that loads nothing, under a policy that admits its own style alone."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Mapping

from farthing.forge.report.typeset import Child, element, escaped, joined


def plain_page(title: str, kicker: str, verdict: str, *content: Child) -> str:
    """A page without scripts: a heading, a sentence, and sections.

    Args:
        title: of the page, also its heading.
        kicker: a few words above it: what kind of page it is.
        verdict: the sentence below it.
        content: sections; what is not HTML is escaped.
    """
    style = resource("page.css")
    parts = {
        "policy": f"default-src 'none'; style-src '{digest(style)}'; base-uri 'none'; form-action 'none'",
        "style": style,
        "title": escaped(title),
        "kicker": escaped(kicker),
        "head": joined([element("h1", element("bdi", title)), element("p", verdict, class_="verdict")]),
        "content": joined(content),
    }
    return filled(resource("plain.html"), parts)


def filled(frame: str, parts: Mapping[str, str]) -> str:
    """A frame with its ``{{names}}`` replaced, once: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], frame)


def resource(name: str) -> str:
    """A file that lies beside this one."""
    return (importlib.resources.files("farthing.forge.report") / name).read_text("utf-8")


def digest(text: str) -> str:
    """The hash by which a content security policy admits a script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
