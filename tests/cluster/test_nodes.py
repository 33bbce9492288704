"""On a cluster: the same files as in one process, each byte of a model brought to one node, whatever dies."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from hub_server import Hub, User
from ray_nodes import Nodes, writers
from safetensors.torch import save_file
from small_models import Make, contents, make_model
from test_remote import TEXTS, give_tokenizer

import lazymoe.hub.client
from lazymoe import ClusterError, LazyMoEError, Recipe, SourceError, merge, merge_to_hub
from lazymoe.cli import main
from lazymoe.planning.prepared import prepare
from lazymoe.planning.remote import remote

SIZES = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "vocab_size": 260}
SMALL = {"shard_size": 4_000_000}
TOKEN = "hf_" + "ClusterTokenThatNobodyMayFindAnywhere"


@pytest.fixture
def given(clean_hub: Hub, tmp_path: Path) -> Recipe:
    """The default recipe of three models on the Hub."""
    names = [f"acme/{tmp_path.name.strip('_.-')}-{i}" for i in range(3)]
    for i, name in enumerate(names):
        folder = make_model(tmp_path / "models", f"m{i}", i, std=0.05, **SIZES)
        give_tokenizer(folder)
        clean_hub.add(name, folder)
    experts = [{"source_model": n, "positive_prompts": t} for n, t in zip(names[1:], TEXTS, strict=True)]
    clean_hub.sent_to = Counter()
    return Recipe.model_validate({"base_model": names[0], "experts": experts})


def test_without_ray_a_line_says_so(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe = {"base_model": str(make("m0")), "gate_mode": "random", "experts": [{"source_model": str(make("m1"))}] * 2}
    (tmp_path / "recipe.yaml").write_text(Recipe.model_validate(recipe).to_yaml())
    assert main(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "moe"), "--on", "ray"]) == 2
    assert "error: --on: a cluster takes the package ray. Run: pip install 'ray>=2.44'" in capsys.readouterr().err
    assert not (tmp_path / "moe").exists()


def test_what_a_cluster_cannot_do_is_said(make: Make, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"base_model": str(make("m0")), "experts": [{"source_model": str(make("m1"))}] * 2})
    wrong = {"on": ({"on": "slurm"}, "isn't a cluster"), "source": ({"on": "ray", "source": "local"}, "none of them"),
             "device": ({"on": "ray", "device": "cuda"}, "on processors")}  # fmt: skip
    for where, (options, words) in wrong.items():
        with pytest.raises(LazyMoEError, match=f"{where}: .*{words}"):
            merge(recipe.with_fields(gate_mode="random"), tmp_path / "moe", **options)


def test_the_files_are_those_of_one_process_and_each_byte_is_brought_once(
    given: Recipe, nodes: Nodes, clean_hub: Hub, tmp_path: Path
) -> None:
    """And they are written by those that read: this process opens none of them."""
    prepared, told, writing = prepare(given, source="remote"), [], set[int]()
    needed = remote(prepared.prompts, prepared.sound_plan).nbytes
    clean_hub.sent_to = Counter()

    def progress(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))
        if stage == "sweep":
            writing.update(writers(tmp_path / "moe").values())

    moe = merge(given, tmp_path / "moe", on=nodes.address, progress=progress, **SMALL).folder
    assert len(writing) == 3 and os.getpid() not in writing
    brought = {model: n for model, n in clean_hub.sent_to.items() if n > 100_000}
    assert len({node for node, _ in brought}) == len({repo for _, repo in brought}) == len(brought) == 3, brought
    assert "" not in {node for node, _ in brought}  # this process, which read their headers
    assert needed <= sum(brought.values()) <= 1.02 * needed
    assert [done for stage, done, _ in told if stage == "download"][-1] == needed
    assert contents(moe) == contents(merge(given, tmp_path / "here", **SMALL).folder)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [
    {"gate_mode": "random", "shared_weights": "base"}, {"gate_mode": "random", "shared_weights": "regmean"},
    {"gate_mode": "hidden", "shared_weights": "average"}, {"gate_mode": "fit", "expert_weights": "corrected"},
], ids=lambda fields: " ".join(fields.values()))  # fmt: skip
def test_other_recipes_are_the_same_too(fields: dict[str, str], given: Recipe, nodes: Nodes, tmp_path: Path) -> None:
    asked = given.with_fields(**fields)
    moe = merge(asked, tmp_path / "moe", on=nodes.address, **SMALL).folder
    assert contents(moe) == contents(merge(asked, tmp_path / "here", **SMALL).folder)


@pytest.mark.slow
@pytest.mark.parametrize("stage, done", [("download", 1_000_000), ("sweep", 2), ("sweep", 4)])
def test_a_node_that_dies_is_done_without(stage: str, done: int, given: Recipe, nodes: Nodes, tmp_path: Path) -> None:
    killed = []

    def progress(at: str, far: int, _: int) -> None:
        if not killed and at == stage and far >= done:
            killed.append(nodes.kill())

    moe = merge(given, tmp_path / "moe", on=nodes.address, progress=progress, **SMALL).folder
    assert killed
    assert contents(moe) == contents(merge(given, tmp_path / "here", **SMALL).folder)


@pytest.mark.slow
def test_one_that_writes_and_dies_is_done_without(given: Recipe, nodes: Nodes, tmp_path: Path) -> None:
    killed = set[int]()

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "sweep" and done == 2:
            killed.add(dying := min(writers(tmp_path / "moe").values()))
            psutil.Process(dying).kill()

    moe = merge(given, tmp_path / "moe", on=nodes.address, progress=progress, **SMALL).folder
    assert killed
    assert contents(moe) == contents(merge(given, tmp_path / "here", **SMALL).folder)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="the system has no folder that is another for each")
def test_a_folder_that_only_this_process_has_is_written_by_it(
    given: Recipe, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    writing = set[int]()

    def progress(stage: str, done: int, total: int) -> None:
        writing.update(writers(tmp_path / "moe").values())

    merge(given, Path("/proc/self/cwd/moe"), on=nodes.address, progress=progress, **SMALL)
    assert writing == {os.getpid()}
    assert contents(tmp_path / "moe") == contents(merge(given, tmp_path / "here", **SMALL).folder)


@pytest.mark.slow
def test_stopped_it_goes_on_in_one_process_and_the_other_way_round(given: Recipe, nodes: Nodes, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("sweep", 2):
            raise KeyboardInterrupt

    for first, then in ((nodes.address, None), (None, nodes.address)):
        moe, layers = tmp_path / f"stopped-{bool(first)}", []
        with pytest.raises(KeyboardInterrupt):
            merge(given, moe, on=first, progress=stop, **SMALL)
        merge(given, moe, on=then, progress=lambda stage, n, _, on=layers: on.append(n) if stage == "sweep" else None,
              **SMALL)  # fmt: skip
        assert layers == [3, 4]
        assert contents(moe) == contents(merge(given, tmp_path / "here", **SMALL).folder)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True], ids=["", "a node dies"])
def test_straight_to_the_hub(dies: bool, given: Recipe, nodes: Nodes, clean_hub: Hub, tmp_path: Path) -> None:
    repos = [f"writer/on-cluster-{dies}", f"writer/from-here-{dies}"]
    killed, asked = [], len(clean_hub.requests)

    def progress(stage: str, done: int, _: int) -> None:
        if dies and not killed and stage == "upload" and done:
            killed.append(nodes.kill())

    merge_to_hub(given, repos[0], tmp_path / "work", on=nodes.address, progress=progress, **SMALL)
    merge_to_hub(given, repos[1], tmp_path / "work", **SMALL)
    one, other = (clean_hub.repos[name].commits[-1].files for name in repos)
    assert one.keys() == other.keys() and all(one[name] == other[name] for name in one if name != "README.md")
    assert len(clean_hub.repos[repos[0]].commits) == 2 and not (tmp_path / "work").exists()
    sending = {r.machine for r in clean_hub.requests[asked:] if f"{repos[0]}/preupload" in r.path}
    assert len(sending - {""}) == 3 and bool(killed) == dies


@pytest.mark.slow
def test_models_in_folders_and_with_adapters(
    given: Recipe, nodes: Nodes, clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By relative names of folders that every node sees here, and an adapter on the Hub."""
    monkeypatch.chdir(tmp_path / "models")
    lora, two = tmp_path / "lora", given.experts[1].source_model
    lora.mkdir()
    rank = {"lora_A": (2, SIZES["hidden_size"]), "lora_B": (SIZES["intermediate_size"], 2)}
    factors = {f"base_model.model.model.layers.0.mlp.up_proj.{k}.weight": torch.randn(s) for k, s in rank.items()}
    save_file(factors, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    clean_hub.add(f"{two}-lora", lora)
    named = zip(given.experts, ("m1", f"{two}+{two}-lora"), strict=True)
    asked = given.with_experts([expert.model_copy(update={"source_model": name}) for expert, name in named])
    moe = merge(asked, tmp_path / "moe", on=nodes.address, **SMALL).folder
    assert contents(moe) == contents(merge(asked, tmp_path / "here", **SMALL).folder)


@pytest.mark.slow
def test_nobody_sees_the_token(
    given: Recipe, nodes: Nodes, clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no command line, environment or log, and not in the memory of what Ray's dashboard and command line ask."""
    import ray

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(lazymoe.hub.client, "_typed", TOKEN)
    monkeypatch.setitem(clean_hub.tokens, TOKEN, User("acme", "write"))
    for repo in clean_hub.repos.values():
        repo.private = True
    seen: dict[str, bytes] = {}

    def look(stage: str, done: int, total: int) -> None:
        if (stage, done) != ("sweep", SIZES["num_hidden_layers"]):
            return
        session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        seen["logs"] = b"".join(path.read_bytes() for path in session.rglob("logs/*") if path.is_file())
        for process in psutil.Process().children(recursive=True):
            own = Path(f"/proc/{process.pid}")
            seen[f"{process.pid} command"] = (own / "cmdline").read_bytes()
            seen[f"{process.pid} environment"] = (own / "environ").read_bytes()
            if process.name() in ("gcs_server", "raylet"):
                seen[f"{process.pid} memory of {process.name()}"] = memory_of(own)

    merge_to_hub(given, "acme/moe", tmp_path / "moe", on=nodes.address, progress=look, **SMALL)
    told = {what.partition(" ")[2]: data for what, data in seen.items()}
    assert b"lazymoe.cluster.model" in told["memory of gcs_server"]  # it is where actors are known
    assert any(b"HF_HUB_USER_AGENT_ORIGIN" in data for what, data in seen.items() if what.endswith("environment"))
    assert [what for what, data in seen.items() if TOKEN.encode() in data] == []


def memory_of(process: Path) -> bytes:
    """All that a process holds, of what it has written itself."""
    found = []
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            place, rights, *_, inode = line.split()[:5]
            begin, end = (int(number, 16) for number in place.split("-"))
            if rights.startswith("rw") and inode == "0":
                try:
                    memory.seek(begin)
                    found.append(memory.read(end - begin))
                except OSError:
                    continue
    return b"".join(found)


@pytest.mark.slow
def test_what_is_wrong_with_a_model_is_told_in_a_line(
    given: Recipe, nodes: Nodes, clean_hub: Hub, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "sweep" and done == 1:
            clean_hub.fault("GET .*model.safetensors", "retag", times=99)

    with pytest.raises(SourceError, match="isn't what the Hub had when this began"):
        merge(given, tmp_path / "moe", on=nodes.address, progress=stop, **SMALL)


@pytest.mark.slow
def test_no_cluster_is_told_in_a_line(given: Recipe, started: Nodes, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"no cluster of Ray can be reached at 127\.0\.0\.1:9"):
        merge(given, tmp_path / "moe", on="ray:127.0.0.1:9")
    assert not (tmp_path / "moe").exists()
