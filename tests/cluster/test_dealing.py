"""GGUF on a cluster: the files of one process, those of each type written by one of the machines."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hub_server import Hub
from ray_nodes import Nodes
from test_exporting import contents
from test_merging_to_gguf import models, wanted

from lazymoe import LazyMoEError, Recipe, merge_gguf_to_hub, merge_to_gguf, to_gguf
from lazymoe.cli import main
from lazymoe.output.folder import WORK

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


def writers(folder: Path) -> dict[str, int]:
    """The processes that have half-made GGUF files open, by the types of these."""
    found: dict[str, int] = {}
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for file in process.open_files():
                if file.path.startswith(str(folder / WORK)) and file.path.endswith(".gguf"):
                    found[Path(file.path).stem.partition("-")[2]] = process.pid
    return found


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
    assert sorted(seen) == sorted(types.split(",")) and max(Counter(seen.values()).values()) == 1 + imatrix


@pytest.mark.slow
def test_one_that_writes_and_dies_is_done_without(given: Recipe, nodes: Nodes, tmp_path: Path) -> None:
    killed = set[int]()

    def progress(stage: str, done: int, total: int) -> None:
        if not killed and (stage, done) == ("sweep", 2):
            killed.add(dying := writers(tmp_path / "moe")["IQ2_S"])
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

    # a source that is such a file already is copied, which is no work to share
    [file] = merge_to_gguf(given, "Q8_0", tmp_path / "one", device="cpu").files["Q8_0"]
    assert file.exists() and to_gguf
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(given.to_yaml())
    assert main(["gguf", str(folder), "F16", "--on", nodes.address]) == 2
    assert "error: --on: a finished mixture is read on one machine." in capsys.readouterr().err
    with pytest.raises(LazyMoEError, match="on processors"):
        merge_to_gguf(given, "F16", tmp_path / "other", on=nodes.address, device="cuda")
