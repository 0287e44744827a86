"""The kernels for GPUs compile for data centre architectures. What they compute is tested on GPUs only, by `cargo test -- --ignored`."""

import ctypes
import re
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).resolve().parents[2] / "native" / "cpp" / "kernels.cu"


@pytest.fixture(scope="module")
def nvrtc():
    """The compiler that comes with libtorch."""
    if torch.version.cuda is None:
        pytest.skip("this libtorch has no CUDA")
    folders, major = Path(torch.__file__).resolve().parents[1] / "nvidia", torch.version.cuda.partition(".")[0]
    # the compiler looks for the first by its name alone, and finds what is there already
    for name in (f"libnvrtc-builtins.so.{major}*", f"libnvrtc.so.{major}"):
        paths = [path for path in folders.rglob(name) if ".alt." not in path.name]
        assert paths, f"{name} is not among the packages of this libtorch, in {folders}"
        library = ctypes.CDLL(str(paths[0]))
    return library


def compiled(nvrtc, *options):
    """Whether the kernels compile with these options, and what the compiler says."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.read_bytes(), b"kernels.cu", 0, None, None) == 0
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    result = nvrtc.nvrtcCompileProgram(program, len(options), given)
    assert nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetProgramLog(program, log) == 0
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return result == 0, log.value.decode()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90", "sm_100"])
@pytest.mark.parametrize(("window", "head", "group"), [(12, 32, 32), (12, 64, 64), (7, 32, 32), (10, 64, 32), (4, 32, 64)])
def test_kernels_compile(nvrtc, architecture, window, head, group):
    sizes = [f"-DWINDOW={window}", f"-DHEAD={head}", f"-DGROUP={group}"]
    options = [f"--gpu-architecture={architecture}", *sizes, "--std=c++17", "--ptxas-options=-v"]
    well, log = compiled(nvrtc, *options)
    assert well, log
    assert len(re.findall(r"\b0 bytes spill stores, 0 bytes spill loads", log)) == 7, log


def test_what_is_wrong_is_said(nvrtc):
    well, log = compiled(nvrtc, "--gpu-architecture=sm_90", "-DWINDOW=12")
    assert not well and "HEAD" in log
