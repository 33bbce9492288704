"""The command line: what a user types, sees, and gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Hub
from small_models import Make, recipe, write_recipe

from lazymoe import __version__, merge
from lazymoe.cli import main, make_parser
from lazymoe.demonstration.models import domains
from lazymoe.demonstration.story import demo_recipe

COMMANDS = ("check", "merge", "report", "evaluate", "card", "publish", "gguf", "demo")

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def file(make: Make, tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", recipe(make("base"), make("a", seed=1), make("b", seed=2)))


@pytest.fixture
def moe(file: Path, tmp_path: Path) -> Path:
    return merge(file, tmp_path / "made").folder


@pytest.fixture(scope="module")
def spoken(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture that has a tokenizer, and whose experts have prompts: it can be measured."""
    return merge(demo_recipe(demo_models, domains(), "random"), tmp_path_factory.mktemp("cli") / "moe").folder


def told(capsys: Captured) -> Any:
    """What was printed for programs, and nothing besides."""
    printed = capsys.readouterr()
    return json.loads(printed.out)


# what is typed


def test_nothing_at_all_gets_help(capsys: Captured) -> None:
    assert main([]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: lazymoe") and not printed.err
    assert all(f"  {name}  " in printed.out for name in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        "merge missing.yaml --to writer/moe work", "merge --seed 1 missing.yaml work", "merge missing.yaml a --seed 1",
        "check missing.yaml --source remote folder", "check --json missing.yaml --shard-size 1GB folder",
        "publish missing --private you/moe", "report missing --layers", "demo --quiet missing/in/none",
    ],
)  # fmt: skip
def test_words_and_options_come_in_any_order(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser()[1][words.split()[0]]
    _, unknown = parser.parse_known_intermixed_args(words.split()[1:])
    assert not unknown
    if "demo" not in words:
        assert main(words.split()) == 2
        assert "missing" in "".join(capsys.readouterr())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"example: lazymoe {command}" in words and "--json" in words and "--quiet" in words


def test_the_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"lazymoe {__version__}\n")


def test_a_shells_completion_knows_the_commands(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", "bash"])
    assert stopped.value.code == 0
    script = capsys.readouterr().out
    known = subprocess.run(["bash", "-c", f"{script}\ncomplete -p lazymoe"], capture_output=True, text=True, check=True)
    assert known.stdout.startswith("complete ")
    assert f"subparsers=({' '.join(COMMANDS)})" in script
    ways = "--to --private --on --yes --stop --gguf"
    options = f"{ways} --seed --device --imatrix --no-imatrix --threads --shard-size --allow-pickle"
    assert f"merge_option_strings=(-h --help {options} --source --json --quiet)" in script


@pytest.mark.parametrize(("text", "size"), [("4GB", 4e9), ("500 MB", 5e8), ("1.5g", 1.5e9), ("12", 12), ("2KiB", 2e3)])
def test_sizes(text: str, size: float) -> None:
    from lazymoe.cli import _size

    assert _size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "GB", "4 elephants"])
def test_what_is_no_size(text: str, file: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["merge", str(file), str(tmp_path / "moe"), f"--shard-size={text}"]) == 2
    assert "isn't a size such as 4GB" in capsys.readouterr().err
    assert not (tmp_path / "moe").exists()


MISTYPED = {
    "a command": (["chekc", "recipe.yaml"], "lazymoe: there is no command 'chekc'. Did you mean 'check'?"),
    "an option": (["check", "recipe.yaml", "--jsno"], "lazymoe check: there is no option '--jsno'"),
    "a word left out": (["report"], "lazymoe report: the following arguments are required: FOLDER"),
    "no place to put it": (["merge", "recipe.yaml"], "FOLDER: there is none. Name a folder, or with --to"),
    "a word too many": (["card", "moe", "hf_secret"], "lazymoe card: there is a word too many"),
    "a file": (["check", "recpe.yaml"], "recpe.yaml: there is no such file, and no ready-made recipe of that name. "
               "Did you mean 'recipe.yaml'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTYPED)
def test_what_is_mistyped_gets_one_line(
    case: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = MISTYPED[case]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    [line] = printed.err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not printed.out and "hf_secret" not in line
    assert main([*arguments, "--json"]) == 2
    [problem] = told(capsys)["errors"]
    assert words.startswith(problem["where"]) and problem["what"] in line and problem["remedy"] in line


# what each command prints


def test_check_prints_a_table(file: Path, capsys: Captured) -> None:
    assert main(["check", str(file)]) == 0
    printed = capsys.readouterr().out
    for word in ("MixtralForCausalLM", "parameters", "active per token", "weights", "free here", "fits", "4 bit"):
        assert word in printed


def test_check_for_programs(file: Path, capsys: Captured) -> None:
    assert main(["check", "--json", str(file)]) == 0
    found = told(capsys)
    assert (found["ok"], found["experts"], found["architecture"]) == (True, 2, "MixtralForCausalLM")
    assert main(["check", "--quiet", str(file)]) == 0
    assert capsys.readouterr() == ("", "")


def test_what_check_finds_wrong_is_told_in_every_way(make: Make, tmp_path: Path, capsys: Captured) -> None:
    base, other = make("base"), make("other", num_hidden_layers=3)
    file = write_recipe(tmp_path / "recipe.yaml", recipe(base, base, other))
    assert main(["check", "--json", str(file)]) == 2
    found = told(capsys)
    [problem] = found["errors"]
    assert not found["ok"] and problem["code"] == "source.mismatch"
    assert problem["where"] == "experts[1].source_model (expert 2 of 2)"
    for quiet in ([], ["--quiet"]):
        assert main(["check", str(file), *quiet]) == 2
        assert f"error: {problem['where']}: {problem['what']}. {problem['remedy']}" in capsys.readouterr().out


def test_merge_says_what_was_made_and_how_to_use_it(file: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["merge", str(file), str(tmp_path / "moe"), "--shard-size", "20KB"]) == 0
    printed = capsys.readouterr()
    assert "MixtralForCausalLM with 2 experts" in printed.out
    assert "Writing: 100%" in printed.err
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path / "moe"}"' in printed.out


def test_merge_for_programs_and_in_few_words(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["merge", str(file), "moe", "--json"]) == 0
    found = told(capsys)
    assert (found["ok"], found["folder"], found["experts"]) == (True, str(tmp_path / "moe"), 2)
    assert found["output_bytes"] == json.loads(Path("moe/lazymoe.json").read_text())["bytes"]
    assert main(["merge", str(file), "again", "--quiet"]) == 0
    assert capsys.readouterr() == ("again\n", "")


def test_warnings_come_before_the_work(make: Make, tmp_path: Path, capsys: Captured) -> None:
    base = make("base")
    file = write_recipe(tmp_path / "recipe.yaml", recipe(base, base, base))
    assert main(["merge", str(file), str(tmp_path / "moe")]) == 0
    warned, *_, done = capsys.readouterr().err.splitlines()
    assert warned.startswith("warning: experts[1].source_model (expert 2 of 2): this is the same model as expert 1")
    assert done.startswith("Writing: 100%")
    assert main(["merge", str(file), str(tmp_path / "quiet"), "--quiet"]) == 0
    assert not capsys.readouterr().err
    assert main(["merge", str(file), str(tmp_path / "json"), "--json"]) == 0
    assert [warning["code"] for warning in told(capsys)["warnings"]] == ["recipe.same-model"]


def test_card_is_printed(moe: Path, capsys: Captured) -> None:
    assert main(["card", str(moe), "--repo", "you/moe", "--license", "mit"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("---\n") and "license: mit" in printed.out and not printed.err
    assert main(["card", str(moe)]) == 0
    warned = capsys.readouterr()
    assert "no licence is stated" in warned.err
    assert main(["card", str(moe), "--quiet"]) == 0
    assert capsys.readouterr() == (warned.out, "")
    assert main(["card", str(moe), "--json"]) == 0
    found = told(capsys)
    assert found["card"] == warned.out.rstrip("\n")
    assert [warning["code"] for warning in found["warnings"]] == ["license.unknown"]


def test_publish_prints_the_address(moe: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["publish", str(moe), "writer/from-cli"]) == 2
    assert "token: there is none" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    address = f"{hub.url}/writer/from-cli"
    assert main(["publish", str(moe), "writer/from-cli", "--private"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{address} (") and "of weights sent)" in printed.out
    assert hub.repos["writer/from-cli"].private
    assert printed.err.index("warning: license: no licence is stated") < printed.err.index("Uploading: 100%")
    assert main(["publish", str(moe), "writer/from-cli"]) == 0
    assert capsys.readouterr().out == f"{address} (its weights were there already)\n"
    assert main(["publish", str(moe), "writer/from-cli", "--quiet"]) == 0
    assert capsys.readouterr() == (f"{address}\n", "")
    assert main(["publish", str(moe), "writer/from-cli", "--json"]) == 0
    assert told(capsys) == {"ok": True, "url": address, "sent_bytes": 0}
    assert main(["publish", str(moe), "stranger/moe", "--json"]) == 2
    [problem] = told(capsys)["errors"]
    assert problem["code"] == "hub.forbidden"


def test_a_report_of_the_routing_leaves_measured_losses(spoken: Path, tmp_path: Path, capsys: Captured) -> None:
    texts = tmp_path / "texts.yaml"
    texts.write_text(yaml.safe_dump([[kind.held[:300]] for kind in domains()]))
    saved = [str(spoken / name) for name in ("report.json", "routing.png", "routing-dark.png")]
    assert main(["report", str(spoken), "--routing", "--texts", str(texts), "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines() == saved
    assert main(["report", str(spoken), "--texts", str(texts), "--json"]) == 0
    found = told(capsys)
    assert found["ok"] and found["losses"] and found["saved"] == saved
    before = (spoken / "report.json").read_bytes()

    assert main(["report", str(spoken), "--routing", "--texts", str(texts)]) == 0
    printed = capsys.readouterr()
    assert f"Not saved: {saved[0]} has losses too" in printed.out
    assert "Measuring: 100% of 1 model" in printed.err and "\nlayer 0 " not in printed.out
    assert main(["report", str(spoken), "--routing", "--texts", str(texts), "--layers", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["report", str(spoken), "--routing", "--texts", str(texts), "--json"]) == 0
    assert told(capsys)["saved"] == []
    assert (spoken / "report.json").read_bytes() == before


def test_a_report_prints_its_layers_when_asked(spoken: Path, capsys: Captured) -> None:
    assert main(["report", str(spoken), "--routing", "--layers"]) == 0
    assert "\nlayer 0 " in capsys.readouterr().out


WITHOUT_MIXTURE: dict[str, Callable[[Path], list[str]]] = {
    "check": lambda here: ["check", str(here / "none.yaml")],
    "merge": lambda here: ["merge", str(here / "none.yaml"), str(here / "moe")],
    "report": lambda here: ["report", str(here)],
    "evaluate": lambda here: ["evaluate", str(here), "--tasks", "arc_easy"],
    "card": lambda here: ["card", str(here)],
    "publish": lambda here: ["publish", str(here), "writer/moe"],
    "gguf": lambda here: ["gguf", str(here), "Q4_K_M"],
    "demo": lambda here: ["demo", str(here / "taken")],
}
CODES = {"check": "recipe.not-found", "merge": "recipe.not-found", "demo": "output.taken"}


@pytest.mark.parametrize("command", COMMANDS)
def test_errors_of_each_command_in_words_and_for_programs(
    command: str, demo_models: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "taken").write_text("x")
    arguments = WITHOUT_MIXTURE[command](tmp_path)
    assert main([*arguments, "--json"]) == 2
    found = told(capsys)
    [problem] = found["errors"]
    assert not found["ok"] and problem["code"] == CODES.get(command, "output.unfinished")
    for quiet in ([], ["--quiet"]):
        assert main([*arguments, *quiet]) == 2
        printed = capsys.readouterr()
        assert printed.err.splitlines()[-1].startswith(f"error: {problem['where']}: {problem['what']}")
        assert not printed.out


# how it ends


def test_what_computes_nothing_loads_nothing_heavy(file: Path, tmp_path: Path) -> None:
    script = """
import sys
from lazymoe.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
assert code == 0, code
heavy = {'torch', 'transformers', 'huggingface_hub', 'ipywidgets'} & set(sys.modules)
assert not heavy, heavy
"""
    for arguments in (["--help"], [], ["check", str(file)], ["merge", str(file), str(tmp_path / "moe")]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "moe" / "config.json").exists()


STOPPED = {  # what does the work, and what is said when it is interrupted
    "check": ("lazymoe.planning.checking.check", "nothing was written"),
    "merge": ("lazymoe.merging.carry_out", "the same command goes on from here"),
    "report": ("lazymoe.reporting.measuring.report", "nothing was saved, and the mixture is as it was"),
    "card": ("lazymoe.cards.card.card", "nothing was written"),
    "publish": ("lazymoe.publishing.publish",
                "nothing half-made is visible, and the same command sends only what is missing"),
    "evaluate": ("lazymoe.evaluating.evaluate.evaluate", "the same command goes on from here"),
    "gguf": ("lazymoe.exporting.to_gguf", "the same command goes on from here"),
    "demo": ("lazymoe.demonstration.story.demo", "the same command begins anew with what is trained"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_says_what_has_become_of_it(
    command: str, file: Path, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    work, words = STOPPED[command]
    monkeypatch.setattr(work, interrupted)
    more = {
        "check": [str(file)], "merge": [str(file), str(tmp_path / "moe")], "publish": [str(moe), "you/moe"], "demo": [],
        "gguf": [str(moe), "Q4_K_M"],
    }  # fmt: skip
    assert main([command, *more.get(command, [str(moe)])]) == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == f"stopped; {words}" and not printed.out


def test_an_interrupted_merge_does_go_on(file: Path, tmp_path: Path) -> None:
    """A true SIGINT, as the second shard gets its name."""
    script = """
import os, signal, sys
from re import fullmatch
from lazymoe.cli import main
renamed = []

def seen(event, arguments):
    if event == "os.rename" and fullmatch(r".*/model-.*[.]safetensors", str(arguments[1])):
        renamed.append(arguments[1])
        if len(renamed) == 2:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
sys.addaudithook(seen)
sys.exit(main(sys.argv[1:]))
"""
    command = ["merge", str(file), str(tmp_path / "moe"), "--shard-size", "20KB"]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "stopped; the same command goes on from here"
    assert list((tmp_path / "moe").glob("model-*")) and not (tmp_path / "moe" / "config.json").exists()
    assert main(command) == 0


@pytest.mark.parametrize("json_or_words", [[], ["--json"]], ids=["words", "json"])
@pytest.mark.parametrize("name", ["recipe.yaml", "none.yaml"], ids=["result", "error"])
def test_who_stops_listening_gets_no_traceback(name: str, json_or_words: list[str], file: Path) -> None:
    """As in ``lazymoe check recipe.yaml | head -c 1``, with the reader gone for certain."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lazymoe", "check", str(file.with_name(name)), *json_or_words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    wrote = name == "recipe.yaml" or json_or_words  # errors in words go to stderr, where somebody listens
    assert done.returncode == (128 + signal.SIGPIPE if wrote else 2)
    assert (done.stderr == "") if wrote else done.stderr.startswith("error: ")


def test_the_first_letter_is_enough_for_head(file: Path) -> None:
    command = f"'{sys.executable}' -m lazymoe check '{file}' | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "m", "")


def test_the_module_is_the_command(file: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "lazymoe", "check", "--json", str(file)], capture_output=True)
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]
