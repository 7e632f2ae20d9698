"""Model directories and bundles: what is written opens again; what was tampered with does not."""

from __future__ import annotations

import gc
import json
import os
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing import files
from farthing.bundle import Bundle
from farthing.config import canonical, convert, plain
from farthing.errors import ConfigError, ModelError, StorageError
from farthing.model import (
    Manifest,
    Model,
    Preprocess,
    Quantization,
    Resize,
    TensorSpec,
    checked,
    read_manifest,
)
from farthing.testing import fake_model

X = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 224, "width"), batch_axis=0, layout="NCHW")
Y = TensorSpec(name="y", dtype="float32", shape=("batch", 10), batch_axis=0)
RESIZE = Resize(height=256, width=256, filter="bilinear", antialias=True, mode="cover")
FULL = Manifest(
    name="net",
    version="2.1",
    format="onnx",
    inputs=(X, TensorSpec(name="h", dtype="float16", shape=(1, 8), role="state", batch_axis=0)),
    outputs=(Y, TensorSpec(name="h_next", dtype="float16", shape=(1, 8), role="state", batch_axis=0)),
    preprocess=Preprocess(
        colour="RGB", scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2,), resize=RESIZE, crop=(224, 224)
    ),
    requires=("avx512_vnni",),
    task="mnist-5k",
    decode="logits",
    labels=tuple("0123456789"),
    quantization=Quantization(
        scheme="static", weights="int8", activations="uint8", per_channel=True, excluded=("a", "b")
    ),
    lineage=("torch.export", "graph.fuse.v1"),
    licence="Apache-2.0",
)


def model_at(path: Path, content: dict[str, bytes] | None = None, **changes: Any) -> Model:
    return Model.create(
        checked(FULL, **changes), dict(content or {"net.onnx": b"graph", "net.bin": b"weights"}), path
    )


# --- round trips


def test_a_model_opens_as_it_was_written(tmp_path: Path) -> None:
    made = model_at(tmp_path / "m")
    opened = Model.open(tmp_path / "m")
    assert opened.manifest == made.manifest == checked(FULL, files=made.manifest.files)
    assert opened.digest == made.digest
    assert opened.file == tmp_path / "m" / "net.onnx"
    assert opened.file.read_bytes() == b"graph"
    assert opened.size_bytes == len(b"graph" + b"weights")
    assert made.manifest.files == {"net.onnx": files.digest(b"graph"), "net.bin": files.digest(b"weights")}
    assert sorted(os.listdir(tmp_path / "m")) == ["manifest.json", "net.bin", "net.onnx"]


def test_a_zip_is_the_same_model_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    made = model_at(tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("beside it")
    made.pack(tmp_path / "one.zip")
    Model.open(tmp_path / "one.zip").pack(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    opened = Model.open(tmp_path / "one.zip")
    assert opened.digest == made.digest
    assert sorted(os.listdir(opened.path)) == ["manifest.json", "net.bin", "net.onnx"]


def test_whole_numbers_do_not_change_the_digest(tmp_path: Path) -> None:
    made = model_at(tmp_path / "m", preprocess=Preprocess(colour="GRAY", scale=1, mean=(0,), std=(2,)))
    assert Model.open(tmp_path / "m").digest == made.digest


def test_a_saved_copy_is_the_same_model(tmp_path: Path) -> None:
    made = model_at(tmp_path / "m")
    assert made.save(tmp_path / "deep" / "copy").digest == made.digest
    assert made.save(tmp_path / "m").digest == made.digest
    assert Model.open(tmp_path / "m").digest == made.digest


def test_a_temporary_model_lives_as_long_as_someone_holds_it() -> None:
    model = fake_model()
    path = model.path
    assert Model.open(path).digest == model.digest
    del model
    gc.collect()
    assert not path.exists()


def test_the_digest_covers_manifest_content_and_which_file_comes_first() -> None:
    base = model_at_temporary()
    assert base.digest == model_at_temporary().digest
    others = [
        model_at_temporary(content={"net.onnx": b"graph", "net.bin": b"weighty"}),
        model_at_temporary(content={"net.bin": b"weights", "net.onnx": b"graph"}),
        model_at_temporary(name="other"),
        model_at_temporary(preprocess=None),
        model_at_temporary(labels=tuple("1023456789")),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 6


def model_at_temporary(content: dict[str, bytes] | None = None, **changes: Any) -> Model:
    return Model.create(
        checked(FULL, **changes), dict(content or {"net.onnx": b"graph", "net.bin": b"weights"})
    )


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
sizes = st.integers(0, 9) | names
specs = st.builds(
    TensorSpec,
    name=names,
    dtype=st.sampled_from(["float32", "uint8", "bool", "str"]),
    shape=st.lists(sizes, max_size=4).map(tuple),
    role=st.sampled_from(["data", "parameter"]),
    layout=names,
)
manifests = st.builds(
    Manifest,
    name=names,
    format=names,
    inputs=st.lists(specs, max_size=3, unique_by=lambda spec: spec.name).map(tuple),
    outputs=st.lists(specs, max_size=3, unique_by=lambda spec: spec.name).map(tuple),
    labels=st.lists(names, max_size=3).map(tuple),
    lineage=st.lists(names, max_size=3).map(tuple),
    licence=names,
)


@given(manifests)
def test_any_manifest_survives_the_disk(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> None:
    path = tmp_path_factory.mktemp("any") / "m"
    made = Model.create(manifest, {"f": b"x"}, path)
    assert read_manifest(path) == made.manifest
    assert Model.open(path).digest == made.digest


# --- what a manifest may not say


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": [plain(X), plain(X)]}, "two inputs have the same name"),
        ({"outputs": [plain(Y), plain(Y)]}, "two outputs have the same name"),
        ({"inputs": [{**plain(X), "dtype": "flaot32"}]}, "no dtype is called 'flaot32'; did you mean 'float32'"),
        ({"inputs": [{**plain(X), "batch_axis": 4}]}, "tensor x: batch_axis 4 is outside"),
        ({"inputs": [{**plain(X), "batch_axis": -1}]}, "batch_axis -1 is outside"),
        ({"inputs": [{**plain(X), "shape": ["batch", -1]}]}, "sizes are whole numbers from 0 or names"),
        ({"inputs": [{**plain(X), "shape": ["batch", ""]}]}, "sizes are whole numbers from 0 or names"),
        ({"inputs": [{**plain(X), "role": "states"}]}, "'states' at .*; did you mean 'state'"),
        ({"outputs": [plain(Y)]}, r"state outputs \[\] do not feed the state inputs \['h'\]"),
        ({"preprocess": {"colour": "RGB", "scale": 1, "mean": [1, 2]}}, "mean has 2 values, but RGB has 3 channels"),
        ({"preprocess": {"colour": "GRAY", "scale": 1, "std": [1, 1, 1]}}, "std has 3 values, but GRAY has 1"),
        ({"preprocess": {"colour": "GRAY", "scale": 0}}, "scale and every std must be above 0"),
        ({"preprocess": {"colour": "GRAY", "scale": 1, "std": [0]}}, "scale and every std must be above 0"),
        ({"preprocess": {"colour": "GRAY"}}, "missing required field `scale`"),
        ({"preprocess": {"colour": "GREY", "scale": 1}}, "'GREY' at preprocess.colour .* did you mean 'GRAY'"),
        ({"preprocess": {"colour": "GRAY", "scale": 1, "crop": [0, 3]}}, "crop must be from 1"),
        ({"preprocess": {"colour": "GRAY", "scale": 1, "resize": {**plain(RESIZE), "height": 0}}}, "height and width"),
        ({"preprocess": {"colour": "GRAY", "scale": 1, "resize": {**plain(RESIZE), "fill": 256}}}, "fill must be"),
        ({"preprocess": {"colour": "RGB", "scale": 1, "resize": {"height": 1, "width": 1}}}, "missing required field"),
        ({"labells": []}, "unknown key 'labells'; did you mean 'labels'"),
        ({"files": {"../evil": "0" * 64}}, "'../evil' is not a plain file name"),
        ({"files": {"manifest.json": "0" * 64}}, "not a plain file name"),
        ({"files": {".hidden": "0" * 64}}, "not a plain file name"),
        ({"files": {"a\n": "0" * 64}}, "not a plain file name"),
        ({"files": {"a": "0" * 63 + "X"}}, "the hash of a is not a SHA-256"),
        ({"files": {"a": ""}}, "the hash of a is not a SHA-256"),
    ],
)  # fmt: skip
def test_manifests_that_contradict_themselves(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert({**plain(FULL), **change}, Manifest, "manifest.json")


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorSpec(name="x", dtype="flaot32", shape=(1,)),
        lambda: Resize(height=0, width=1, filter="box", antialias=True),
        lambda: Preprocess(colour="GRAY", scale=0),
        lambda: Manifest(name="m", format="fake", inputs=(X, X), outputs=()),
    ],
)
def test_what_is_made_wrong_in_python_is_an_error_of_ours(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert isinstance(caught.value, ValueError), "whoever reads it from plain data is told its place"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_in_a_preprocess(value: float) -> None:
    for wrong in ({"scale": value}, {"scale": 1.0, "mean": (value,)}, {"scale": 1.0, "std": (value,)}):
        with pytest.raises(ValueError, match="must be"):
            Preprocess(colour="GRAY", **wrong)  # type: ignore[arg-type]


def test_sizes_of_a_spec() -> None:
    assert X.sized(8, free=2) == (8, 3, 224, 2)
    assert X.fixed_batch is None
    assert TensorSpec(name="x", dtype="int8", shape=(4, "n"), batch_axis=0).fixed_batch == 4
    assert TensorSpec(name="x", dtype="int8", shape=("n",)).sized(8) == (1,)


def test_data_inputs_leave_state_out() -> None:
    assert [spec.name for spec in FULL.data_inputs] == ["x"]


# --- damage and attacks


def test_a_changed_missing_or_linked_file_is_named(tmp_path: Path) -> None:
    model_at(tmp_path / "m")
    weights = tmp_path / "m" / "net.bin"
    weights.write_bytes(b"weighty")
    with pytest.raises(ModelError, match=r"net.bin is not the file its manifest names \(SHA-256 differs\)"):
        Model.open(tmp_path / "m")
    weights.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"lacks the file net.bin"):
        Model.open(tmp_path / "m")
    (tmp_path / "elsewhere").write_bytes(b"weights")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"lacks the file net.bin"):
        Model.open(tmp_path / "m")


def test_a_file_changed_after_opening_is_not_saved_as_if_it_were_right(tmp_path: Path) -> None:
    model = model_at(tmp_path / "m")
    (tmp_path / "m" / "net.bin").write_bytes(b"weighty")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        model.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_file_changed_while_it_is_copied_is_not_saved_as_if_it_were_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, verify = model_at(tmp_path / "m"), Model.verify

    def verify_then_change(self: Model) -> None:
        verify(self)
        (tmp_path / "m" / "net.bin").write_bytes(b"weighty")

    monkeypatch.setattr(Model, "verify", verify_then_change)
    with pytest.raises(ModelError, match=r"net.bin changed while it was copied"):
        model.save(tmp_path / "copy")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "m"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field"),
        (b'{"name": "a", "name": "b"}', "the key 'name' is given twice"),
        (b"[" * 100_000, "nested too deeply"),
        (pickle.dumps({}), "not valid JSON"),
    ],
)
def test_a_manifest_that_cannot_be_read(tmp_path: Path, text: bytes, message: str) -> None:
    model_at(tmp_path / "m")
    (tmp_path / "m" / "manifest.json").write_bytes(text)
    with pytest.raises(ModelError, match=message):
        Model.open(tmp_path / "m")


def test_a_manifest_too_large_to_read(tmp_path: Path) -> None:
    model_at(tmp_path / "m")
    with (tmp_path / "m" / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="too large for a manifest"):
        Model.open(tmp_path / "m")


def test_places_that_hold_no_model(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            ModelError, match=r"is not a model: it has no manifest.json; give the directory that"
        ):
            Model.open(path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ModelError, match="is not a model"):
        Model.open(tmp_path)


def test_an_empty_manifest_is_no_model(tmp_path: Path) -> None:
    model_at(tmp_path / "m")
    (tmp_path / "m" / "manifest.json").write_bytes(canonical(FULL))
    with pytest.raises(ModelError, match="names no files"):
        Model.open(tmp_path / "m")


@pytest.mark.parametrize("content", [b"", b"\x08\x08\x12\x07pytorch", pickle.dumps({"weights": 1}), b"text"])
def test_a_file_that_is_no_model_says_how_to_make_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"neither a model directory nor a zip of one; .*farthing convert"):
        Model.open(tmp_path / "net.onnx")


class Bomb:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.trace),))


def test_a_pickle_dressed_as_a_model_is_never_loaded(tmp_path: Path) -> None:
    data = pickle.dumps(Bomb(tmp_path / "trace"))
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as zipped:
        zipped.writestr("archive/data.pkl", data)
    with pytest.raises(ModelError, match="is a zip, but not of a model"):
        Model.open(tmp_path / "net.pt")
    model_at(tmp_path / "m")
    (tmp_path / "m" / "manifest.json").write_bytes(data)
    with pytest.raises(ModelError):
        Model.open(tmp_path / "m")
    assert not (tmp_path / "trace").exists()


def test_an_unsafe_zip_is_refused(tmp_path: Path) -> None:
    model_at(tmp_path / "m").pack(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip", "a") as zipped:
        zipped.writestr("../evil", b"x")
    with pytest.raises(StorageError, match="unsafe name"):
        Model.open(tmp_path / "m.zip")


# --- writing


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/b", "", ".", "..", "manifest.json", "bundle.json", ".tmp-a", "ü"]
)
def test_names_of_files_are_checked_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="is not a plain name"):
        model_at(tmp_path / "m", content={name: b"x"})
    assert os.listdir(tmp_path) == []


def test_a_model_has_files_and_they_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="at least one file"):
        Model.create(FULL, {}, tmp_path / "m")
    with pytest.raises(ModelError, match=r"there is no file .*absent"):
        Model.create(FULL, {"net": tmp_path / "absent"}, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_nobody_else_s_directory_is_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(
        StorageError, match=r"is not empty and holds no manifest.json: choose another directory"
    ):
        model_at(home)
    with pytest.raises(StorageError, match=r"holds no bundle.json"):
        Bundle.create("b", "parts", {"a": fake_model()}, home)
    assert os.listdir(home) == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    model_at(tmp_path / "empty")
    model_at(tmp_path / "empty", name="again")
    assert Model.open(tmp_path / "empty").manifest.name == "again"


def test_a_reader_meanwhile_sees_one_model_or_the_other(tmp_path: Path) -> None:
    """Twenty times the directory is replaced while another thread opens it; opening may race, content may not mix."""
    path = tmp_path / "m"
    model_at(path, name="n0", content={"a.bin": b"0"})
    done = threading.Event()
    problems: list[str] = []

    def read() -> None:
        while not done.is_set():
            try:
                found = read_manifest(path)
            except ModelError as error:
                problems.append(str(error))
            else:
                if found.files["a.bin"] != files.digest(found.name[1:].encode()):
                    problems.append(f"mixed: {found}")

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(1, 20):
        model_at(path, name=f"n{i}", content={"a.bin": str(i).encode()})
    done.set()
    thread.join()
    assert problems == []


# --- bundles


def test_a_bundle_opens_as_it_was_written(tmp_path: Path) -> None:
    parts = {"head": fake_model(seed=1), "tail": fake_model(seed=2)}
    made = Bundle.create("split", "head_tail", parts, tmp_path / "b")
    opened = Bundle.open(tmp_path / "b")
    assert opened.manifest == made.manifest
    assert list(opened.models) == ["head", "tail"]
    assert {key: model.digest for key, model in opened.models.items()} == {
        k: m.digest for k, m in parts.items()
    }


def test_a_bundle_whose_parts_were_exchanged_is_refused(tmp_path: Path) -> None:
    Bundle.create("pair", "variants", {"a": fake_model(seed=1), "b": fake_model(seed=2)}, tmp_path / "b")
    fake_model(seed=3).save(tmp_path / "b" / "a")
    with pytest.raises(ModelError, match="is not the model that was bundled"):
        Bundle.open(tmp_path / "b")


@pytest.mark.parametrize("name", ["../a", "a/b", "", "bundle.json", "."])
def test_names_in_a_bundle_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="not a plain name"):
        Bundle.create("b", "parts", {name: fake_model()}, tmp_path / "b")
    (tmp_path / "c").mkdir()
    text = json.dumps({"name": "b", "role": "parts", "models": {name: "0" * 64}})
    (tmp_path / "c" / "bundle.json").write_text(text)
    with pytest.raises(ModelError, match="unsafe name"):
        Bundle.open(tmp_path / "c")


def test_bundles_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no models"):
        Bundle.create("b", "parts", {}, tmp_path / "b")
    with pytest.raises(ModelError, match=r"it has no bundle.json"):
        Bundle.open(tmp_path)
    (tmp_path / "bundle.json").write_text('{"name": "b", "role": "parts", "models": {}}')
    with pytest.raises(ModelError, match="the bundle is empty"):
        Bundle.open(tmp_path)


def test_fake_models_are_the_same_for_the_same_seed() -> None:
    assert fake_model(seed=1).digest == fake_model(seed=1).digest != fake_model(seed=2).digest
    labelled = fake_model(outputs=2, labels=("no", "yes"), decode="logits")
    assert labelled.manifest.labels == ("no", "yes")
    assert msgspec.structs.replace(labelled.manifest, labels=(), decode="").labels == ()


def test_other_peoples_decoders_and_schemes_are_kept_as_they_are_named(tmp_path: Path) -> None:
    """Known where they are used: a model can be opened without the package that decodes it."""
    own = Quantization(scheme="theirs.int4", weights="int4", activations="float32")
    model = fake_model()
    manifest = msgspec.structs.replace(model.manifest, decode="theirs.yolo", quantization=own)
    Model.create(manifest, {name: model.path / name for name in manifest.files}, tmp_path / "m")
    found = Model.open(tmp_path / "m").manifest
    assert (found.decode, found.quantization) == ("theirs.yolo", own)
