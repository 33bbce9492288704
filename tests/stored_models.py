"""How a model lies on the disk: shards, an index, tensors of other names; opening it, or seeing it refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import tensors_of

from lazymoe import LazyMoEError
from lazymoe.checkpoint.opening import open_source
from lazymoe.checkpoint.source import Source
from lazymoe.errors import Problem
from lazymoe.quantizing.file_types import Model, choose
from lazymoe.quantizing.gguf_file import row_bytes
from lazymoe.quantizing.native import quantizer
from lazymoe.recipe.reference import Reference

Tensors = dict[str, torch.Tensor]
EMBEDDINGS = "model.embed_tokens.weight"


def opened(name: Path | str, allow_pickle: bool = False) -> Source:
    return open_source(Reference.parse(str(name)), "base_model", allow_pickle)


def refused(name: Path | str, allow_pickle: bool = False) -> Problem:
    with pytest.raises(LazyMoEError) as e:
        opened(name, allow_pickle)
    [problem] = e.value.problems
    assert len(str(problem).splitlines()) == 1
    return problem


def same(source: Source, expected: Tensors) -> bool:
    return source.tensors.keys() == expected.keys() and all(
        source.tensors[name].name == name and torch.equal(source.load(name), tensor)
        for name, tensor in expected.items()
    )


def shards(folder: Path, tensors: Tensors, n: int = 2, stem: str = "model", end: str = ".safetensors") -> list[str]:
    """Write tensors as numbered shards; their names."""
    names, files = sorted(tensors), []
    for i in range(n):
        part = {name: tensors[name] for name in names[i::n]}
        files.append(f"{stem}-{i + 1:05}-of-{n:05}{end}")
        if end == ".bin":
            torch.save(part, folder / files[-1])
        else:
            save_file(part, folder / files[-1], metadata={"format": "pt"})
    return files


def index(folder: Path, tensors: Tensors, files: list[str], name: str = "model.safetensors.index.json") -> None:
    """An index of shards as `shards` writes them."""
    weight_map = {tensor: files[i % len(files)] for i, tensor in enumerate(sorted(tensors))}
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def renamed(folder: Path, change: Callable[[str], str | None]) -> Path:
    """A model whose tensors are called otherwise; those that get no name are left out."""
    tensors = {change(name): tensor for name, tensor in tensors_of(folder).items()}
    save_file({k: v for k, v in tensors.items() if k}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_gguf(model: Path, file: Path, *more: str, kind: str = "Q8_0") -> Path:
    """A Llama's file as llama.cpp's converter and quantizer write it, with more tensors by these names."""
    config = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    file.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("demo")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    merges = [" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors = {}
    for name, tensor in tensors_of(model).items():
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                n = config[heads]
                tensor = tensor.reshape(n, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        tensors[names.get_name(name, (".weight",))] = tensor.float().numpy()
    shapes = {name: values.shape for name, values in sorted(tensors.items())}
    size = Model(
        config["num_hidden_layers"], 0, config["num_attention_heads"], config["num_key_value_heads"], "llama", False
    )
    types = choose(kind, shapes, size)
    for name, values in tensors.items():
        own = gguf.GGMLQuantizationType[types[name]]
        if types[name] == "F32" or values.shape[1] % 32:
            writer.add_tensor(name, values)
        elif types[name] in ("F16", "BF16", "Q8_0"):
            writer.add_tensor(name, gguf.quantize(values, own), raw_dtype=own)
        else:
            rows = np.empty((len(values), row_bytes(types[name], values.shape[1])), np.uint8)
            quantizer()(int(own), np.ascontiguousarray(values), rows, None)
            writer.add_tensor(name, rows, raw_dtype=own)
    for name in more:
        writer.add_tensor(name, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
