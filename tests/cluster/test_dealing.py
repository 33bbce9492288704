"""GGUF on a cluster: the files of one process, those of each type written by one of the machines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import psutil
import pytest
from hub_server import Hub
from ray_nodes import Nodes, writers
from small_models import recipe
from stored_models import write_gguf
from test_exporting import contents
from test_merging_to_gguf import models, wanted

from lazymoe import LazyMoEError, Recipe, merge_gguf_to_hub, merge_to_gguf
from lazymoe.cli import main

TYPES = "Q3_K_S,F16,Q4_K_M,IQ2_S"


@pytest.fixture
def given(clean_hub: Hub, demo_models: Path, tmp_path: Path) -> Recipe:
    """The default recipe of three models on the Hub, of the demo's tokenizer."""
    made = models(tmp_path / "models", demo_models / "base", num_hidden_layers=3)
    names = [f"acme/{tmp_path.name.strip('_.-')}-{i}" for i in range(4)]
    for name, folder in zip(names, made, strict=True):
        clean_hub.add(name, folder)
    asked = wanted(made, gate_mode="fit")
    experts = [e.model_copy(update={"source_model": n}) for e, n in zip(asked.experts, names[1:], strict=True)]
    return asked.model_copy(update={"base_model": names[0]}).with_experts(experts)


@pytest.mark.slow
@pytest.mark.parametrize("imatrix", [True, False])
def test_the_files_are_those_of_one_process(imatrix: bool, given: Recipe, nodes: Nodes, tmp_path: Path) -> None:
    seen: dict[str, int] = {}
    types = TYPES if imatrix else "Q3_K_S,F16,Q4_K_M"  # the last is no good without a matrix

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "sweep":
            seen.update(writers(tmp_path / "moe"))

    there = {"imatrix": imatrix, "device": "cpu", "threads": 1}
    merge_to_gguf(given, types, tmp_path / "moe", on=nodes.address, progress=progress, **there)
    merge_to_gguf(given, types, tmp_path / "here" / "moe", **there)
    assert contents(tmp_path / "moe") == contents(tmp_path / "here" / "moe")
    assert (
        sorted(seen) == sorted(f"moe-{kind}.gguf" for kind in types.split(","))
        and max(Counter(seen.values()).values()) == 1 + imatrix
    )


@pytest.mark.slow
def test_one_that_writes_and_dies_is_done_without(given: Recipe, nodes: Nodes, tmp_path: Path) -> None:
    killed = set[int]()

    def progress(stage: str, done: int, total: int) -> None:
        if not killed and (stage, done) == ("sweep", 2):
            killed.add(dying := writers(tmp_path / "moe")["moe-IQ2_S.gguf"])
            psutil.Process(dying).kill()

    merge_to_gguf(given, TYPES, tmp_path / "moe", on=nodes.address, progress=progress, threads=1)
    merge_to_gguf(given, TYPES, tmp_path / "here" / "moe", device="cpu", threads=1)
    assert killed
    assert contents(tmp_path / "moe") == contents(tmp_path / "here" / "moe")


@pytest.mark.slow
def test_to_the_hub_and_what_cannot_be(
    given: Recipe, nodes: Nodes, clean_hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = "writer/cluster-GGUF"
    merge_gguf_to_hub(given, "Q4_K_M,Q8_0", repo, tmp_path / "moe", on=nodes.address)
    assert {name for name in clean_hub.repos[repo].commits[-1].files if name.endswith(".gguf")} == {
        "moe-Q4_K_M.gguf", "moe-Q8_0.gguf", "moe.imatrix.gguf",
    }  # fmt: skip
    assert not (tmp_path / "moe").exists()

    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(given.to_yaml())
    assert main(["gguf", str(folder), "F16", "--on", nodes.address]) == 2
    assert "error: --on: a finished mixture is read on one machine." in capsys.readouterr().err
    with pytest.raises(LazyMoEError, match="on processors"):
        merge_to_gguf(given, "F16", tmp_path / "other", on=nodes.address, device="cuda")


def test_what_is_only_copied_is_not_shared_out(demo_models: Path, tmp_path: Path) -> None:
    """And that is told before a cluster is looked for."""
    file = write_gguf(demo_models / "base", tmp_path / "model.gguf")
    given = recipe(demo_models / "base", file, file, gate_mode="random")
    with pytest.raises(LazyMoEError, match=r"would be copied as they are.*Leave --on out"):
        merge_to_gguf(given, "Q8_0", tmp_path / "moe", on="ray:127.0.0.1:9")
    assert not (tmp_path / "moe").exists()
