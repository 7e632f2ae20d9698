"""TensorFlow Serving's REST interface against a small server that answers as its documentation says."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import Array, spec
from rows.serving import Hosted, Server, Told, said

from farthing.engines.base import Engine, open_engine
from farthing.engines.oip import remote_model
from farthing.errors import FeedError, ModelError, RemoteError
from farthing.model import Model, TensorSpec

TYPES = {"float32": "DT_FLOAT", "float64": "DT_DOUBLE", "int64": "DT_INT64", "uint8": "DT_UINT8"}
TYPES |= {"bool": "DT_BOOL", "str": "DT_STRING", "int32": "DT_INT32"}
DTYPES = {name: np.dtype(object if dtype == "str" else dtype) for dtype, name in TYPES.items()}


class TensorFlow(Server):
    """``GET /v1/models/NAME/metadata`` and ``POST /v1/models/NAME:predict``, rows and columns."""

    def answer(self, path: str, body: bytes, headers: Any) -> Told:
        name, _, verb = path.removeprefix("/v1/models/").partition(":")
        name, *rest = name.split("/")
        model = self.models.get(name)
        if model is None:
            return said({"error": f"Servable not found for request: Latest({name})"}, 404)
        if verb != "predict":
            return said(metadata(model)) if rest[-1:] == ["metadata"] else said({"error": "Malformed"}, 400)
        asked = json.loads(body)
        if ("instances" in asked) == ("inputs" in asked):
            return said({"error": "give instances or inputs"}, 400)
        return written(model, asked)


def metadata(model: Hosted) -> dict[str, Any]:
    def tensors(specs: Any) -> dict[str, Any]:
        return {
            one.name: {
                "dtype": TYPES[one.dtype],
                "tensor_shape": {
                    "dim": [{"size": str(-1 if isinstance(s, str) else s), "name": ""} for s in one.shape],
                    "unknown_rank": False,
                },
                "name": f"serving_default_{one.name}:0",
            }
            for one in specs
        }

    signature = {
        "inputs": tensors(model.inputs),
        "outputs": tensors(model.outputs),
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": "m", "signature_name": "", "version": "1"},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }


def written(model: Hosted, asked: Mapping[str, Any]) -> Told:
    """What a model answers: in rows to rows, in columns to columns; the name of a single output is left out."""
    rows = asked.get("instances")
    given = asked.get("inputs")
    if rows is not None:
        single = len(model.inputs) == 1
        given = {one.name: rows if single else [row[one.name] for row in rows] for one in model.inputs}
    outputs = model.compute(
        {one.name: np.array(given[one.name], DTYPES[TYPES[one.dtype]]) for one in model.inputs}
    )
    lists = {name: array.tolist() for name, array in outputs.items()}
    if rows is None:
        content: Any = {"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}
    elif len(lists) == 1:
        content = {"predictions": next(iter(lists.values()))}
    else:
        values = zip(*lists.values(), strict=True)
        content = {"predictions": [dict(zip(lists, row, strict=True)) for row in values]}
    return said(content)


@pytest.fixture
def server() -> Iterator[TensorFlow]:
    with TensorFlow() as running:
        yield running


def hosted(
    server: Server, inputs: list[TensorSpec], outputs: list[TensorSpec], compute: Any, **settings: Any
) -> Model:
    server.models["m"] = Hosted(inputs, outputs, compute)
    return remote_model(f"{server.url}/v1/models/m", **settings)


def sum_and_product(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"product": feeds["a"] * feeds["b"], "sum": feeds["a"] + feeds["b"]}


A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 2, np.float32)


def test_one_input_and_one_output_go_in_rows_without_names(server: TensorFlow) -> None:
    model = hosted(
        server, [spec("x", "batch", 3)], [spec("y", "batch", 3)], lambda feeds: {"y": feeds["x"] / 2 + 3}
    )
    assert model.manifest.inputs == (spec("x", "batch", 3),)
    with open_engine(model) as engine:
        np.testing.assert_array_equal(engine.run({"x": A})["y"], A / 2 + 3)
        assert engine.version == "TensorFlow Serving"
    path, _, body = server.seen[-1]
    assert path == "/v1/models/m:predict"
    assert json.loads(body) == {"instances": A.tolist()}


def test_several_go_in_rows_of_objects(server: TensorFlow) -> None:
    model = hosted(
        server,
        [spec("a", "batch", 3), spec("b", "batch", 3)],
        [spec("product", "batch", 3), spec("sum", "batch", 3)],
        sum_and_product,
        version="7",
    )
    with open_engine(model) as engine:
        results = engine.run({"b": B, "a": A})
    np.testing.assert_array_equal(results["product"], A * B)
    np.testing.assert_array_equal(results["sum"], A + B)
    assert json.loads(server.seen[-1][2])["instances"][1] == {"a": [3, 4, 5], "b": [2, 2, 2]}


@pytest.mark.parametrize("outputs", [("product", "sum"), ("sum",)])
def test_tensors_without_a_batch_go_by_name(outputs: tuple[str, ...], server: TensorFlow) -> None:
    model = hosted(
        server,
        [spec("a", 2, 3, batch_axis=None), spec("b", batch_axis=None)],
        [spec(name, 2, 3, batch_axis=None) for name in outputs],
        lambda feeds: {name: sum_and_product(feeds)[name] for name in outputs},
    )
    with open_engine(model) as engine:
        results = engine.run({"a": A, "b": np.array(2, np.float32)})
    np.testing.assert_array_equal(results["sum"], A + 2)
    assert set(results) == set(outputs)
    assert json.loads(server.seen[-1][2]) == {"inputs": {"a": A.tolist(), "b": 2.0}}


def test_versions_and_signatures(server: TensorFlow) -> None:
    server.models["m"] = Hosted([spec("x", "batch", 3)], [spec("y", "batch", 3)], lambda f: {"y": f["x"]})
    url = f"{server.url}/v1/models/m/versions/3"
    with pytest.raises(RemoteError, match="no signature 'serving'; did you mean 'serving_default'"):
        remote_model(url, signature="serving")
    with open_engine(remote_model(url)) as engine:
        engine.run({"x": A})
    assert [path for path, _, _ in server.seen[-2:]] == [
        "/v1/models/m/versions/3/metadata",
        "/v1/models/m/versions/3:predict",
    ]
    with pytest.raises(RemoteError, match=r"HTTP 404: Servable not found for request: Latest\(n\)"):
        remote_model(f"{server.url}/v1/models/n")


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float32", [[1.5, float("nan")], [float("inf"), -float("inf")]]),
        ("float64", [[1e300, -0.1], [5e-324, 3]]),
        ("int64", [[2**63 - 1, -(2**63)], [0, 1]]),
        ("uint8", [[0, 255], [1, 2]]),
        ("bool", [[True, False], [False, True]]),
        ("str", [["a", "bé"], ["", "\n"]]),
    ],
)
def test_types_go_through_unchanged(dtype: str, values: Any, server: TensorFlow) -> None:
    model = hosted(
        server,
        [spec("x", "batch", 2, dtype=dtype)],
        [spec("y", "batch", 2, dtype=dtype)],
        lambda feeds: {"y": feeds["x"]},
    )
    x = np.array(values, object if dtype == "str" else dtype)
    with open_engine(model) as engine:
        y = engine.run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def test_texts_in_base_64(server: TensorFlow) -> None:
    text = [spec("t_bytes", "batch", dtype="str")]
    with open_engine(hosted(server, text, text, lambda feeds: feeds)) as engine:
        server.told = [said({"predictions": [{"b64": base64.b64encode("é".encode()).decode()}, "b"]})]
        assert engine.run({"t_bytes": np.array(["x", "y"], object)})["t_bytes"].tolist() == ["é", "b"]
        for wrong in ("*", base64.b64encode(b"\xff").decode()):
            server.told = [said({"predictions": [{"b64": wrong}, "b"]})]
            with pytest.raises(RemoteError, match="no text in base 64"):
                engine.run({"t_bytes": np.array(["x", "y"], object)})


WRONG: list[Any] = [
    b"",
    b"{",
    b"[]",
    b"3",
    b"[" * 100_000,
    b'{"predictions": ' + b"[" * 100_000,
    b'{"predictions": [' + b"9" * 10_000 + b"]}",
    {"outputs": [[1, 2, 3]] * 2},
    {"predictions": 3},
    {"predictions": []},
    {"predictions": [[1, 2, 3]]},
    {"predictions": [[1, 2, 3]] * 3},
    {"predictions": [[1, 2], [1, 2, 3]]},
    {"predictions": [1, 2]},
    {"predictions": [[[1], [2], [3]]] * 2},
    {"predictions": [["1", "2", "3"]] * 2},
    {"predictions": [[True, False, True]] * 2},
    {"predictions": [[1, 2, None]] * 2},
    {"predictions": [[1, 2, 1e39]] * 2},
    {"predictions": [{"z": [1, 2, 3]}] * 2},
    {"predictions": [{"y": [1, 2, 3]}, {"z": [1, 2, 3]}]},
    {"predictions": [{"y": [1, 2, 3]}, [1, 2, 3]]},
    {"error": "out of memory"},
]


@pytest.mark.parametrize("answer", WRONG, ids=lambda answer: str(answer)[:40])
def test_an_answer_that_is_not_the_model_s_is_refused(answer: Any, server: TensorFlow) -> None:
    model = hosted(server, [spec("x", "batch", 3)], [spec("y", "batch", 3)], lambda feeds: {"y": feeds["x"]})
    with open_engine(model) as engine:
        server.told = [Told(200, answer) if isinstance(answer, bytes) else said(answer)]
        with pytest.raises(RemoteError):
            engine.run({"x": A})
        np.testing.assert_array_equal(engine.run({"x": A})["y"], A)


def test_rows_with_the_name_of_a_single_output_are_understood(server: TensorFlow) -> None:
    """As some servers of KServe's first protocol write them."""
    model = hosted(server, [spec("x", "batch", 3)], [spec("y", "batch", 3)], lambda feeds: {"y": feeds["x"]})
    with open_engine(model) as engine:
        server.told = [said({"predictions": [{"y": row} for row in A.tolist()]})]
        np.testing.assert_array_equal(engine.run({"x": A})["y"], A)


@pytest.fixture(scope="module")
def answering() -> Iterator[tuple[TensorFlow, Engine]]:
    with TensorFlow() as running:
        model = hosted(
            running,
            [spec("x", "batch", 3)],
            [spec("y", "batch", 3), spec("z", "batch", dtype="str")],
            lambda feeds: {"y": feeds["x"]},
            breaker={"failures": 0},
        )
        with open_engine(model) as engine:
            yield running, engine


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["y", "z", "b64"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["predictions", "outputs"]), VALUES) | VALUES)
def test_any_json_fits_or_is_refused(answering: tuple[TensorFlow, Engine], content: Any) -> None:
    server, engine = answering
    server.told = [said(content)]
    with pytest.raises(RemoteError):  # an answer that fits is not found by chance
        engine.run({"x": A})


def test_manifests_are_held_against_the_signature(server: TensorFlow) -> None:
    model = hosted(server, [spec("x", "batch", 3)], [spec("y", "batch", 3)], lambda feeds: {"y": feeds["x"]})
    server.models["m"] = server.models["m"]._replace(outputs=[spec("y", "batch", 4)])
    with pytest.raises(ModelError, match="the manifest declares 'y'"):
        open_engine(model)
    server.models["m"] = server.models["m"]._replace(outputs=[spec("y", "batch", 3)])
    with open_engine(model) as engine, pytest.raises(FeedError):
        engine.run({"x": A[:, :2]})


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "DT_VARIANT"},
        {"dtype": 3},
        {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "many"}]}},
    ],
)
def test_metadata_that_is_not_understood(tensor: Any, server: TensorFlow) -> None:
    signatures = {"serving_default": {"inputs": {"x": tensor}}}
    server.told = [said({"metadata": {"signature_def": {"signature_def": signatures}}})]
    with pytest.raises(RemoteError):
        remote_model(f"{server.url}/v1/models/m")
    signatures["serving_default"]["inputs"]["x"] = {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"unknown_rank": True},
    }
    server.told = [said({"metadata": {"signature_def": {"signature_def": signatures}}})]
    with pytest.raises(ModelError, match="does not say which tensors"):
        remote_model(f"{server.url}/v1/models/m")
