"""Outputs to predictions and detections."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from farthing import plugins
from farthing.config import plain
from farthing.errors import ConfigError, ModelError
from farthing.ops.decode import Detections, Prediction, classify, decode, detections, softmax

torch = pytest.importorskip("torch")  # absent where the lowest versions are run

LOGITS = arrays.arrays(
    np.float32, st.tuples(st.integers(0, 4), st.integers(1, 12)), elements=st.floats(-1e4, 1e4, width=32)
)


@given(LOGITS)
def test_softmax_is_torchs_and_never_overflows(logits: np.ndarray[Any, Any]) -> None:
    expected = torch.from_numpy(logits.astype(np.float64)).softmax(-1).numpy()
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-12, atol=0)


@given(LOGITS, st.integers(1, 15), st.booleans())
def test_classes_come_best_first(logits: np.ndarray[Any, Any], top: int, named: bool) -> None:
    classes = logits.shape[1]
    labels = [f"label {index}" for index in range(classes)] if named else []
    predictions = classify(logits, "logits", labels, top)
    assert len(predictions) == len(logits)
    for row, prediction in zip(logits, predictions, strict=True):
        assert len(prediction.labels) == len(prediction.scores) == min(top, classes)
        assert sorted(prediction.scores, reverse=True) == list(prediction.scores)
        chosen = [int(label.removeprefix("label ")) for label in prediction.labels]
        assert row[chosen].tolist() == sorted(row.tolist(), reverse=True)[:top]
        if top >= classes:
            assert sum(prediction.scores) == pytest.approx(1)


def test_probabilities_are_taken_as_they_are() -> None:
    output = np.array([[0.25, 0.5, 0.25, 0.0]], np.float32)
    (prediction,) = classify(output, "probabilities", ["a", "b", "c", "d"], top=3)
    assert prediction.labels == ("b", "a", "c")  # equal scores keep the order of the labels
    assert prediction.scores == (0.5, 0.25, 0.25)
    assert plain(prediction) == {"labels": ("b", "a", "c"), "scores": (0.5, 0.25, 0.25)}


def test_axes_of_size_one_after_the_classes_are_no_harm() -> None:
    assert classify(np.array([[1.0, 3.0]])[:, :, None, None])[0].labels == ("1", "0")


@pytest.mark.parametrize(
    "output", [np.zeros(3), np.zeros((2, 3, 2)), np.zeros((2, 0)), np.array(1.0), np.zeros((1, 3, 4, 4))]
)
def test_an_output_that_is_not_one_score_per_class(output: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ModelError, match=r"is not \[samples, classes\]"):
        classify(output)


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="has 2 labels, but the model gives 3 scores"):
        classify(np.zeros((1, 3)), labels=["a", "b"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers(bad: float) -> None:
    with pytest.raises(ModelError, match="holds NaN or infinite"):
        classify(np.array([[0.0, bad]]))


def test_a_class_that_is_ruled_out_is_fine() -> None:
    assert classify(np.array([[0.0, -np.inf]]))[0].scores == (1.0, 0.0)


def test_top_is_at_least_one() -> None:
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        classify(np.zeros((1, 3)), top=0)


def found() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "boxes": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "scores": np.array([[0.2, 0.9, 0.0], [0.0, -1.0, 0.0]], np.float32),
        "classes": np.array([[0, 5, 0], [0, 0, 0]], np.int64),
    }


def test_detections_are_sorted_and_padding_is_dropped() -> None:
    first, second = decode("detections", found(), ["cat", "dog"])
    assert isinstance(first, Detections)
    assert isinstance(second, Detections)
    assert first.scores.tolist() == pytest.approx([0.9, 0.2])
    assert first.boxes.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert [first.label(index) for index in range(len(first))] == ["5", "cat"]
    assert len(second) == 0
    assert second.boxes.shape == (0, 4)


@given(st.integers(0, 8), st.integers(0, 8))
def test_detections_are_cut_like_arrays(count: int, cut: int) -> None:
    rng = np.random.default_rng(count)
    boxes = rng.random((count, 4), dtype=np.float32)
    whole = Detections(boxes, rng.random(count, dtype=np.float32), np.arange(count), ("a", "b"))
    mask = whole.scores > 0.5
    assert whole[mask].classes.tolist() == np.arange(count)[mask].tolist()
    assert whole[:cut].boxes.tolist() == boxes[:cut].tolist()
    assert whole[np.argsort(whole.scores)].labels == ("a", "b")


def test_detections_of_different_lengths_are_refused() -> None:
    with pytest.raises(ModelError, match="do not belong together"):
        Detections(np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.zeros(2, np.int64))


def test_outputs_that_are_no_detections() -> None:
    with pytest.raises(ModelError, match=r"missing: \['classes'\]"):
        detections({key: value for key, value in found().items() if key != "classes"})
    with pytest.raises(ModelError, match=r"they should be \[samples, n, 4\]"):
        detections({**found(), "scores": np.zeros((2, 4), np.float32)})


def test_an_unknown_decoder() -> None:
    with pytest.raises(ModelError, match="did you mean 'logits'"):
        decode("logit", found(), [])


def test_the_first_output_is_the_one_with_the_classes() -> None:
    outputs = {"scores": np.array([[1.0, 2.0]]), "features": np.zeros((1, 7))}
    (prediction,) = decode("logits", outputs, ["a", "b"], top=1)
    assert isinstance(prediction, Prediction)
    assert prediction.labels == ("b",)


def test_a_decoder_of_ones_own_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_registered", {})

    def sign(outputs: Any, labels: Any, top: int) -> list[Prediction]:
        rows = next(iter(outputs.values()))[:, 0]
        return [Prediction(labels=(labels[int(row > 0)],), scores=(1.0,)) for row in rows]

    plugins.register("decoder", "mine.sign", sign)
    found = decode("mine.sign", {"x": np.array([[-2.0], [3.0]])}, ["no", "yes"])
    assert [prediction.labels for prediction in found] == [("no",), ("yes",)]
    with pytest.raises(ModelError, match=r"'mine\.sing'; did you mean 'mine\.sign'.*install or register"):
        decode("mine.sing", {"x": np.zeros((1, 1))}, [])
