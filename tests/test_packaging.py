"""The files that install metalib agree with one another: one lock, one Python, no stray paths."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = "requirements.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# A slash, a folder that holds one machine's files, a slash; but not inside a longer path or an address.
MACHINE_PATH = re.compile(r"(?<![\w./~:-])/(?:home|root|Users|work)/")


def lock_requirements() -> list[Requirement]:
    lines = (ROOT / LOCK).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def locked_versions() -> dict[str, str]:
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in lock_requirements()}


def declared() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for line in [*PROJECT["dependencies"], *(d for extra in extras for d in extra)]]


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def conda_and_pip_lines() -> tuple[list[str], list[str]]:
    dependencies = environment()["dependencies"]
    conda = [d for d in dependencies if isinstance(d, str)]
    pip = [line for d in dependencies if isinstance(d, dict) for line in d["pip"]]
    return conda, pip


def test_environment_parses_and_is_named_metalib():
    assert environment()["name"] == "metalib"
    assert PROJECT["name"] == "metalib"


def test_environment_says_no_version_but_pythons():
    conda, pip = conda_and_pip_lines()
    versioned = [line for line in conda if re.search(r"[=<>~!\d]", line)]
    assert len(versioned) == 1 and versioned[0].startswith("python=")
    assert pip == [f"-r {LOCK}", "-e ."]


def test_environment_python_satisfies_requires_python():
    conda, _ = conda_and_pip_lines()
    (python,) = (line.removeprefix("python=") for line in conda if line.startswith("python="))
    assert re.fullmatch(r"\d+\.\d+", python)
    assert python in SpecifierSet(PROJECT["requires-python"])


def test_lock_is_exact_and_says_each_name_once():
    names = []
    for requirement in lock_requirements():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert requirement.url is None
        names.append(canonicalize_name(requirement.name))
    assert len(names) == len(set(names))


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_each_dependency_is_locked_within_its_range(requirement):
    version = locked_versions().get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} is not in {LOCK}; run `make lock`"
    assert requirement.specifier, f"{requirement.name} has no tested range"
    assert requirement.specifier.contains(version), f"{version} is not in {requirement}; run `make lock`"


def test_torch_is_locked_to_the_tested_release():
    assert locked_versions()["torch"] == "2.13.0"


def test_lock_has_no_cuda_package_and_no_index():
    cuda = [name for name in locked_versions() if re.match(r"nvidia-|cuda-|triton$", name)]
    assert not cuda, f"add {cuda} to CUDA in the Makefile and run `make lock`"
    text = (ROOT / LOCK).read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--extra-index" not in text


def test_makefile_uses_the_lock_of_the_environment():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"^LOCK *:?= *(\S+)", makefile, re.MULTILINE) == [LOCK]
    assert "install -q --disable-pip-version-check -r $(LOCK)" in makefile
    _, pip = conda_and_pip_lines()
    assert f"-r {LOCK}" in pip


def test_makefile_checks_for_the_python_of_the_project():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (major, minor) = re.findall(r"sys\.version_info < \((\d+), (\d+)\)", makefile)[0]
    assert PROJECT["requires-python"] == f">={major}.{minor}"


def test_readme_names_the_commands():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    text = readme.read_text(encoding="utf-8")
    for command in ("make run", "make test", "conda env create -f environment.yml"):
        assert command in text, command


def test_the_pattern_finds_machine_paths_only():
    for slash_path in ("home/ada/x", "root/x", "Users/ada/x", "work/x"):
        assert MACHINE_PATH.search(f'open("/{slash_path}")')
    for fine in ("https://example.org/home/x", "/usr/bin/env bash", "notes/home/x"):
        assert not MACHINE_PATH.search(fine)


def test_no_file_carries_a_path_of_one_machine():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("git, or the repository of these files, is missing")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("git does not list the files: " + listed.stderr.strip())
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not a text file
        found += [f"{name}:{i}" for i, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert not found, f"paths of one machine in {found}"


def test_no_module_outgrows_what_a_reader_holds_in_the_head():
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in ROOT.glob("metalib/**/*.py")}
    assert len(lengths) > 20 and {name: length for name, length in lengths.items() if length > 300} == {}
