from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.device.serving.server.repository.pbtxt import Declared, parse, read, understand
from farthing.device.serving.server.settings import InstanceGroup, Specific
from farthing.errors import ConfigError

WHOLE = """
name: "gate"  # what it is called
platform: 'onnxruntime_onnx'
max_batch_size: 16
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y", data_type: TYPE_STRING, dims: [ -1, 3 ], label_filename: "l.txt" } ]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
  priority_levels: 2 default_priority_level: 2
  default_queue_policy < default_timeout_microseconds: 5000; max_queue_size: 0x10 >
}
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_AUTO } ]
version_policy: { specific { versions: 1 versions: 3 } }
parameters { key: "a" value: { string_value: "b" 'c' } }
"""


def test_what_triton_is_told_we_understand(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(WHOLE)
    config = read(tmp_path / "config.pbtxt")
    settings = config.settings
    batching = settings.dynamic_batching
    assert (config.name, settings.max_batch_size) == ("gate", 16)
    assert (batching.preferred_batch_size, batching.max_queue_delay_microseconds) == ((4, 8), 100)
    assert batching.default_queue_policy.max_queue_size == 16
    assert not batching.default_queue_policy.allow_timeout_override, "left out means false in this format"
    assert settings.instance_group == (InstanceGroup(count=2, kind="KIND_CPU"), InstanceGroup())
    assert settings.runners == 3
    assert settings.version_policy.specific == Specific(versions=(1, 3))
    assert config.inputs == (Declared("x", "float32", (4,)),)
    assert config.outputs == (Declared("y", "str", (-1, 3)),)
    assert config.ignored == ("output.label_filename", "parameters", "platform")


def test_an_empty_file_asks_for_nothing() -> None:
    assert understand(parse("# nothing\n", "f"), "f").settings.max_batch_size == 8


def test_what_is_said_not_to_be_wanted_makes_no_difference() -> None:
    text = """
    model_transaction_policy { decoupled: False }
    dynamic_batching { preserve_ordering: True }
    input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] optional: false allow_ragged_batch: false }
    """
    config = understand(parse(text, "f"), "f")
    assert config.settings.dynamic_batching.preserve_ordering
    assert config.ignored == ("input.allow_ragged_batch", "input.optional", "model_transaction_policy")


def test_text_keeps_its_escapes() -> None:
    assert parse(r'a: "x\n\"y\"" ' + r"'\''", "f") == {"a": ['x\n"y"\'']}
    assert parse("a: -1.5e3 b: .5f c: true d: [] e { }", "f") == {
        "a": [-1500.0],
        "b": [0.5],
        "c": ["true"],
        "d": [],
        "e": [{}],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "the end"),
        ("max_batch_size", "line 1: 'the end' stands where a value"),
        ("\n\nmax_batch_size 1", "line 3: '1' stands where a value"),
        ("a: [1, ", "the end"),
        ("a {", "line 1: 'the end' stands where the name of a field"),
        ("}", "'}' stands where the name"),
        ("a: \x00", "no place in this format"),
        ('a: "x', "no place in this format"),
        ("a{" * 100, "nested too deeply"),
        ("max_batch_siz: 1", "did you mean 'max_batch_size'"),
        ("max_batch_size: 1 max_batch_size: 2", "given 2 times"),
        ("max_batch_size: -1", "max_batch_size is from 0"),
        ("max_batch_size: 1000000", "max_batch_size is from 0 to 4096"),
        ("max_batch_size: 1.5", "Expected `int`"),
        ('max_batch_size: "2"', "Expected `int`"),
        ("dynamic_batching: 3", "dynamic_batching is a message"),
        ("dynamic_batching { preferred_batch_sizes: 3 }", "did you mean 'preferred_batch_size'"),
        ("dynamic_batching { default_queue_policy { timeout_action: DELAY } }", "'DELAY'"),
        ("dynamic_batching { priority_levels: 2 default_priority_level: 3 }", "from 1 to priority_levels=2"),
        ("dynamic_batching { priority_queue_policy { key: 1 value { max_queue_size: 3 } } }", "of their own"),
        ("instance_group { kind: KIND_GPU }", "'KIND_GPU'"),
        ("model_transaction_policy { decoupled: True }", "decoupled models are not served"),
        ('input { name: "x" data_type: TYPE_FP32 dims: 1 optional: true }', "optional is not honoured"),
        ("ensemble_scheduling { }", "ensembles are not served"),
        ("sequence_batching { }", "sequences are not served"),
        ("version_policy { latest { num_versions: 0 } }", "num_versions is from 1"),
        ("version_policy { latest { } all { } }", "one of latest, all and specific"),
        ('input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { } }', "reshape is not honoured"),
        ('input { name: "x" data_type: TYPE_BF16 dims: 1 }', "no tensors are of BF16"),
        ("input: 3", "input is a message"),
        ("input { dims: 1 }", "name is given 0 times"),
    ],
)
def test_what_cannot_be_honoured_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        understand(parse(text, "f"), "f")
    assert said in str(caught.value)


@given(st.text(alphabet="{}[]<>:,;\"'#\\ \n-1x.e_ab", max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with suppress(ConfigError):
        understand(parse(text, "f"), "f")


@given(st.data())
def test_a_spoiled_configuration_is_understood_or_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(WHOLE) - 1))
    spoiled = WHOLE[:at] + data.draw(st.text(max_size=3)) + WHOLE[at + data.draw(st.integers(0, 30)) :]
    with suppress(ConfigError):
        understand(parse(spoiled, "f"), "f")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "config.pbtxt"
    with pytest.raises(ConfigError, match="cannot read"):
        read(place)
    place.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot read"):
        read(place)
    place.write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read(place)
