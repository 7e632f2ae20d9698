"""Modules to ONNX: what comes out equals what went in, and errors name the operator that is to blame."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from farthing.errors import ConfigError, ConversionError, ModelError, UnsupportedError
from farthing.forge.convert import Conversion, convert
from farthing.forge.graph import run
from farthing.model import Manifest, Model, Preprocess, TensorSpec


class Small(nn.Module):
    """Two convolutions, a normalisation that is folded away, and a head."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.middle = middle or nn.Identity()
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.first(x)))
        out: torch.Tensor = self.head(self.middle(x).mean((2, 3)))
        return out


def answers(conversion: Conversion, *inputs: Any) -> list[Any]:
    specs = conversion.model.manifest.inputs
    feeds = {spec.name: np.asarray(x) for spec, x in zip(specs, inputs, strict=True)}
    return list(run(onnx.load(conversion.model.file), feeds).values())


def test_a_module_becomes_a_checked_model(tmp_path: Path) -> None:
    made = convert(Small(), name="small", example="1x3x8x8", path=tmp_path / "out")
    manifest = Model.open(tmp_path / "out").manifest
    assert (manifest.name, manifest.format) == ("small", "onnx")
    assert manifest.inputs == (
        TensorSpec(name="x", dtype="float32", shape=("batch", 3, 8, 8), batch_axis=0, layout="NCHW"),
    )
    assert manifest.outputs[0].shape == ("batch", 5)
    assert manifest.outputs[0].batch_axis == 0
    assert manifest.preprocess is None
    assert manifest.lineage[0].startswith("convert.torch.v1 torch 2.")
    assert made.checked.startswith("outputs equal to the source within")
    assert "8 random inputs (give --task" in made.checked
    assert made.assumptions == ("layout of x taken as NCHW (4 axes, axis 1 has 3 channels)",)


def test_the_file_computes_what_the_module_does() -> None:
    module, x = Small().eval(), torch.randn(5, 3, 8, 8)
    (got,) = answers(convert(module, example=(1, 3, 8, 8)), x)
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_the_same_module_gives_the_same_digest() -> None:
    module = Small()
    assert convert(module, example="1x3x8x8").model.digest == convert(module, example="1x3x8x8").model.digest


def test_no_paths_or_source_lines_are_written() -> None:
    made = convert(Small(), example="1x3x8x8")
    text = made.model.file.read_bytes()
    assert str(Path(__file__).parent).encode() not in text
    assert b"site-packages" not in text


def test_the_module_is_left_as_it_was() -> None:
    module = Small()
    module.train()
    module.norm.eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    convert(module, example="2x3x8x8")
    assert module.training
    assert module.act.training
    assert not module.norm.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_real_samples_are_used() -> None:
    samples = {"x": np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)}
    made = convert(Small(), samples=samples)
    assert "on 8 real samples" in made.checked
    assert "on 3 real samples" in convert(Small(), samples={"": samples["x"][:3]}).checked


def test_an_example_of_arrays_is_used() -> None:
    made = convert(Small(), example=torch.rand(1, 3, 8, 8))
    assert "the example and variations of it" in made.checked


@pytest.mark.parametrize("text", ["1x3x8", "3", "1x3x9x9x9"])
def test_an_example_the_module_does_not_take(text: str) -> None:
    with pytest.raises(ModelError, match="fails on inputs"):
        convert(Small(), example=text)


@pytest.mark.parametrize("text", ["", "1x", "axb", "1x3:complex64", "0x3", "1x3x-2"])
def test_an_example_that_is_no_shape(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no shape|of nothing"):
        convert(Small(), example=text)


def test_no_example() -> None:
    with pytest.raises(ModelError, match="--example"):
        convert(Small())


def test_samples_for_other_inputs() -> None:
    with pytest.raises(ModelError, match="'images'"):
        convert(Small(), samples={"images": np.zeros((2, 3, 8, 8), np.float32)})


class Two(nn.Module):
    def forward(
        self, tokens: torch.Tensor, weights: torch.Tensor, unused: int = 0
    ) -> dict[str, torch.Tensor]:
        return {"sum": (tokens * weights).sum(1), "largest": (tokens * weights).amax(1, keepdim=True)}


def test_several_inputs_and_named_outputs() -> None:
    made = convert(Two(), example="1x6:int64,1x6").model.manifest
    assert [(s.name, s.dtype, s.shape) for s in made.inputs] == [
        ("tokens", "int64", ("batch", 6)),
        ("weights", "float32", ("batch", 6)),
    ]
    assert [(s.name, s.shape) for s in made.outputs] == [("sum", ("batch",)), ("largest", ("batch", 1))]


def test_examples_by_name_may_come_in_any_order() -> None:
    example = {"weights": np.ones((1, 6), np.float32), "tokens": np.ones((1, 6), np.int64)}
    assert [spec.name for spec in convert(Two(), example=example).model.manifest.inputs] == [
        "tokens",
        "weights",
    ]


def test_the_wrong_number_of_inputs() -> None:
    with pytest.raises(ModelError, match="takes 2 inputs"):
        convert(Two(), example="1x6")


class Ignores(nn.Module):
    def forward(self, x: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_an_unused_input_is_said() -> None:
    made = convert(Ignores(), example="1x4,1x4")
    names = [spec.name for spec in made.model.manifest.inputs]
    assert names == ["x", "extra"] or any("extra" in sentence for sentence in made.assumptions)


class Flattens(nn.Module):
    """Answers a batch with one row: no batch axis anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x.reshape(1, 12))
        return out


def test_a_module_for_one_size_keeps_a_fixed_batch() -> None:
    made = convert(Flattens(), example="1x12")
    assert made.model.manifest.inputs[0].shape == (1, 12)
    assert made.model.manifest.inputs[0].fixed_batch == 1
    assert any("batch fixed at 1" in sentence for sentence in made.assumptions)


class Centred(nn.Module):
    """What a sample gives depends on the others in its batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True) + x.amax(1, keepdim=True)


def test_a_module_that_mixes_samples_is_fixed_at_one() -> None:
    made = convert(Centred(), example="1x6")
    assert made.model.manifest.outputs[0].shape == (1, 6)
    assert any("not answered as its samples are one by one" in sentence for sentence in made.assumptions)


def test_steps_of_a_sequence_are_no_samples() -> None:
    made = convert(nn.GRU(4, 5), example="6x1x4")
    assert (made.model.manifest.inputs[0].shape, made.model.manifest.inputs[0].batch_axis) == (
        (6, 1, 4),
        None,
    )
    assert made.model.manifest.outputs[0].shape == (6, 1, 5)
    assert any("not taken as a batch axis" in sentence for sentence in made.assumptions)


def test_half_precision_modules_get_half_precision_inputs() -> None:
    made = convert(nn.Linear(6, 4).half(), example="1x6", tolerance=1e-2)
    assert made.model.manifest.inputs[0].dtype == "float16"


def test_encoder_layers_that_torch_fuses_in_inference_are_translated() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    made = convert(net, name="encoder", example=torch.randn(2, 5, 8))
    assert made.model.manifest.inputs[0].shape == ("batch", 5, 8)
    assert torch.backends.mha.get_fastpath_enabled(), "left as it was"


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, 0] = 1
        return torch.relu_(y.add_(0.5))


def test_changes_in_place() -> None:
    (got,) = answers(convert(InPlace(), example="1x3"), np.float32([[-1, -1, 1]]))
    assert got.tolist() == [[1.5, 0, 2.5]]


# What is said when the result is wrong.


class Gate(nn.Module):
    """Takes a way that depends on the data; tracing keeps the one the example took."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.mean()) > 0:
            return x * 3
        return x * 0.5


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.beside = nn.Linear(6, 8)
        self.gate = Gate()
        self.after = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = self.gate(self.before(x))
        out: torch.Tensor = self.after(gated + self.beside(x))
        return out


def test_control_flow_lost_in_tracing_is_found() -> None:
    with pytest.raises(
        ConversionError, match=r"operator aten\.mul\.Tensor of module 'gate' \(Gate\)"
    ) as caught:
        convert(Branching(), example="1x6")
    assert "test_modules.py line" in str(caught.value)
    assert "random inputs" in str(caught.value)


class WrongTranslation(torch.autograd.Function):
    """A rounding whose translation to ONNX is that of another operator."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x * 4) / 4

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        return g.op("Floor", x)


class Rounded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return WrongTranslation.apply(x)  # type: ignore[no-untyped-call,no-any-return]


def test_a_wrong_translation_is_found() -> None:
    with pytest.raises(ConversionError, match=r"of module 'middle' \(Rounded\)"):
        convert(Small(middle=Rounded()), example="1x3x8x8")


@pytest.fixture
def wrong_hardswish() -> Iterator[None]:
    def hardswish(g: Any, x: Any) -> Any:
        return g.op("Relu", x)

    torch.onnx.register_custom_op_symbolic("aten::hardswish", hardswish, 17)
    yield
    torch.onnx.unregister_custom_op_symbolic("aten::hardswish", 17)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wrong_custom_symbolic_is_found(wrong_hardswish: None) -> None:
    middle = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Hardswish(), nn.Conv2d(4, 4, 1), nn.ReLU()
    )
    with pytest.raises(ConversionError, match=r"aten\.hardswish of module 'middle\.2' \(Hardswish\)"):
        convert(Small(middle=middle), example="1x3x8x8")


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def test_randomness_in_the_source_is_named() -> None:
    with pytest.raises(ConversionError, match="each time it runs"):
        convert(Noisy(), example="1x6")


class Logarithm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x)


def test_nan_is_no_answer_to_check_against() -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        convert(Logarithm(), example="1x6")
    assert convert(Logarithm(), example=np.full((1, 6), 2, np.float32)).checked


class Inverts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x @ x.transpose(1, 2))


def test_an_operator_without_translation_is_named() -> None:
    with pytest.raises(UnsupportedError, match="eigvalsh"):
        convert(Inverts(), example="1x4x4")


class Talks(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x, "a word"


def test_outputs_that_are_no_tensors() -> None:
    with pytest.raises(UnsupportedError, match="returns a str"):
        convert(Talks(), example="1x4")


def test_not_a_model() -> None:
    with pytest.raises(ModelError, match="a dict is no model"):
        convert({"weights": 1}, example="1x4")


# Factories and weights.


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_users_net.py").write_text(
        "from torch import nn\n"
        "def small():\n    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))\n"
        "def broken(needed):\n    return needed\n"
        "def text():\n    return 'net'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("a_users_net", None)
    return "a_users_net:small"


def weights_of(factory: str) -> tuple[nn.Module, Any]:
    from farthing.forge.convert.recognise import module_of

    torch.manual_seed(3)
    module = module_of(factory).eval()
    return module, module.state_dict()


@pytest.mark.parametrize("nest", ["", "state_dict", "module."])
def test_a_factory_with_weights(factory: str, tmp_path: Path, nest: str) -> None:
    module, state = weights_of(factory)
    saved = {f"module.{key}": value for key, value in state.items()} if nest == "module." else state
    torch.save({nest: saved, "epoch": 3} if nest == "state_dict" else saved, tmp_path / "w.pt")
    made = convert(factory, weights=tmp_path / "w.pt", example="1x6")
    x = torch.randn(2, 6)
    np.testing.assert_allclose(answers(made, x)[0], module(x).detach().numpy(), rtol=1e-4, atol=1e-6)
    assert made.model.manifest.name == "small"
    assert bool(made.assumptions) == bool(nest)


def test_a_factory_in_a_file(factory: str, tmp_path: Path) -> None:
    assert convert(f"{tmp_path / 'a_users_net.py'}:small", example="1x6").checked


def test_weights_of_another_net(factory: str, tmp_path: Path) -> None:
    _, state = weights_of(factory)
    torch.save(
        {("0.gain" if key == "0.bias" else key): value for key, value in state.items()}, tmp_path / "w.pt"
    )
    with pytest.raises(ModelError, match=r"lacks 0\.bias and has 0\.gain"):
        convert(factory, weights=tmp_path / "w.pt", example="1x6")
    torch.save({**state, "0.bias": torch.zeros(9)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"0\.bias has shape \[9\], the module needs \[4\]"):
        convert(factory, weights=tmp_path / "w.pt", example="1x6")


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickled_objects_in_weights_are_refused(factory: str, tmp_path: Path) -> None:
    torch.save({"0.weight": Trap(tmp_path / "sprung")}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="refused, never unpickled"):
        convert(factory, weights=tmp_path / "w.pt", example="1x6")
    assert not (tmp_path / "sprung").exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(Small(), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match=r"refused, never unpickled; give the code"):
        convert(tmp_path / "whole.pt", example="1x6")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, cut short or damaged"),
        (b"PK\x03\x04", "is empty, cut short or damaged"),
        (b"no weights", "is no file of weights"),
        (b"\x80\x02", "is damaged, or holds more"),
    ],
)
def test_damaged_weights(factory: str, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ModelError, match=rf"w\.pt {message}"):
        convert(factory, weights=tmp_path / "w.pt", example="1x6")
    with pytest.raises(ModelError, match="cannot read the weights"):
        convert(factory, weights=tmp_path / "none.pt", example="1x6")


def test_refusals_of_weights_speak_for_themselves(factory: str, tmp_path: Path) -> None:
    """torch's own words for these are coloured, and advise to load the file with its safety off."""
    torch.save({"net": Small()}, tmp_path / "pickled.pt")
    traced: Any = torch.jit.trace(nn.Linear(6, 3), torch.zeros(1, 6))  # type: ignore[no-untyped-call]
    traced.save(tmp_path / "script.pt")
    for name, message in (
        ("pickled", r"holds a pickled [\w.]+\.Small, which is"),
        ("script", "is a whole program"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            convert(factory, weights=tmp_path / f"{name}.pt", example="1x6")
        assert "weights_only" not in str(caught.value)
        assert "\x1b" not in str(caught.value)


def test_a_factory_without_weights_gives_its_own_which_is_said(factory: str) -> None:
    made = convert(factory, example="1x6")
    assert "the weights are those that a_users_net:small makes: random ones, unless" in made.assumptions[0]
    assert not any(
        "random ones" in sentence for sentence in convert(nn.Linear(6, 3), example="1x6").assumptions
    )


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_a_failed_export_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """torch writes the whole graph on standard output, below Python."""
    with pytest.raises(UnsupportedError, match="aten::special_bessel_j0") as caught:
        convert(Bessel(), example="1x6")
    assert capfd.readouterr().out == ""
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("opset", [-1, 0, 6, 24, 99])
def test_an_opset_that_cannot_be_written(opset: int) -> None:
    with pytest.raises(UnsupportedError, match=rf"opset {opset} cannot be written: give one from 7 to 23"):
        convert(nn.Linear(6, 3), example="1x6", opset=opset)


@pytest.mark.parametrize("opset", [7, 23])
def test_the_outermost_opsets_work(opset: int) -> None:
    made = convert(nn.Linear(6, 3), example="1x6", opset=opset)
    assert made.model.manifest.lineage[0].endswith(f"opset {opset}")


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x * scale


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 2).reshape(1)


def test_inputs_without_axes() -> None:
    made = convert(Scaled(), example="1x4,scalar")
    assert [spec.shape for spec in made.model.manifest.inputs] == [("batch", 4), ()]
    (got,) = answers(made, np.ones((3, 4), np.float32), np.float32(2))
    assert got.tolist() == [[2] * 4] * 3
    made = convert(Doubled(), example="scalar")
    assert made.assumptions == ("no batch axis: its inputs have no axes",)
    assert made.model.manifest.outputs[0].batch_axis is None
    assert "on 1 random input (" in made.checked


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("a_users_net:smal", "did you mean 'small'"),
        ("no_such_package_at_all:net", "cannot import"),
        ("a_users_net:broken", "fails when called without arguments"),
        ("a_users_net:text", "makes a str"),
    ],
)
def test_factories_that_do_not_work(factory: str, reference: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        convert(reference, example="1x6")


# The owner's manifest.


def owner(**fields: Any) -> Manifest:
    return Manifest(name="mine", format="onnx", inputs=(), outputs=(), **fields)


def test_what_the_owner_says_is_kept() -> None:
    preprocess = Preprocess(colour="RGB", scale=1 / 255)
    told = owner(
        preprocess=preprocess, labels=("a", "b", "c", "d", "e"), decode="logits", licence="MIT", version="3"
    )
    manifest = convert(Small(), example="1x3x8x8", manifest=told).model.manifest
    assert manifest.name == "mine"
    assert (manifest.preprocess, manifest.decode, manifest.licence) == (preprocess, "logits", "MIT")
    assert manifest.version == "3"
    assert manifest.labels == tuple("abcde")
    assert manifest.inputs[0].layout == "NCHW"


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="3 labels were given, but output 'output' has 5"):
        convert(Small(), example="1x3x8x8", manifest=owner(labels=("a", "b", "c")))


def test_the_owners_tensors_must_exist() -> None:
    told = Manifest(
        name="m", format="onnx", inputs=(TensorSpec(name="image", dtype="float32", shape=()),), outputs=()
    )
    with pytest.raises(ModelError, match="'image'"):
        convert(Small(), example="1x3x8x8", manifest=told)
