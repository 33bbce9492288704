"""The command line: what a user types, sees, and gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub
from small_models import Make, recipe, write_recipe

from lazymoe.cli import main


@pytest.fixture
def file(make: Make, tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", recipe(make("base"), make("a", seed=1), make("b", seed=2)))


def test_check_prints_a_table(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(file)]) == 0
    printed = capsys.readouterr().out
    for word in ("MixtralForCausalLM", "parameters", "active per token", "on disk", "free disk", "4 bit"):
        assert word in printed


def test_check_for_programs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", str(file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["experts"], found["architecture"]) == (True, 2, "MixtralForCausalLM")


def test_merge_says_what_was_made_and_how_to_use_it(file: Path, tmp_path: Path, capsys) -> None:
    assert main(["merge", str(file), str(tmp_path / "moe"), "--shard-size", "20KB"]) == 0
    printed = capsys.readouterr()
    assert "MixtralForCausalLM with 2 experts" in printed.out
    assert "Writing: 100%" in printed.err
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path / "moe"}"' in printed.out


@pytest.mark.parametrize(("text", "size"), [("4GB", 4e9), ("500 MB", 5e8), ("1.5g", 1.5e9), ("12", 12), ("2KiB", 2e3)])
def test_sizes(text: str, size: float) -> None:
    from lazymoe.cli import _size

    assert _size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "GB", "4 elephants"])
def test_what_is_no_size(text: str, file: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["merge", str(file), str(tmp_path / "moe"), f"--shard-size={text}"])
    assert stopped.value.code == 2
    assert "isn't a size such as 4GB" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "merge", "demo"])
def test_help_has_an_example(command: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"example: lazymoe {command}" in capsys.readouterr().out


def test_what_computes_nothing_loads_nothing_heavy(file: Path, tmp_path: Path) -> None:
    script = "import sys; from lazymoe.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    script += (
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'ipywidgets'} & set(sys.modules); assert not heavy, heavy"
    )
    for arguments in (["--help"], ["check", str(file)], ["merge", str(file), str(tmp_path / "moe")]):
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)


def test_an_interrupt_says_how_to_go_on(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lazymoe.cli.merge", interrupted)
    assert main(["merge", str(file), str(tmp_path / "moe")]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_card_is_printed(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(file), str(tmp_path / "moe")]) == 0
    capsys.readouterr()
    assert main(["card", str(tmp_path / "moe"), "--repo", "you/moe", "--license", "mit"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("---\n") and "license: mit" in printed.out and not printed.err
    assert main(["card", str(tmp_path / "moe")]) == 0
    assert "no licence is stated" in capsys.readouterr().err


def test_publish_prints_the_address(
    file: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(file), str(tmp_path / "moe")]) == 0
    assert main(["publish", str(tmp_path / "moe"), "writer/from-cli"]) == 2
    assert "token: there is none" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert main(["publish", str(tmp_path / "moe"), "writer/from-cli", "--private"]) == 0
    assert f"{hub.url}/writer/from-cli" in capsys.readouterr().out
    assert hub.repos["writer/from-cli"].private
