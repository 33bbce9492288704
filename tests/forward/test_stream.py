"""The layer-streamed pass: its states are transformers' own, and a layer is gone when the next one comes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from crossing import crossed
from small_models import KINDS, Make, rewrite
from transformers import AutoModelForCausalLM

from lazymoe import SourceError
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.stream import Stream


@pytest.mark.parametrize(
    ("spilled", "kind", "config"),
    crossed([False, True], KINDS, [{}, {"sliding_window": 5}, {"tie_word_embeddings": True, "pad_token_id": 63}]),
)
def test_streamed_states_are_those_of_the_whole_model(
    spilled: bool, kind: str, config: dict, make: Make, tmp_path: Path
) -> None:
    if kind != "mistral" and "sliding_window" in config:
        pytest.skip("it has none, or always")
    layers = 2 if {"layer_types", "first_k_dense_replace"} & KINDS[kind][1].keys() else 3
    folder = make("model", kind=kind, num_hidden_layers=layers, **config)
    lengths = (3, 12, 7)
    texts = [torch.randint(0, 64, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(texts[:2], batch_first=True)
    stream = Stream(open_folder(folder), [padded, texts[2][None]], "cpu", tmp_path if spilled else None)
    streamed = [list(stream.states)]
    for _ in range(layers):
        stream.step()
        streamed.append(list(stream.states))
    streamed[-1] = list(stream.finish())

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for text, batch, row in zip(texts, (0, 0, 1), (0, 1, 0), strict=True):
        with torch.no_grad():
            expected = model(text[None], output_hidden_states=True).hidden_states
        assert len(streamed) == len(expected) == layers + 1
        for layer, states in zip(streamed, expected, strict=True):
            assert (layer[batch][row, : len(text)] - states[0]).abs().max() < 1e-5


def test_a_layer_is_let_go_at_once(make: Make) -> None:
    """Without the garbage collector, which would come too late: memory may not grow with the number of layers."""
    stream = Stream(open_folder(make("model")), [torch.tensor([[1, 2, 3]])], "cpu")
    seen: list[weakref.ref[torch.nn.Parameter]] = []
    gc.disable()
    try:
        stream.step(
            watch=lambda layer: seen.extend(weakref.ref(parameter) for parameter in layer.parameters()),
            feed_forward=("mlp", lambda module, x, _: x),
        )
        assert seen and not [ref() for ref in seen if ref() is not None and not ref().is_meta]
    finally:
        gc.enable()


def test_a_feed_forward_module_can_be_replaced(make: Make) -> None:
    """Its own weights stay unread then: the layer's alone are."""
    folder = make("model", dtype="float32")
    ids = torch.tensor([[1, 2, 3]])
    stream = Stream(open_folder(folder), [ids], "cpu")
    stream.step(feed_forward=("mlp", lambda module, x, _: map(torch.zeros_like, x)))
    rewrite(folder, lambda tensors: [t.zero_() for name, t in tensors.items() if "down_proj" in name])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states[1]
    assert (stream.states[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("spilled", [False, True])
def test_a_replaced_module_reads_all_batches_together(spilled: bool, make: Make, tmp_path: Path) -> None:
    texts, seen = [torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7, 8]])], []

    def double(_: object, x: Sequence[torch.Tensor], __: object) -> list[torch.Tensor]:
        seen.append(list(x))
        return [2 * rows for rows in x]

    stream = Stream(open_folder(make("model")), texts, "cpu", tmp_path if spilled else None)
    stream.step(feed_forward=("mlp", double))
    apart = [Stream(open_folder(make("model")), [text], "cpu") for text in texts]
    for alone, states in zip(apart, stream.states, strict=True):
        alone.step(feed_forward=("mlp", double))
        assert torch.equal(alone.states[0], states)
    together, *each = seen
    assert [len(rows) for rows in together] == [6, 2]
    assert all(torch.equal(rows, alone) for rows, [alone] in zip(together, each, strict=True))


def test_states_that_are_not_finite_are_told_with_their_layer(make: Make) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    folder = rewrite(make("model"), lambda tensors: tensors[name].fill_(float("nan")))
    stream = Stream(open_folder(folder), [torch.tensor([[1, 2, 3]])], "cpu")
    stream.step()
    with pytest.raises(SourceError, match="the hidden states after layer 1 are NaN or infinite"):
        stream.step()


def test_a_token_that_the_model_does_not_have_is_told(make: Make) -> None:
    with pytest.raises(SourceError) as caught:
        Stream(open_folder(make("model")), [torch.tensor([[1, 64]])], "cpu")
    assert "64" in str(caught.value)
