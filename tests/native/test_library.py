"""Kernels are built once, shared, checked, and done without where that fails."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapterhub.folders import cache_root
from adapterhub.native import build as building
from adapterhub.native import library
from adapterhub.native.attention import AttentionShape, attention_backward, attention_forward
from adapterhub.native.build import Unbuilt, build
from adapterhub.native.gated import swiglu, swiglu_backward
from adapterhub.native.kernels import Kernels
from adapterhub.native.layout import Layout
from adapterhub.native.library import native, open_kernels
from adapterhub.native.norm import add_rms_norm, rms_norm, rms_norm_backward
from adapterhub.native.openmp import mapped_file, openmp_of, torch_library

here = pytest.mark.skipif(native() is None, reason="no kernels can be built here")


def script(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)
    return str(file)


def reason(folder: Path, environment: dict[str, str], caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="adapterhub.native.library"):
        assert open_kernels(folder, environment) is None
    (record,) = caplog.records
    return record.getMessage()


def test_no_kernels_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "switched off" in reason(tmp_path, {"ADAPTERHUB_NATIVE": "0"}, caplog)
    assert "no C++ compiler" in reason(tmp_path, {"PATH": str(tmp_path)}, caplog)
    assert "no C++ compiler (nowhere/cc)" in reason(tmp_path, {"CXX": "nowhere/cc", "PATH": os.environ["PATH"]}, caplog)
    broken = script(tmp_path, "broken", '[ "$1" = --version ] && echo 1 && exit 0\necho "no such thing" >&2\nexit 3\n')
    assert "failed with code 3: no such thing" in reason(tmp_path / "a", {"CXX": broken}, caplog)
    liar = script(tmp_path, "liar", 'for last; do :; done\n[ "$1" = --version ] || echo text > "$last"\n')
    assert "no native kernels" in reason(tmp_path / "b", {"CXX": liar}, caplog)
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot hold the kernels" in reason(blocked / "c", {"CXX": liar}, caplog)
    monkeypatch.setattr(sys, "platform", "plan9")
    assert "plan9" in reason(tmp_path, {}, caplog)
    monkeypatch.undo()
    monkeypatch.setattr(building, "openmp_of", lambda _: None)
    assert "no OpenMP library" in reason(tmp_path, {}, caplog)
    monkeypatch.undo()
    monkeypatch.setattr(building, "torch_library", lambda: tmp_path / "lost.so")
    assert "does not load by name" in reason(tmp_path, {}, caplog)


def test_a_compiler_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("no script")
    (tmp_path / "cc").chmod(0o755)
    with pytest.raises(Unbuilt, match="did not run"):
        build(tmp_path, {"CXX": str(tmp_path / "cc")})


def test_everything_works_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("attention", "norm", "gated"):
        monkeypatch.setattr(f"adapterhub.native.{module}.native", lambda: None)
    layout, shape = Layout.of([3, 2], [-1, 0]), AttentionShape(2, 1, 4, 0.5)
    qkv, cos, sin = torch.randn(5, 16), torch.ones(5, 4), torch.zeros(5, 4)
    out, lse = attention_forward(qkv, layout, cos, sin, shape)
    assert attention_backward(out, qkv, out, lse, layout, cos, sin, shape).shape == (5, 16)
    x = torch.randn(2, 4)
    assert rms_norm(x, torch.ones(4), 1e-5).shape == add_rms_norm(x, x.clone(), torch.ones(4), 1e-5).shape == (2, 4)
    into = torch.zeros(2, 4)
    rms_norm_backward(x, x, torch.ones(4), 1e-5, into)
    assert bool(into.any())
    act = swiglu(x)
    before = x.clone()
    swiglu_backward(x, act)
    assert not torch.equal(x, before)
    torch.testing.assert_close(act, swiglu(before))


@here
def test_kernels_that_differ_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "Kernels", lambda _: Tampered(native()))
    tmp_path = cache_root() / "native"
    assert "rms_norm in float32 differs" in reason(tmp_path, {}, caplog)
    monkeypatch.setattr(library, "openmp_of", lambda path: path == torch_library())
    assert "beside those of PyTorch" in reason(tmp_path, {}, caplog)


class Tampered:
    """Kernels of which one is wrong."""

    def __init__(self, kernels: Kernels | None) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str) -> object:
        return getattr(self._kernels, name)

    def rms_norm(self, *arguments: torch.Tensor) -> None:
        assert self._kernels is not None
        self._kernels.rms_norm(*arguments)
        arguments[-1][0, 0] += 0.1


@here
def test_processes_that_build_at_once_get_the_same_whole_library(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from adapterhub.native.library import open_kernels;"
        "print(open_kernels(Path(sys.argv[1]), os.environ) is not None)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "kept")], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [each.communicate(timeout=300)[0] for each in processes] == ["True\n", "True\n"]
    (made,) = (tmp_path / "kept").iterdir()
    compiler = shutil.which("g++") or shutil.which("c++")
    before = made.stat()
    assert build(tmp_path / "kept", os.environ) == made
    assert made.stat() == before
    assert build(tmp_path / "kept", {**os.environ, "CXX": f"{compiler} -DOTHER"}) != made


@here
def test_threads_come_from_the_one_library_that_pytorch_uses() -> None:
    import sentencepiece  # noqa: F401 - comes with an OpenMP library of its own

    address = openmp_of(torch_library())
    assert address is not None
    made = max((cache_root() / "native").glob("*.so"), key=lambda file: file.stat().st_mtime)
    assert openmp_of(made) == address
    runtime = mapped_file(address)
    assert runtime is not None
    assert runtime.name.startswith("lib")
    assert mapped_file(0) is None
