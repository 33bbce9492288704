"""Which files are the weights: those that transformers itself would load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from crossing import crossed
from hub_server import Hub
from safetensors.torch import save_file
from small_models import Make, configure, load_model, recipe, tensors_of
from stored_models import EMBEDDINGS, Tensors, index, opened, refused, same, shards

from lazymoe import merge


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


@pytest.mark.parametrize(("lay", "where"), crossed(CHOICES, ["folder", "hub"]))
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


def test_companions_of_a_gguf_file_are_no_choice(tmp_path: Path) -> None:
    for name, size in (("a-Q4.gguf", 5), ("b-Q8.gguf", 9), ("c-Q2.gguf", 3), ("mmproj-f16.gguf", 20)):
        (tmp_path / name).write_bytes(b"x" * size)
    problem = refused(tmp_path)
    assert "3 GGUF files" in problem.what and problem.remedy.endswith("b-Q8.gguf")
    for name in ("a-Q4.gguf", "c-Q2.gguf"):
        (tmp_path / name).unlink()
    (tmp_path / "calibration.bin").write_bytes(b"x")
    assert "'b-Q8.gguf' can't be read" in refused(tmp_path).what
