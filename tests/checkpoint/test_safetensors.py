"""Headers of safetensors files: read as the safetensors package reads them, and no hostile one does harm."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from lazymoe.checkpoint.safetensors import read_header, write_header
from lazymoe.checkpoint.tensors import Span, TensorInfo


def parse(data: bytes) -> dict[str, TensorInfo]:
    return read_header(Path("folder"), "x", len(data), lambda offset, n: data[offset : offset + n])


def span(tensor: TensorInfo) -> Span:
    lies = tensor.span()
    assert lies is not None and lies.path == Path("folder/x")
    return lies


def test_reads_what_the_package_wrote(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3, 5, dtype=torch.bfloat16), "a": torch.zeros(2), "scalar": torch.tensor(1.5)}
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    data = (tmp_path / "x").read_bytes()
    found = parse(data)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        t = found[name]
        assert t.shape == tuple(tensor.shape)
        _, start, nbytes = span(t)
        assert nbytes == t.nbytes
        own = torch.frombuffer(bytearray(data[start : start + nbytes]), dtype=tensor.dtype)
        assert torch.equal(own.reshape(tensor.shape), tensor)


def test_the_package_reads_what_it_wrote(tmp_path: Path) -> None:
    header = write_header([("a", "F32", (2, 3)), ("b", "BF16", (4,))])
    (tmp_path / "x").write_bytes(header + bytes(24) + bytes(8))
    assert len(header) % 8 == 0
    with safe_open(tmp_path / "x", "pt") as f:
        assert {k: (f.get_tensor(k).dtype, tuple(f.get_tensor(k).shape)) for k in f.keys()} == {  # noqa: SIM118
            "a": (torch.float32, (2, 3)),
            "b": (torch.bfloat16, (4,)),
        }


GOOD = save({"a": torch.ones(4, 4), "b": torch.ones(3, dtype=torch.float16)})
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
entries = st.dictionaries(
    st.text(max_size=4) | st.just("__metadata__"),
    st.one_of(
        numbers,
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "F4", "I64", "X", 3]),
                "shape": st.lists(numbers | st.integers(0, 8), max_size=10) | numbers,
                "data_offsets": st.lists(st.integers(0, 64) | numbers, max_size=3),
            }
        ),
    ),
    max_size=4,
)


@given(
    st.one_of(st.binary(max_size=200), entries.map(lambda e: json.dumps(e).encode())),
    st.binary(max_size=64),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_a_hostile_header_is_refused_or_true(header: bytes, body: bytes, honest: bool) -> None:
    length = len(header).to_bytes(8, "little") if honest else header[:8]
    data = length + header + body
    try:
        found = parse(data)
    except ValueError as e:
        assert str(e)
    else:
        assert sum(t.nbytes for t in found.values()) == len(data) - 8 - int.from_bytes(data[:8], "little")


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_one_wrong_byte_never_crashes(position: int, value: int) -> None:
    data = bytearray(GOOD)
    data[position] = value
    try:
        assert all(sum(span(t)[1:]) <= len(data) for t in parse(bytes(data)).values())
    except ValueError as e:
        assert str(e)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 5_000,
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 18 + b'],"data_offsets":[0,4]}}',
    ],
)
def test_deep_or_huge_headers_cost_little(header: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError):
        parse(len(header).to_bytes(8, "little") + header + bytes(4))
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-1], "cut short"),
        (lambda d: d + b"x", "longer"),
        (lambda d: d[:4], "cut short"),
        (lambda d: (10**12).to_bytes(8, "little") + d[8:], "is this a safetensors file"),
        (lambda d: d.replace(b'"F32"', b'"F99"'), "unknown dtype"),
        (lambda d: d.replace(b"[4,4]", b"[4,5]"), "takes another number"),
    ],
)
def test_says_what_is_wrong(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(change(GOOD))
