"""Pointers of Git LFS in place of files are called what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import Make
from stored_models import refused

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
