"""Order: which pass can follow which, from what passes declare; a whole chain is judged before any of it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from farthing import plugins
from farthing.errors import ConfigError
from farthing.forge import graph
from farthing.forge.cache import Cache, key_of
from farthing.forge.ladder import QUANTIZED
from farthing.model import Model
from farthing.recipe import Step

WORDS = {
    "float": "a float ONNX model",
    "sparse": "a float ONNX model whose zeros training would fill again",
    "branched": "a float ONNX model with exits",
    "float16": "a float16 ONNX model",
    "int8": "an int8 ONNX model",
    "mixed": "an ONNX model in int8 and float16",
    "dynamic": "a dynamic int8 ONNX model",
    "blocks": "an ONNX model with weights in blocks",
    "stored": "a float ONNX model with weights stored in 8 bits",
    "reduced": "an ONNX model that was quantized before",
    "openvino": "an OpenVINO model",
    "openvino-int8": "an int8 OpenVINO model",
    "tflite": "a TFLite model",
}
"""Forms of models as passes declare them in ``forms``, and what they are called."""
NARROW = {"int8", "mixed", "dynamic", "blocks", "stored", "reduced", "openvino-int8"}


class _Link(NamedTuple):
    """A step of a chain.

    Attributes:
        words: its place and its name.
        forms: what it declares.
        given: the form it gets; empty if that is not known.
    """

    words: str
    forms: Mapping[str, str]
    given: str = ""


def form_of(model: Model) -> str:
    """The form of a model as it is; empty for formats that no pass declares.

    Raises:
        ModelError: its file is damaged.
    """
    changed = model.manifest.quantization is not None
    if model.manifest.format == "openvino":
        return "openvino-int8" if changed else "openvino"
    if model.manifest.format != "onnx":
        return model.manifest.format if model.manifest.format in WORDS else ""
    if changed or any(node.op_type in QUANTIZED for node in graph.nodes(graph.load(model.file).graph)):
        return "reduced"
    return "float"


def check_order(steps: Sequence[Step], model: Model, cache: Cache | None = None) -> None:
    """Refuse a chain in which a pass would get what it cannot take, or what it would spoil.

    Passes that declare no ``forms`` may stand anywhere, and what they give is not known.

    Args:
        model: what the first step is given.
        cache: keeps the form of that model.

    Raises:
        ConfigError: the chain makes no sense; the message names the step, why, and what to do.
        PluginError, NotInstalled: as `farthing.plugins.get`.
        ModelError: the model's file is damaged.
    """
    chain = [_Link(f"step {n}, {step.use}", _forms(step)) for n, step in enumerate(steps, 1)]
    if not any(link.forms for link in chain):
        return
    form = cache.value(key_of("form", model.digest), str, lambda: form_of(model)) if cache else form_of(model)
    maker: _Link | None = None
    for link in chain:
        if form and link.forms and form not in link.forms:
            raise ConfigError(_refusal(link, form, maker))
        after = _given(link.forms, form)
        if after != form:
            maker = link._replace(given=form)
        form = after


def _forms(step: Step) -> Mapping[str, str]:
    found: Mapping[str, str] = getattr(plugins.get("pass", step.use), "forms", {})
    return found


def _given(forms: Mapping[str, str], form: str) -> str:
    """The form that a pass gives; empty if it is not known."""
    possible = {forms[form]} if form in forms else set(forms.values())
    return possible.pop() if len(possible) == 1 else ""


def _refusal(link: _Link, form: str, maker: _Link | None) -> str:
    """Why a step cannot stand where it stands, and where it could."""
    taken = "an ONNX model" if "int8" in link.forms else WORDS[next(iter(link.forms))]
    if maker is None:
        advice = "give the float model that it was made from"
        return f"{link.words}, takes {taken}, and the model as given is {WORDS[form]}: {advice}"
    if form in NARROW and {*link.forms.values()} <= NARROW:
        return f"{link.words}, quantizes what {maker.words}, has quantized already: leave one of the two out"
    between = link.forms.get(maker.given, "")
    swapped = between in maker.forms if between and maker.forms else False
    advice = "put it before that step" if swapped else "leave one of the two out"
    return f"{link.words}, takes {taken}, and {maker.words}, gives {WORDS[form]}: {advice}"
