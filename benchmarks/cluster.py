"""How much sooner is a merge done where several machines read? The default recipe, of models on a Hub that is slow.

    python benchmarks/cluster.py [--rate 3] [--nodes 1 2 4]

Starts the loopback Hub of the tests, which sends no more than so many MB a second to each machine, and clusters of Ray
on loopback, whose nodes are the machines. Merges four experts and a base model in one process, and on clusters of so
many nodes, and prints for each the seconds from the first byte until all is on the disk; the most that one node has
read, in seconds at that rate, which is what the network alone takes; and whether the files are those of one process.
All of it runs on this machine, so that computing takes the same with any number of nodes: keep the rate low. Needs
``lazymoe[ray]``, and a GB of disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hub_server import Hub
from ray_nodes import Nodes

HUB = Hub()
os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # read when the client is imported

from merge import EXPERTS, make_checkpoint  # noqa: E402

from lazymoe import Recipe, merge  # noqa: E402

SIZES = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 8192}  # fmt: skip
PROMPTS = ("Boil the eggs for ten minutes.", "import os, sys", "The parties agree as follows.", "The sea was calm.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=3, metavar="MB", help="a second, to each machine")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    HUB.rate = options.rate * 1e6
    with HUB, tempfile.TemporaryDirectory(prefix="lazymoe-") as name:
        folder = Path(name)
        os.environ["HF_HOME"] = str(folder / "home")
        for i in range(EXPERTS + 1):
            make_checkpoint(folder / "models" / f"model-{i}", SIZES, i)
            HUB.add(f"acme/model-{i}", folder / "models" / f"model-{i}")
        experts = [{"source_model": f"acme/model-{i}", "positive_prompts": [p]} for i, p in enumerate(PROMPTS, 1)]
        recipe = Recipe.model_validate({"base_model": "acme/model-0", "experts": experts})
        print("| machines | seconds | network alone | the same bytes |\n|---|--:|--:|---|")
        files = measured(recipe, folder, "one process", None)
        for number in options.nodes:
            (folder / f"nodes-{number}").mkdir()
            nodes = Nodes(HUB, folder / f"nodes-{number}")
            try:
                for _ in range(number - 1):
                    nodes.add()
                told = f"{number} node{'s' * (number > 1)}"
                assert measured(recipe, folder, told, nodes.address, files) == files
            finally:
                nodes.cluster.shutdown()


def measured(
    recipe: Recipe, folder: Path, told: str, on: str | None, files: dict[str, bytes] | None = None
) -> dict[str, bytes]:
    """Merge, print a line, and give the files of weights."""
    HUB.sent_to, begun = Counter(), list[float]()

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "download" and done and not begun:  # not while the actors begin
            begun.append(time.perf_counter())

    moe = merge(recipe, folder / told, source="remote", on=on, progress=progress).folder
    seconds, by_machine = time.perf_counter() - begun[0], Counter[str]()
    for (machine, _), nbytes in HUB.sent_to.items():
        by_machine[machine] += nbytes
    made = {path.name: path.read_bytes() for path in moe.glob("*.safetensors")}
    same = "" if files is None else "yes" if made == files else "NO"
    print(f"| {told} | {seconds:.0f} | {max(by_machine.values()) / HUB.rate:.0f} | {same} |", flush=True)
    return made


if __name__ == "__main__":
    main()
