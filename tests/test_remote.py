"""Merged of models that stay on the Hub: the same files as of models that are here, and hardly any disk."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from crossing import crossed
from hub_server import Hub
from huggingface_hub import constants
from safetensors.torch import save_file
from small_models import contents, make_model, rewrite, tensors_of, write_recipe
from stored_models import index, shards
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lazymoe import HubError, LazyMoEError, Recipe, check, merge, merge_to_gguf, merge_to_hub
from lazymoe.cli import main
from lazymoe.computing import shared_weights
from lazymoe.hub import ahead
from lazymoe.planning import disk, memory
from lazymoe.planning.checking import judge
from lazymoe.planning.plan import Piece
from lazymoe.planning.prepared import Prepared, prepare
from lazymoe.planning.remote import remote

SMALL = {"shard_size": 60_000}
WEIGHTS = "model.safetensors"
GET = f"GET .*/{WEIGHTS}"
TEXTS = (["a cake of eggs and flour", "how long do eggs boil"], ["def f(x): return x", "import os, sys"])


def give_tokenizer(folder: Path) -> None:
    """Bytes as tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({c: i for i, c in enumerate(["<s>", "</s>", *letters])}, []))
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def put(hub: Hub, tmp_path: Path, kind: str = "llama", **config: object) -> Recipe:
    """Put three models on the Hub that no cache has, and give a recipe of them, with random routers."""
    names = [f"acme/{tmp_path.name.strip('_.-')}-{i}" for i in range(3)]
    for i, name in enumerate(names):
        sizes = {"vocab_size": 260, "num_hidden_layers": 4, **config}
        folder = make_model(tmp_path / "models", f"m{i}", i, kind, **sizes)
        give_tokenizer(folder)
        hub.add(name, folder)
    experts = [{"source_model": n, "positive_prompts": t} for n, t in zip(names[1:], TEXTS, strict=True)]
    return Recipe.model_validate({"base_model": names[0], "gate_mode": "random", "experts": experts})


@pytest.fixture
def given(clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(ahead, "BLOCK", 1000)  # many blocks of a tensor
    recipe = put(clean_hub, tmp_path)
    clean_hub.sent = Counter()
    return recipe


def headers(hub: Hub, prepared: Prepared) -> int:
    """How many bytes of weights the Hub sends before anything is planned: their headers, each in two parts."""
    sizes = [hub.repos[s.reference.model].commits[-1].files[WEIGHTS].size for s in set_of(prepared)]
    return sum(sizes) - sum(t.nbytes for s in set_of(prepared) for t in s.tensors.values())


def set_of(prepared: Prepared) -> list:  # type: ignore[type-arg]
    return list({s.reference: s for s in prepared.sources}.values())


def cached(prepared: Prepared) -> list[Path]:
    """The files of weights, whole or in part, that the cache has of the models."""
    stores = {s.folder.parent.parent for s in prepared.sources}
    return [path for store in stores for path in (store / "blobs").iterdir() if path.stat().st_size > 30_000]


@pytest.mark.parametrize(
    ("shared", "gate_mode"), crossed(["base", "average", "regmean"], ["random", "cheap_embed", "hidden", "fit"])
)
def test_the_files_are_those_of_a_local_merge(gate_mode: str, shared: str, given: Recipe, tmp_path: Path) -> None:
    asked, told = given.with_fields(gate_mode=gate_mode, shared_weights=shared), []
    remote = merge(asked, tmp_path / "remote", source="remote", progress=lambda *p: told.append(p), **SMALL).folder
    assert not cached(prepare(asked))
    assert contents(remote) == contents(merge(asked, tmp_path / "local", source="local", **SMALL).folder)
    downloads = [(done, total) for stage, done, total in told if stage == "download"]
    assert downloads == sorted(downloads) and len({total for _, total in downloads}) == 1
    assert downloads[-1] == (downloads[-1][1],) * 2


@pytest.mark.parametrize("gate_mode", ["random", "fit"])
def test_corrected_experts_are_those_of_a_local_merge(
    gate_mode: str, given: Recipe, clean_hub: Hub, tmp_path: Path
) -> None:
    """Their own models are read whole, and nothing that wasn't counted."""
    asked = given.with_fields(gate_mode=gate_mode, shared_weights="base", expert_weights="corrected")
    prepared = prepare(asked, source="remote")
    counted = remote(prepared.prompts, prepared.sound_plan).nbytes
    assert counted >= sum(t.nbytes for s in prepared.sources[1:] for t in s.tensors.values())
    clean_hub.sent = Counter()
    moe = merge(asked, tmp_path / "remote", source="remote", **SMALL).folder
    assert clean_hub.sent_of(WEIGHTS) - headers(clean_hub, prepared) <= 1.02 * counted
    assert contents(moe) == contents(merge(asked, tmp_path / "local", source="local", **SMALL).folder)


def to_fp8(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "_proj" in name]:
        tensors[name.removesuffix("weight") + "weight_scale"] = torch.tensor(0.5)
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def test_what_is_worked_out_of_what_is_read_is_the_same(given: Recipe, clean_hub: Hub, tmp_path: Path) -> None:
    """An expert in FP8 with noise, another with an adapter, in files by an index."""
    one, two = given.experts
    clean_hub.add(one.source_model, rewrite(tmp_path / "models" / "m1", to_fp8))
    below = tmp_path / "models" / "m2"
    tensors = tensors_of(below)
    (below / WEIGHTS).unlink()
    index(below, tensors, shards(below, tensors, 3))
    rank = {"lora_A": (2, 32), "lora_B": (tensors["model.layers.0.mlp.up_proj.weight"].shape[0], 2)}
    lora = {f"base_model.model.model.layers.0.mlp.up_proj.{k}.weight": torch.randn(size) for k, size in rank.items()}
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    clean_hub.add(two.source_model, below)
    clean_hub.add(f"{two.source_model}-lora", tmp_path / "lora")
    experts = [
        one.model_copy(update={"noise_scale": 0.1, "residual_scale": 0.5}),
        two.model_copy(update={"source_model": f"{two.source_model}+{two.source_model}-lora"}),
    ]
    asked = given.with_experts(experts)
    remote = merge(asked, tmp_path / "remote", source="remote", **SMALL).folder
    assert not cached(prepare(asked))
    assert contents(remote) == contents(merge(asked, tmp_path / "local", source="local", **SMALL).folder)


@pytest.mark.parametrize(("kind", "block"), crossed(["llama", "phi3", "granite", "cohere2"], [500, 10**6]))
def test_what_is_needed_is_brought_and_nothing_else(
    kind: str, block: int, clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BLOCK", block)
    asked = put(clean_hub, tmp_path, kind)
    prepared = prepare(asked)
    needed = {(p.source, p.tensor.name, p.start): p for o in prepared.sound_plan.outputs for p in o.parts
              if isinstance(p, Piece)}  # fmt: skip
    nbytes = sum(p.elements * 2 for p in needed.values())
    clean_hub.sent = Counter()
    merge(asked, tmp_path / "moe", source="remote", **SMALL)
    brought = clean_hub.sent_of(WEIGHTS) - headers(clean_hub, prepared)
    assert nbytes <= brought <= nbytes * 1.02
    way = judge(prepare(asked, source="remote"), tmp_path).way
    assert way and way.remote and way.remote.nbytes == nbytes and way.download == 0


def swept_once(hub: Hub, asked: Recipe, moe: Path) -> None:
    """Merge models where they are: no more comes than was counted."""
    prepared = prepare(asked)
    hub.sent = Counter()
    merge(asked, moe, source="remote", **SMALL)
    away = remote(prepared.prompts, prepared.sound_plan)
    brought = hub.sent_of(WEIGHTS) - headers(hub, prepared)
    assert away.nbytes <= brought <= 1.02 * away.nbytes


@pytest.mark.parametrize(
    ("tied", "gate_mode", "shared"), crossed([False, True], ["fit", "random"], ["base", "average", "regmean"])
)
def test_a_sweep_brings_every_byte_once(
    tied: bool, gate_mode: str, shared: str, clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BLOCK", 1000)
    asked = put(clean_hub, tmp_path, tie_word_embeddings=tied).with_fields(gate_mode=gate_mode, shared_weights=shared)
    swept_once(clean_hub, asked, tmp_path / "moe")


@pytest.mark.parametrize(("shared", "tied"), crossed(["base", "average", "regmean"], [False, True]))
def test_a_vocabulary_larger_than_layers_is_brought_once(
    shared: str, tied: bool, clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows from all over the embeddings are wanted first, and all of them later: too many to wait in memory."""
    monkeypatch.setattr(ahead, "BLOCK", 8000)
    monkeypatch.setattr(shared_weights, "ROWS", 64)
    monkeypatch.setattr(memory, "FEW", 0)
    sizes = {"vocab_size": 4000, "tie_word_embeddings": tied}
    asked = put(clean_hub, tmp_path, **sizes).with_fields(gate_mode="fit", shared_weights=shared)
    swept_once(clean_hub, asked, tmp_path / "moe")


@pytest.mark.parametrize(("tied", "shared"), crossed([False, True], ["base", "average", "regmean"]))
def test_gguf_is_made_of_them_too_and_every_byte_brought_once(
    tied: bool, shared: str, clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a layer is read again to be quantized, when it is known how much its columns count."""
    monkeypatch.setattr(ahead, "BLOCK", 1000)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "tie_word_embeddings": tied}
    asked = put(clean_hub, tmp_path, **sizes).with_fields(shared_weights=shared)
    prepared = prepare(asked, source="remote")
    clean_hub.sent = Counter()
    out = tmp_path / "remote" / "moe"
    made = merge_to_gguf(asked, "Q4_K_M", out, source="remote", device="cpu").files["Q4_K_M"]
    away = remote(prepared.prompts, replace(prepared.sound_plan, weighted=True))
    brought = clean_hub.sent_of(WEIGHTS) - headers(clean_hub, prepared)
    assert away.nbytes <= brought <= 1.02 * away.nbytes
    assert not cached(prepared)
    local = merge_to_gguf(asked, "Q4_K_M", tmp_path / "local" / "moe", source="local", device="cpu").files["Q4_K_M"]
    assert made[0].read_bytes() == local[0].read_bytes()


@pytest.mark.parametrize(("then", "after"), crossed(["remote", "local"], [0.1, 0.5, 0.9]))
def test_a_rerun_goes_on_from_the_last_finished_file(
    after: float, then: str, given: Recipe, clean_hub: Hub, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "write" and done >= after * total:
            raise KeyboardInterrupt

    whole = contents(merge(given, tmp_path / "whole", source="remote", **SMALL).folder)
    prepared = prepare(given, source="remote", **SMALL)
    with pytest.raises(KeyboardInterrupt):
        merge(given, tmp_path / "moe", source="remote", progress=stop, **SMALL)
    done = {path.name for path in (tmp_path / "moe").glob("model-*.safetensors")}
    for thread in threading.enumerate():
        if "ThreadPool" in thread.name:
            thread.join()  # it hears of the stop when the Hub says something
    clean_hub.sent = Counter()
    assert contents(merge(given, tmp_path / "moe", source=then, **SMALL).folder) == whole
    left = [o for name, outputs in prepared.sound_plan.shards if name not in done for o in outputs]
    if then == "remote":
        nbytes = sum(p.elements * 2 for o in left for p in o.parts if isinstance(p, Piece))
        assert clean_hub.sent_of(WEIGHTS) <= nbytes * 1.02 + headers(clean_hub, prepared)


KILLED = """
import os, signal, sys
from lazymoe.cli import main
from lazymoe.hub import ahead
ahead.BLOCK = 1000
count = int(sys.argv[1])
bring = ahead.Ahead._bring
def counted(self, *arguments):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return bring(self, *arguments)
ahead.Ahead._bring = counted
code = main(sys.argv[2:])
print(-count)
sys.exit(code)
"""


def run(n: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command that is killed at the nth block that it brings, if there are as many."""
    command = [sys.executable, "-c", KILLED, str(n), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)


@pytest.mark.slow
def test_killed_at_any_moment(given: Recipe, tmp_path: Path) -> None:
    asked = given.with_fields(shared_weights="average")
    file = write_recipe(tmp_path / "recipe.yaml", asked)
    whole = contents(merge(file, tmp_path / "whole", source="remote", shard_size=60_000).folder)
    arguments = ("--source", "remote", "--shard-size", "60kB")
    blocks = int(run(0, "merge", file, tmp_path / "counted", *arguments).stdout.split()[-1])
    for i in range(8):
        out = tmp_path / f"moe-{i}"
        killed = run(1 + blocks * i // 8, "merge", file, out, *arguments)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again = run(0, "merge", file, out, *arguments)
        assert again.returncode == 0, again.stderr
        assert contents(out) == whole


FAULTS = {  # kind of fault, how often, seconds, the line if it lasts
    "429 with Retry-After": (429, 5, 1, ""),
    "503": (503, 20, 0, ""),
    "cut": ("cut", 20, 0, ""),
    "short": ("short", 20, 0, ""),
    "stalled": ("stall", 3, 3, ""),
    "revoked": (401, math.inf, 0, "the Hub refuses your token"),
    "cut for good": ("cut", math.inf, 0, "Check the network and run it again: it goes on from here"),
    "the range ignored": ("whole", math.inf, 0, "--source local"),
    "changed": ("retag", math.inf, 0, "isn't what the Hub had when this began"),
}


@pytest.mark.parametrize(("kind", "times", "seconds", "line"), FAULTS.values(), ids=FAULTS)
def test_it_completes_or_stops_with_a_line_and_completes(
    kind: int | str, times: float, seconds: float, line: str, given: Recipe, clean_hub: Hub, tmp_path: Path
) -> None:
    whole = contents(merge(given, tmp_path / "whole", source="remote", **SMALL).folder)

    def break_it(stage: str, done: int, total: int) -> None:
        if stage == "write" and done > total // 2 and not clean_hub.faults:
            clean_hub.fault(GET, kind, times, seconds)

    if line:
        with pytest.raises(LazyMoEError, match=line) as told:
            merge(given, tmp_path / "moe", source="remote", progress=break_it, **SMALL)
        assert "\n" not in str(told.value)
        assert not (tmp_path / "moe" / "config.json").exists()
        kept = (tmp_path / "moe").exists() and any((tmp_path / "moe").glob("model-*.safetensors"))
        assert kept is isinstance(told.value, HubError)  # of a model that is another one nothing stays
        clean_hub.faults = [clean_hub.fault(GET, 503, 0)]
    assert contents(merge(given, tmp_path / "moe", source="remote", progress=break_it, **SMALL).folder) == whole


def test_private_models_are_read_by_addresses_that_expire(
    given: Recipe, clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, expert in enumerate(given.experts, 1):
        clean_hub.add(expert.source_model, tmp_path / "models" / f"m{i}", private=True, gated=i == 1)
    monkeypatch.setattr(ahead, "AT_ONCE", 1)  # an address expires by how often it is used
    with monkeypatch.context() as signed:
        signed.setattr(clean_hub, "uses", 3)
        remote = merge(given, tmp_path / "remote", source="remote", **SMALL).folder
    assert len(clean_hub.left) > 10
    assert contents(remote) == contents(merge(given, tmp_path / "local", source="local", **SMALL).folder)


def free(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Let every disk have so much room."""
    full = shutil.disk_usage("/")._replace(free=nbytes)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: full)


def test_auto_leaves_models_on_the_hub_if_the_disk_is_too_small(
    given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(given)
    plan, download = prepared.sound_plan, sum(prepared.missing.values())
    output = plan.nbytes
    free(monkeypatch, output + download)
    way = check(given, tmp_path / "moe").way
    assert way and way.download == download and way.remote is None
    free(monkeypatch, output + download - 1)
    found = check(given, tmp_path / "moe")
    assert not found.errors and found.way and found.way.remote and not found.way.to_hub and found.way.download == 0
    assert str(found).endswith("This can be merged while its models stay on the Hub.")
    [problem] = judge(prepare(given, source="local"), tmp_path / "moe", to_hub=False).errors
    assert problem.code == "output.no-room" and problem.remedy.endswith("which fits: --source remote.")

    file = write_recipe(tmp_path / "recipe.yaml", given)
    assert main(["merge", str(file), str(tmp_path / "moe")]) == 0
    assert capsys.readouterr().err.count("note: ") == 1
    assert not cached(prepared)
    free(monkeypatch, output - 1)  # neither way fits
    [problem] = check(given, tmp_path / "other").errors
    assert "--source" not in problem.remedy
    [problem] = check(given, tmp_path / "other", source="local").errors
    assert "--source" not in problem.remedy


def test_what_the_cache_has_is_taken_from_there(given: Recipe, clean_hub: Hub, tmp_path: Path) -> None:
    local = contents(merge(given, tmp_path / "local", source="local", **SMALL).folder)
    clean_hub.sent = Counter()
    assert contents(merge(given, tmp_path / "remote", source="remote", **SMALL).folder) == local
    assert clean_hub.sent_of(WEIGHTS) == 0
    assert [way.source for way in check(given, source="remote").ways] == ["local", "local"]
    one = prepare(given).sources[1]
    (one.folder / WEIGHTS).unlink()  # one of the three isn't here
    assert contents(merge(given, tmp_path / "half", source="remote", **SMALL).folder) == local
    assert 0 < clean_hub.sent_of(WEIGHTS) < one.weights[WEIGHTS] and not (one.folder / WEIGHTS).exists()


def test_there_are_no_other_ways(given: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LazyMoEError, match=r"there is no 'cloud'\. Say one of: auto, local, remote"):
        merge(given, tmp_path / "moe", source="cloud")  # type: ignore[arg-type]
    assert main(["merge", "x.yaml", "y", "--source", "cloud"]) == 2
    assert "invalid choice: 'cloud'" in capsys.readouterr().err


def test_from_hub_to_hub_hardly_any_disk_is_taken(
    given: Recipe, clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    asked = given.with_fields(gate_mode="fit", shared_weights="regmean")
    prepared = prepare(asked, source="remote", **SMALL)
    way = judge(prepared, tmp_path, to_hub=True).way
    assert way
    most = 0

    def watch(stage: str, done: int, total: int) -> None:
        nonlocal most
        paths = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
        sizes = [path.stat().st_size for path in paths if path.exists()]
        most = max(most, sum(sizes))

    local = merge(asked, tmp_path / "local", source="local", **SMALL).folder
    shutil.rmtree(constants.HF_HUB_CACHE)
    merge_to_hub(asked, "writer/straight", tmp_path / "work", token="hf_writer", source="remote", progress=watch,
                 **SMALL)  # fmt: skip
    commit = clean_hub.repos["writer/straight"].commits[-1].files
    there = {name: clean_hub.read("writer/straight", name) for name in commit}
    assert {name: data for name, data in contents(local).items() if name != "README.md"}.items() <= there.items()
    assert not cached(prepared) and not (tmp_path / "work").exists()
    assert 0 < most <= way.disk + 100_000  # small files
    assert json.loads(there["lazymoe.json"])
