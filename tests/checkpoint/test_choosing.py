"""Which files are the weights, and what their tensors are called: as transformers itself would have it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hub_server import Hub
from safetensors.torch import save_file
from small_models import KINDS, Make, configure, load_model, recipe, rewrite, tensors_of

from lazymoe import LazyMoEError, check, merge
from lazymoe.architectures.registry import HOSTS
from lazymoe.checkpoint.leftovers import LEFTOVER, MASK
from lazymoe.checkpoint.legacy import open_pickle
from lazymoe.checkpoint.opening import open_folder, open_source
from lazymoe.checkpoint.source import Source
from lazymoe.errors import Problem
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


# what lies in a folder beside model.safetensors, or in its place: the tensors that are old, and that are new
def one_file_and_old_shards(folder: Path, new: Tensors, old: Tensors) -> None:
    index(folder, old, shards(folder, old))


def one_file_and_old_shards_without_index(folder: Path, new: Tensors, old: Tensors) -> None:
    shards(folder, old)


def shards_and_old_pickle(folder: Path, new: Tensors, old: Tensors) -> None:
    index(folder, new, shards(folder, new))
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def one_pickle_and_old_pickled_shards(folder: Path, new: Tensors, old: Tensors) -> None:
    index(folder, old, shards(folder, old, 2, "pytorch_model", ".bin"), "pytorch_model.bin.index.json")
    torch.save(new, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def safetensors_index_that_names_pickles(folder: Path, new: Tensors, old: Tensors) -> None:
    index(folder, new, shards(folder, new, 2, "pytorch_model", ".bin"))
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def named_by_the_config(folder: Path, new: Tensors, old: Tensors) -> None:
    save_file(new, folder / "weights.safetensors", metadata={"format": "pt"})
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, transformers_weights="weights.safetensors")


CHOICES = [
    one_file_and_old_shards,
    one_file_and_old_shards_without_index,
    shards_and_old_pickle,
    one_pickle_and_old_pickled_shards,
    safetensors_index_that_names_pickles,
    named_by_the_config,
]


@pytest.mark.parametrize("where", ["folder", "hub"])
@pytest.mark.parametrize("lay", CHOICES, ids=lambda f: f.__name__)
def test_the_files_are_those_that_transformers_loads(
    lay: Callable[..., None], where: str, make: Make, hub: Hub
) -> None:
    folder, old = make("model", seed=1), make("old", seed=2)
    expected = tensors_of(folder)
    lay(folder, expected, tensors_of(old))
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in expected.items())
    name = str(folder)
    if where == "hub":
        name = f"acme/{lay.__name__.replace('_', '-')[:40]}"
        hub.add(name, folder)
    source = opened(name, allow_pickle=True)
    assert source.tensors.keys() == expected.keys()
    if not source.missing:
        assert same(source, expected)
    assert set(source.weights) == set(opened(folder, allow_pickle=True).weights)


@pytest.mark.parametrize(("stem", "end"), [("model", ".safetensors"), ("pytorch_model", ".bin")])
@pytest.mark.parametrize("n", [1, 3])
def test_shards_without_an_index(n: int, stem: str, end: str, make: Make, tmp_path: Path) -> None:
    folder = make("model")
    expected = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    files = shards(folder, expected, n, stem, end)
    assert same(opened(folder, allow_pickle=True), expected)
    shards_of_more = f"{stem}-00002-of-00007{end}"
    (folder / shards_of_more).write_bytes(b"x")  # a set that isn't whole, beside one that is
    assert same(opened(folder, allow_pickle=True), expected)
    merge(recipe(folder, folder, folder), tmp_path / "out", allow_pickle=True)
    (folder / shards_of_more).unlink()

    (folder / files[-1]).unlink()
    if n > 1:
        assert f"lacks the file {files[-1]}, one of its {n} shards" in refused(folder, allow_pickle=True).what
        (folder / files[0]).unlink()
        assert f"lacks the file {files[0]} and 1 more of its 3 shards" in refused(folder, allow_pickle=True).what


def test_two_whole_sets_of_shards_are_ambiguous(make: Make) -> None:
    folder = make("model")
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    for n in (2, 3):
        shards(folder, tensors, n)
    problem = refused(folder)
    assert problem.code == "source.ambiguous" and "of-00002" in problem.what and "of-00003" in problem.what
    for file in folder.glob("*of-00003*"):
        file.unlink()
    assert same(opened(folder), tensors)


@pytest.mark.parametrize("lay", [safetensors_index_that_names_pickles, one_pickle_and_old_pickled_shards])
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_pickles_go_by_permission(lay: Callable[..., None], where: str, make: Make, hub: Hub) -> None:
    folder = make("model")
    lay(folder, tensors_of(folder), tensors_of(folder))
    name = str(folder)
    if where == "hub":
        name = f"acme/refused-{lay.__name__[:10]}".replace("_", "-")
        hub.add(name, folder)
    hub.requests.clear()
    problem = refused(name)
    assert problem.code == "source.pickle" and "--allow-pickle" in problem.remedy
    assert not any(r.path.endswith(".bin") for r in hub.requests)
    assert opened(name, allow_pickle=True).tensors


def test_one_pickle_among_safetensors_needs_permission(make: Make) -> None:
    folder = make("model")
    tensors = tensors_of(folder)
    files = shards(folder, tensors)
    torch.save({n: tensors[n] for n in sorted(tensors)[1::2]}, folder / "second.pt")
    index(folder, tensors, [files[0], "second.pt"])
    (folder / "model.safetensors").unlink()
    assert "its index names second.pt" in refused(folder).what
    assert same(opened(folder, allow_pickle=True), tensors)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "", "..", None, 3])
def test_an_index_that_names_files_elsewhere_is_refused(file: object, make: Make) -> None:
    folder = make("model")
    (folder / "sub").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "sub")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {EMBEDDINGS: file}}))
    assert refused(folder).code == "source.incomplete"


@pytest.mark.parametrize("named", ["../model.safetensors", "pytorch_model.bin", "none.safetensors", 3, ["a"]])
def test_a_config_that_names_no_usable_file(named: object, make: Make) -> None:
    folder = configure(make("model"), transformers_weights=named)
    problem = refused(folder, allow_pickle=True)
    assert "transformers_weights" in problem.what and "transformers_weights" in problem.remedy


def test_what_is_no_model_says_so(make: Make) -> None:
    folder = make("model")
    (folder / "model.safetensors").rename(folder / "renamed.safetensors")
    problem = refused(folder)
    assert "only renamed.safetensors" in problem.what and "rename it to model.safetensors" in problem.remedy
    (folder / "renamed.safetensors").rename(folder / "model.safetensors")  # the remedy
    assert opened(folder).tensors
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refused(folder).what
    for file in ("training_args.bin", "optimizer.bin"):  # allowing these would help nobody
        (folder / file).write_bytes(b"x")
    assert refused(folder).code == "source.incomplete"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.mark.parametrize(
    "file", ["model.safetensors", "pytorch_model.bin", "config.json", "model.safetensors.index.json"]
)
def test_a_pointer_of_git_lfs_is_called_one(file: str, make: Make) -> None:
    folder = make("model")
    if file != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(POINTER)
    problem = refused(folder, allow_pickle=True)
    assert problem.what == f"{folder / file} is a Git LFS pointer, not the file"
    assert problem.remedy == "Run 'git lfs pull' in that folder."


def test_a_pointer_in_place_of_an_adapter_or_a_gguf_file(make: Make, tmp_path: Path) -> None:
    folder = make("model")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(POINTER)
    assert refused(f"{folder}+{tmp_path / 'lora'}").code == "source.lfs"
    (tmp_path / "model.gguf").write_bytes(POINTER)
    assert refused(tmp_path / "model.gguf").code == "source.lfs"


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("left", [0, 1, 20, 300, -50])
def test_a_file_that_was_cut_short(left: int, old: bool, make: Make) -> None:
    folder = make("model")
    tensors, file = tensors_of(folder), folder / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=not old)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:left])
    words = "the file is empty" if left == 0 else "cut short"
    assert words in refused(folder).what
    (folder / "model.safetensors").unlink()
    file.write_bytes(file.read_bytes()[:left])
    problem = refused(folder, allow_pickle=True)
    assert words in problem.what or (left == 1 and not old and "isn't a pickle" in problem.what)
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes()[:left])
    assert ("is empty" if left == 0 else "can't be read as JSON") in refused(folder).what


def test_torchs_old_format(make: Make, tmp_path: Path) -> None:
    folder = make("model")
    expected = tensors_of(folder)
    torch.save(expected, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    assert same(opened(folder, allow_pickle=True), expected)
    merge(recipe(folder, folder, folder), tmp_path / "out", allow_pickle=True)
    loaded = load_model(tmp_path / "out").state_dict()
    assert torch.equal(loaded[EMBEDDINGS], expected[EMBEDDINGS].float())
    torch.save(
        {k: v * 2 for k, v in expected.items()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    assert same(opened(folder, allow_pickle=True), {k: v * 2 for k, v in expected.items()})


class Other:
    """Something that isn't a tensor."""


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"state_dict": {"a": torch.ones(1)}}, "'state_dict' is something else"),
        ([torch.ones(1)], "isn't a dictionary of tensors"),
        ({}, "isn't a dictionary of tensors"),
        ({"a": Other()}, "nothing but tensors is loaded from a pickle"),
    ],
)
def test_a_pickle_of_something_else(saved: object, words: str, old: bool, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "x.bin", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=words):
        open_pickle(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "data", [b"<!DOCTYPE html>\n<html>", b"\x00" * 999, b"PK\x03\x04" + b"\x00" * 99, b"{}", b"\x80\x02."]
)
def test_no_pickle_at_all(data: bytes, make: Make) -> None:
    folder = make("model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(data)
    problem = refused(folder, allow_pickle=True)
    assert problem.code == "source.broken" and len(str(problem)) < 400


def test_a_parameter_and_a_view_are_tensors_too(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": torch.nn.Parameter(whole), "b": whole[1:], "c": whole.T}, tmp_path / "x.bin")
    found = open_pickle(tmp_path / "x.bin")
    assert torch.equal(found["a"].load(), whole) and not found["a"].load().requires_grad
    assert torch.equal(found["b"].load(), whole[1:]) and torch.equal(found["c"].load(), whole.T)


@pytest.mark.parametrize("quantized", [False, True], ids=["whole", "8 bit"])
def test_a_pickle_saved_anew_is_read_anew(quantized: bool, make: Make) -> None:
    folder = make("model")
    tensors = tensors_of(folder)
    if quantized:
        down = "model.layers.0.mlp.down_proj.weight"
        tensors[down] = torch.ones(tensors[down].shape, dtype=torch.int8)
        tensors[down.replace("weight", "SCB")] = torch.full(tensors[down].shape[:1], 127.0)
        configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    (folder / "model.safetensors").unlink()
    for factor in (1, 2, 3):
        saved = {k: v * factor if v.dtype.is_floating_point else v for k, v in tensors.items()}
        torch.save(dict(sorted(saved.items(), reverse=factor == 2)), folder / "pytorch_model.bin")
        source = opened(folder, allow_pickle=True)
        for name in source.tensors:
            if quantized and name == down:
                assert torch.equal(source.load(name), torch.full(source.tensors[name].shape, factor).bfloat16())
            else:
                assert torch.equal(source.load(name), saved[name])


def test_scales_in_another_shard_saved_anew_are_read_anew(make: Make) -> None:
    folder = make("model")
    tensors, down = tensors_of(folder), "model.layers.0.mlp.down_proj.weight"
    scale = down.replace("weight", "SCB")
    tensors[down] = torch.ones(tensors[down].shape, dtype=torch.int8)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    for factor in (1, 2):
        save_file(
            {scale: torch.full(tensors[down].shape[:1], 127.0 * factor)}, folder / "model-00002-of-00002.safetensors"
        )
        assert opened(folder).load(down).unique().tolist() == [factor]


WRAPPERS: dict[str, Callable[[str], str]] = {
    "PEFT": lambda name: f"base_model.model.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "DDP of torch.compile": lambda name: f"module._orig_mod.{name}",
    "torch.compile of each layer": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
    "checkpointed": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "Lightning": lambda name: f"model.{name}",
    "Fabric": lambda name: f"_forward_module.{name}",
    "TRL": lambda name: f"pretrained_model.{name}",
    "PEFT in DDP": lambda name: f"module.base_model.model.{name}",
}


def renamed(folder: Path, change: Callable[[str], str | None]) -> Path:
    """A model whose tensors are called otherwise; those that get no name are left out."""
    tensors = {change(name): tensor for name, tensor in tensors_of(folder).items()}
    save_file({k: v for k, v in tensors.items() if k}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["llama", "phi", "lfm2", "gemma4_text"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_prefixes_of_wrappers_are_taken_off(wrapper: str, kind: str, make: Make) -> None:
    folder = make("model", kind=kind)
    source = open_folder(folder)
    expected = {name: source.load(name) for name in source.tensors}
    found = open_folder(renamed(folder, WRAPPERS[wrapper]))
    assert same(found, expected) and not found.ignored


def test_a_wrapped_pickle_merges_to_the_same(make: Make, tmp_path: Path) -> None:
    folder = make("model")
    merge(recipe(folder, folder, folder), tmp_path / "one")
    torch.save({f"module.{k}": v for k, v in tensors_of(folder).items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    merge(recipe(folder, folder, folder), tmp_path / "two", allow_pickle=True)
    one, two = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", ["", "_orig_mod.", "module.", "base_model.model."])
def test_a_decoder_saved_by_itself(around: str, kind: str, make: Make) -> None:
    folder = make("model", kind=kind)
    expected = {k: v for k, v in tensors_of(folder).items() if k.startswith("model.")}
    found = open_folder(renamed(folder, lambda name: around + name[6:] if name.startswith("model.") else None))
    assert found.tensors.keys() == expected.keys()
    assert same(found, expected)


def test_transformers_own_way_to_save_a_decoder(make: Make) -> None:
    tied, folder = make("tied", tie_word_embeddings=True), make("expert", seed=1, tie_word_embeddings=True)
    expected = tensors_of(folder)
    transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert "layers.0.mlp.up_proj.weight" in tensors_of(folder)
    assert same(open_folder(folder), expected)
    assert not check(recipe(tied, folder, folder)).errors
    assert not check(recipe(folder, folder, tied)).errors


def test_a_decoder_without_a_head_can_be_an_expert_only(make: Make) -> None:
    base, folder = make("base"), make("expert", seed=1)
    renamed(folder, lambda name: name[6:] if name.startswith("model.") else None)
    assert not check(recipe(base, folder, folder)).errors
    [problem] = check(recipe(folder, base, base)).errors
    assert "lm_head.weight" in problem.what


@pytest.mark.parametrize("prefix", ["student.", "language_model.", "model.language_model.", "a.b.model."])
def test_a_prefix_that_nothing_is_known_of_is_named(prefix: str, make: Make) -> None:
    folder = renamed(make("model"), lambda name: prefix + name)
    problem = refused(folder)
    assert f"the prefix '{prefix}" in problem.what and problem.code == "source.names"


def test_two_models_in_one_are_refused(make: Make) -> None:
    folder = make("model")
    rewrite(folder, lambda t: t.update({f"module.{k}": v.clone() for k, v in t.items()}))
    assert not same(opened(folder), {})  # its own names are there: the others have no place
    assert "source.no-place" in [p.code for p in check(recipe(folder, folder)).errors]
    renamed(folder, lambda name: name if name.startswith("module.") else f"_orig_mod.x.{name}")
    assert refused(folder).code == "source.names"


def test_the_same_name_twice_is_refused(make: Make) -> None:
    folder = make("model")
    rewrite(folder, lambda t: t.update({f"_orig_mod.{EMBEDDINGS}": t[EMBEDDINGS].clone()}))
    assert f"'{EMBEDDINGS}' twice" in refused(folder).what


def test_an_adapter_that_is_not_merged_is_named(make: Make) -> None:
    up = "model.layers.0.mlp.up_proj"
    folder = renamed(make("model"), lambda name: f"base_model.model.{name}".replace(f"{up}.", f"{up}.base_layer."))
    rewrite(folder, lambda t: t.update({f"base_model.model.{up}.lora_A.default.weight": torch.ones(2, 32)}))
    problem = refused(folder)
    assert "isn't merged" in problem.what and "merge_and_unload" in problem.remedy


@pytest.mark.parametrize(
    "names", [lambda n: f"language_model.{n}", lambda n: n.replace("model.", "model.language_model.", 1)]
)
def test_the_text_part_of_a_multimodal_model_by_itself(names: Callable[[str], str], make: Make, tmp_path: Path) -> None:
    folder = make("model")
    expected, text = tensors_of(folder), json.loads((folder / "config.json").read_text())
    renamed(folder, names)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text, "vision_config": {}}))
    assert same(open_folder(folder), expected)
    assert not check(recipe(folder, folder, folder)).errors
    rewrite(folder, lambda t: t.update({"vision_tower.patch.weight": torch.ones(3)}))
    [problem] = check(recipe(folder, folder, folder)).errors  # multimodal proper
    assert "llava" in problem.what and len(str(problem).splitlines()) == 1


LEFT = {
    "v_head.summary.weight": (1, 32),
    "v_head.summary.bias": (1,),
    "score.weight": (2, 32),
    "classifier.bias": (2,),
    "qa_outputs.weight": (2, 32),
    "model.rotary_emb.inv_freq": (4,),
    "model.layers.0.self_attn.rotary_emb.inv_freq": (4,),
    "model.layers.1.self_attn.rotary_emb.cos_cached": (1, 1, 64, 8),
    "model.layers.0.attn.bias": (1, 1, 64, 64),
    "model.layers.0.self_attn.masked_bias": (),
    "model.layers.0.attention.mask": (64, 64),
    "model.position_ids": (1, 64),
}


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("name", LEFT)
def test_leftovers_are_ignored_with_a_warning(name: str, wrapper: str, make: Make, tmp_path: Path) -> None:
    folder, plain = make("model"), make("plain")
    rewrite(folder, lambda t: t.update({name: torch.ones(LEFT[name])}))
    renamed(folder, lambda name: wrapper + name)
    source = open_folder(folder)
    assert source.ignored == (name,) and same(source, tensors_of(plain))
    found = check(recipe(folder, folder, plain))
    assert not found.errors
    [warning] = [w for w in found.warnings if w.code == "source.leftovers"]
    assert name in warning.what and warning.where == "base_model"
    assert "source.leftovers" in [w.code for w in check(recipe(plain, folder)).warnings]


def test_leftovers_that_only_the_index_knows(make: Make) -> None:
    folder = make("model")
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    files = shards(folder, tensors, 1)
    index(folder, {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)}, files)
    assert same(opened(folder), tensors)
    index(folder, {**tensors, "model.layers.2.mlp.up_proj.weight": torch.ones(1)}, files)
    assert "which no file has" in refused(folder).what


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.new.weight", "model.layers.0.attn.bias", "model.mtp.weight"]
)
def test_weights_without_a_place_stay_errors(name: str, make: Make) -> None:
    folder = rewrite(make("model"), lambda t: t.update({name: torch.ones(32)}))
    [problem] = check(recipe(folder, folder)).errors
    assert problem.code == "source.no-place" and name in problem.what


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_an_architecture_reads_is_a_leftover(kind: str, make: Make) -> None:
    folder = make("model", kind=kind)
    assert open_folder(folder).ignored == ()
    for host in HOSTS:
        for dense in host.takes:
            places = {*dense.outer, *dense.layer, *(name for name, _ in dense.ffn.values())}
            places |= {name for names in dense.kinds.values() for name in names}
            full = places | {f"model.layers.0.{name}" for name in places}
            assert not [name for name in full if LEFTOVER.fullmatch(name) or MASK.fullmatch(name)]


def test_companions_of_a_gguf_file_are_no_choice(tmp_path: Path) -> None:
    for name, size in (("a-Q4.gguf", 5), ("b-Q8.gguf", 9), ("c-Q2.gguf", 3), ("mmproj-f16.gguf", 20)):
        (tmp_path / name).write_bytes(b"x" * size)
    problem = refused(tmp_path)
    assert "3 GGUF files" in problem.what and problem.remedy.endswith("b-Q8.gguf")
    for name in ("a-Q4.gguf", "c-Q2.gguf"):
        (tmp_path / name).unlink()
    (tmp_path / "calibration.bin").write_bytes(b"x")
    assert "'b-Q8.gguf' can't be read" in refused(tmp_path).what
