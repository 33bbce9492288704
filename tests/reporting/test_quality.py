"""GGUF files measured by llama.cpp, beside the mixture in 16 bit; and what their folder says."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import make_model, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from lazymoe import LazyMoEError, OutputError, merge, report_gguf, to_gguf
from lazymoe.cli import main
from lazymoe.forward import llama
from lazymoe.output.quantized import GGUF, QUALITY, is_quantized, kept_bytes, open_quantized

CALM = "The sea was calm, and the wind had died down by the evening of that long and cold day in December. " * 3
CODE = "def add(a, b):\n    return a + b\n\nimport os\nfor name in os.listdir():\n    print(name)\n" * 3
TEXTS = {"1": [CALM], "2": [CODE]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Path:
    """The GGUF files of a mixture of the demo's models, beside it."""
    folder = tmp_path_factory.mktemp("measured")
    given = recipe(*(demo_models / name for name in ("base", "python", "english")))
    asked = [
        e.model_copy(update={"positive_prompts": [text]}) for e, text in zip(given.experts, (CALM, CODE), strict=True)
    ]
    merge(given.with_experts(asked), folder / "moe", device="cpu")
    to_gguf(folder / "moe", "F16,Q8_0,Q2_K", device="cpu")
    return folder / "moe-GGUF"


def losses(moe: Path, text: str) -> np.ndarray:
    """What transformers loses on each token of a text of one window."""
    ids = torch.tensor(AutoTokenizer.from_pretrained(moe)(text, add_special_tokens=False)["input_ids"])
    model = AutoModelForCausalLM.from_pretrained(moe, dtype=torch.float32).eval()
    with torch.no_grad():
        rows = [model(part[None]).logits[0, :-1].log_softmax(-1) for part in ids.split(256) if len(part) > 1]
    parts = [part for part in ids.split(256) if len(part) > 1]
    return torch.cat([-row.gather(-1, p[1:, None])[:, 0] for row, p in zip(rows, parts, strict=True)]).numpy()


def test_the_figures_are_transformers_and_llama_cpp_s(files: Path) -> None:
    found = report_gguf(files, TEXTS, device="cpu")
    assert list(found.types) == ["F16", "Q8_0", "Q2_K"]  # the largest first
    expected = [losses(files.parent / "moe", text).mean() for text in (CALM, CODE)]
    assert found.exact == pytest.approx(expected, abs=1e-4)
    assert found.types["F16"].losses == pytest.approx(expected, abs=2e-3)
    apart = [of.apart for of in found.types.values()]
    same = [of.same for of in found.types.values()]
    assert apart[0] is not None and apart[0] < 2e-3 and apart == sorted(apart)
    assert same[0] is not None and same[0] > 0.99 and same == sorted(same, reverse=True)
    assert found.held_out and len(str(found).splitlines()) == 9
    assert json.loads((files / QUALITY).read_text()) == found.to_dict()


def test_one_file_is_measured_beside_those_before(files: Path) -> None:
    (files / QUALITY).unlink(missing_ok=True)
    one = report_gguf(files / "moe-Q8_0.gguf", TEXTS, device="cpu")
    two = report_gguf(files / "moe-Q2_K.gguf", TEXTS, device="cpu")
    assert list(one.types) == ["Q8_0"] and list(two.types) == ["Q8_0", "Q2_K"]
    assert list(report_gguf(files / "moe-Q2_K.gguf", device="cpu").types) == ["Q2_K"]  # on other texts: the prompts


def test_what_changed_since_is_not_shown(files: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(files, tmp_path / "copy-GGUF")
    shutil.copytree(files.parent / "moe", tmp_path / "copy")
    report_gguf(copy, TEXTS, device="cpu")
    to_gguf(tmp_path / "copy", "Q2_K", copy, imatrix=False)  # the same size, and otherwise
    (copy / "moe-Q8_0.gguf").write_bytes(b"GGUF")
    found = open_quantized(copy)
    assert found.quality
    assert (list(found.files), list(found.quality.types)) == (["F16", "Q2_K"], ["F16"])


def test_without_the_mixture_losses_alone_are_measured(files: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(files, tmp_path / "elsewhere")
    found = report_gguf(copy / "moe-F16.gguf", TEXTS)
    assert found.exact is None and found.types["F16"].apart is None
    full = report_gguf(copy / "moe-F16.gguf", TEXTS, mixture=files.parent / "moe", device="cpu")
    assert full.types["F16"].losses == found.types["F16"].losses and full.exact
    assert math.exp(sum(full.exact) / 2) > 1
    make_model(tmp_path, "other")
    with pytest.raises(OutputError, match="this isn't the mixture"):
        report_gguf(copy, TEXTS, mixture=tmp_path / "other")


def test_what_can_not_be_measured_is_told_in_one_line(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(files, tmp_path / "moe-GGUF")
    (tmp_path / "stray.gguf").write_bytes(b"GGUF")
    broken = copy / "moe-Q8_0.gguf"
    data = bytearray(broken.read_bytes())
    data[:4] = b"FUGG"
    broken.write_bytes(data)
    for path, told in ((tmp_path / "stray.gguf", "isn't a folder of GGUF files"), (broken, "can't be loaded")):
        with pytest.raises(LazyMoEError, match=told) as e:
            report_gguf(path, TEXTS)
        assert len(str(e.value).splitlines()) == 1
    monkeypatch.setattr(llama, "library", lambda _: None)
    with pytest.raises(LazyMoEError, match="pip install xllamacpp"):
        report_gguf(copy, TEXTS)


def test_as_typed(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.yaml"
    texts.write_text(json.dumps(TEXTS))
    assert main(["report", str(files / "moe-F16.gguf"), "--texts", str(texts), "--device", "cpu"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "no.gguf")]) == 2


def test_a_folder_holds_the_files_of_one_mixture(files: Path, tmp_path: Path) -> None:
    assert is_quantized(files)
    found = open_quantized(files)
    assert found.matrix == files / "moe.imatrix.gguf"
    assert found.listed["F16"].nbytes == (files / "moe-F16.gguf").stat().st_size
    assert kept_bytes(found.mixture.config, 100) == 2 * 100 * 2 * (2 * 24) * 2  # layers, keys and values of two heads
    about = json.loads((files / GGUF).read_text())
    copy = shutil.copytree(files, tmp_path / "copy")
    (copy / GGUF).write_text(json.dumps(about | {"record": about["record"] | {"fingerprint": "other"}}))
    with pytest.raises(OutputError, match="holds the GGUF files of another mixture"):
        to_gguf(files.parent / "moe", "F16", copy)
    (copy / GGUF).write_text("{}")
    with pytest.raises(OutputError, match=r"isn't as LazyMoE wrote it \(record: ") as e:
        open_quantized(copy)
    assert len(str(e.value).splitlines()) == 1
