"""packaging/ holds together: no image is built here, but everything that its Dockerfile names is there, and what it assembles starts."""

import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from harness import environment
from manifests import DOCS, ROOT, render, work


def dockerfile():
    """[(instruction, text)] with lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "packaging" / "Dockerfile").read_text(), flags=re.M)
    return [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_dockerfile_is_whole():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "packaging" / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    stages, runs = [], []
    for instruction, text in dockerfile():
        if instruction == "FROM":
            base, _, stage = text.split()
            assert base.startswith("${") or base in stages, base
            stages.append(stage)
        elif instruction == "COPY" and "--from" in text:
            assert re.match(r"--from=(\S+)", text)[1] in stages, text
        elif instruction == "RUN":
            runs.append(text)
    called = set(re.findall(r"(?:scripts|packaging)/\w+", " ".join(runs)))
    assert called == {"scripts/setup", "packaging/assemble"}
    assert all(os.access(ROOT / script, os.X_OK) for script in called)
    # the version is taken from scripts/setup by this expression
    assert re.search(r"^torch_version=[0-9.]+ ", (ROOT / "scripts" / "setup").read_text(), re.M)
    targets = set(re.findall(r"--target (\w+)", DOCS.read_text()))
    assert targets == {"cpu", "cuda"} <= set(stages)
    [user] = [text for instruction, text in dockerfile() if instruction == "USER"]
    [pods] = work(render("one-gpu"))
    assert user == "{runAsUser}:{runAsGroup}".format(**pods.pod["securityContext"])


def test_the_build_gets_every_source():
    """.dockerignore leaves nothing out that cargo or the scripts read."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "**"
    kept = [rule.removeprefix("!/") for rule in rules if rule.startswith("!")]
    assert all((ROOT / path).exists() for path in kept)

    def there(path):
        path = path.resolve().relative_to(ROOT).as_posix()
        return any(path == rule or path.startswith(f"{rule}/") for rule in kept) and not fnmatch(path, "*__pycache__*")

    for path in ("Cargo.toml", "Cargo.lock", "build.rs", ".cargo/config.toml", "native/Cargo.toml", "scripts/setup", "scripts/common.sh", "packaging/assemble"):
        assert there(ROOT / path), path
    setup = (ROOT / "scripts" / "setup").read_text()
    assert all(there(ROOT / path) for path in re.findall(r"scripts/requirements[\w-]*\.txt", setup))
    for source in [*ROOT.glob("src/**/*.rs"), *ROOT.glob("native/**/*.rs"), *ROOT.glob("benches/*.rs"), *ROOT.glob("examples/*.rs")]:
        for name in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', source.read_text()):
            path = source.parent / name
            # tests are not compiled for the image
            assert there(path) or (ROOT / "tests") in path.resolve().parents, path


def loaded(program, libraries, arguments=("--version",)):
    """The libraries that a program loads, by the loader's own account."""
    env = environment() | {"LD_LIBRARY_PATH": str(libraries), "LD_DEBUG": "libs"}
    done = subprocess.run([str(program), *arguments], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {Path(path) for path in re.findall(r"calling init: (\S+)", done.stderr)}


def test_an_assembled_program_needs_nothing_else(binary, core_binary, tmp_path):
    """What packaging/assemble puts together starts with its own libtorch, not with that of the build."""
    libtorch = Path(os.environ.get("LIBTORCH") or ROOT / ".libtorch").resolve()
    cuda = ["--cuda"] if (libtorch / "lib" / "libtorch_cuda.so").exists() else []
    command = [ROOT / "packaging" / "assemble", tmp_path / "out", "--link", *cuda, binary, core_binary]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ours = {path.name for path in (tmp_path / "out" / "lib").iterdir()}
    assert {"libtorch_cpu.so", "libc10.so"} <= ours
    found = loaded(tmp_path / "out" / "bin" / binary.name, tmp_path / "out" / "lib")
    assert "libtorch_cpu.so" in {path.name for path in found}
    for path in found:
        # links are not followed by the loader's account
        assert path.parent == tmp_path / "out" / "lib" if path.name in ours else libtorch.parent not in path.parents, path
    assert not {path.name for path in loaded(tmp_path / "out" / "bin" / core_binary.name, tmp_path / "out" / "lib")} & ours
    if cuda:
        check_cuda(tmp_path / "out" / "lib", ours)


def check_cuda(libraries, ours):
    """Everything that is loaded on a GPU is there, but for the driver."""
    assert {"libtorch_cuda.so", "libtorch_cuda_linalg.so", "libnccl.so.2", "libcudnn.so.9"} <= ours
    env = environment() | {"LD_LIBRARY_PATH": str(libraries)}
    for library in sorted(libraries.iterdir()):
        done = subprocess.run(["ldd", str(library)], env=env, capture_output=True, text=True, timeout=60)
        missing = set(re.findall(r"(\S+) => not found", done.stdout))
        assert missing <= {"libcuda.so.1"}, (library, missing)
        for name, path in re.findall(r"(\S+) => (/\S+)", done.stdout):
            assert Path(path).parent == libraries or name not in ours, (library, path)


def test_a_library_that_is_nowhere_is_an_error(tmp_path):
    (tmp_path / "lib").mkdir()
    env = environment() | {"LIBTORCH": str(tmp_path)}
    core = ["packaging/assemble", str(tmp_path / "out")]
    done = subprocess.run([*core, sys.executable.replace("python", "nothing")], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "is no program" in done.stderr
    assert subprocess.run(core, cwd=ROOT, env=env, capture_output=True).returncode == 2
