"""What is here, and what will work: the verb to run first where something does not."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import locale
import multiprocessing
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = "framework-trainer"
HANGUL = "\ud55c\uae00"
GIB = 2**30
USES = {  # what an extra is for; its packages and versions are those of the installed metadata
    "mlflow": "-p mlflow", "notebook": "progress bars in notebooks", "onnx": "export --format onnx",
    "optuna": "sweep with optuna", "tensorboard": "-p tensorboard", "torchmetrics": "-p torchmetrics",
    "wandb": "-p wandb",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Something that was found.

    Attributes:
        text: what, in a line
        works: what follows from it, as a sentence for the end
        broken: what is needed and does not work, as a sentence for the end
    """

    text: str
    works: str = ""
    broken: str = ""


def doctor() -> int:
    """What is installed, which devices, encodings and folders there are, and what will work with them.

    The exit status is 1 if something is broken without which nothing can be trained.
    """
    found: list[Line] = []
    for word, check in CHECKS.items():
        lines = _isolated(word, check)
        found += lines
        for index, line in enumerate(lines):
            _say(word if index == 0 else "", line.text)
    for line in found:
        if line.works:
            _say("works", line.works)
    for line in found:
        if line.broken:
            _say("broken", line.broken)
    return 1 if any(line.broken for line in found) else 0


def _say(word: str, text: str) -> None:
    one_line = " ".join(f"{word:<9} {text}".split("\n"))
    print(one_line.encode("ascii", "backslashreplace").decode())  # for a console whose encoding may be what is wrong


def _isolated(word: str, check: Callable[[], Iterator[Line]]) -> list[Line]:
    """The lines of a check; where it fails, what failed is one of them."""
    lines: list[Line] = []
    try:
        for line in check():
            lines.append(line)  # one by one: what was found before it fails is kept
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        lines.append(Line(f"cannot be looked at: {said}", broken=f"{word}: {said}" if check in NEEDED else ""))
    return lines


# ---------------------------------------------------------------------------------------------------------- the checks


def versions() -> Iterator[Line]:
    from packaging.requirements import Requirement

    import framework

    yield Line(f"python {platform.python_version()} in {sys.executable}, {platform.platform()}")
    installed = _version(DISTRIBUTION)
    mixed = installed != framework.__version__
    yield Line(
        f"framework {framework.__version__} in {Path(str(framework.__file__)).parent}",
        broken=f"framework {framework.__version__} and plugins of {installed}: pip install -e . again" if mixed else "",
    )
    for name in (DISTRIBUTION, "torchvision"):
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            have = _version(wanted.name)
            if not have or not wanted.specifier.contains(have, prereleases=True):
                said = f"{name} needs {wanted.name}{wanted.specifier}, and there is {have or 'none'}"
                yield Line(said, broken=f"{said}: pip install -U {name}")
    names = "torch", "torchvision"  # one of them that was built for another of the other fails here
    found = [f"{name} {importlib.import_module(name).__version__}" for name in names]
    yield Line(f"{' and '.join(found)} can be imported together")


def devices() -> Iterator[Line]:
    import psutil
    import torch

    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = f" (OMP_NUM_THREADS={value})" if (value := os.environ.get("OMP_NUM_THREADS")) else ""
    free = psutil.virtual_memory().available / GIB
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    yield Line(f"cpu: {mine} of {os.cpu_count()} cores, {threads}{limit}, {free:.1f} GiB of memory free")
    best = f"the CPU with {threads}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = (amount / GIB for amount in torch.cuda.mem_get_info(index))
            torch.ones(8, device=f"cuda:{index}").sum().item()  # a device that is seen need not be one that computes
            yield Line(f"cuda:{index}: {torch.cuda.get_device_name(index)}, {free:.1f} of {total:.1f} GiB free")
        best = "cuda:0"
    else:
        yield Line(f"cuda: no, {_why_no_cuda()}")
    if torch.backends.mps.is_available():
        best = "mps"
        yield Line("mps: yes")
    else:
        yield Line(
            f"mps: no, {'the macOS or the Mac is too old' if torch.backends.mps.is_built() else 'only on a Mac'}"
        )
    yield Line(f"auto is {best}", works=f"recipes train on {best}")


def _why_no_cuda() -> str:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is one for the CPU; https://pytorch.org has others"
    try:
        torch.cuda.init()
    except Exception as error:
        return str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"no device is visible (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r})"


def encodings() -> Iterator[Line]:
    console = getattr(sys.stdout, "encoding", None) or "ascii"
    names = f"console {console}, file names {sys.getfilesystemencoding()}, locale {locale.getencoding()}"
    try:
        HANGUL.encode(console)
        yield Line(f"{names}; Hangul can be printed")
    except UnicodeError:
        advice = "set PYTHONIOENCODING=utf-8 to see it"
        yield Line(f"{names}; Hangul is printed as {ascii(HANGUL)[1:-1]}: {advice}")


def disk() -> Iterator[Line]:
    folder = Path.cwd()
    yield Line(f"{folder}: {shutil.disk_usage(folder).free / GIB:.1f} GiB free")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as beside:
            first, second = Path(beside, "first"), Path(beside, "second")
            with open(first, "wb") as file:
                file.write(bytes(4096))
                os.fsync(file.fileno())
            os.replace(first, second)
            with contextlib.suppress(OSError, UnicodeError):
                second = second.rename(Path(beside, HANGUL))
            names = "" if second.name == HANGUL else "; names in Hangul do not"
    except OSError as error:
        said = f"{folder} cannot be written: {error.strerror or error}"
        yield Line(said, broken=f"{said}; go to another folder, or name one with --run-dir")
        return
    yield Line(
        f"writing, fsync and renaming work{names}", works="runs and checkpoints are kept in runs/ of this folder"
    )


def data() -> Iterator[Line]:
    named = os.environ.get("FRAMEWORK_DATA", "")
    root = Path(named or "data").expanduser()
    here = f"{root} ({'FRAMEWORK_DATA' if named else 'FRAMEWORK_DATA is not set'})"
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    yield Line(f"{here}: {', '.join(folders) or 'empty'}" if root.is_dir() else f"{here}: no such folder")
    if len([*(root / "MNIST" / "raw").glob("*-ubyte")]) == 4:
        yield Line("MNIST is there", works="every recipe has its data")
    else:
        fetch = "python -m framework data fetch mnist"
        yield Line(f"MNIST is not there: {fetch}", works=f"recipes have their data, but for those of MNIST ({fetch})")


def packages() -> Iterator[Line]:
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
    for extra, use in USES.items():
        of_it = [r for r in required if r.marker and r.marker.evaluate({"extra": extra})]
        have = {r.name: _version(r.name) for r in of_it}
        if missing := [r.name for r in of_it if not r.specifier.contains(have[r.name] or "0", prereleases=True)]:
            yield Line(f'{use}: needs {", ".join(missing)}: pip install "{DISTRIBUTION}[{extra}]"')
        else:
            shown = ", ".join(f"{name} {version}" for name, version in have.items())
            yield Line(f"{use}: {shown}", works=f"{use}, by {shown}")


def compiler() -> Iterator[Line]:
    """What torch.compile needs to make code for the CPU."""
    names = [os.environ.get("CXX", ""), "cl"] if os.name == "nt" else [os.environ.get("CXX", ""), "g++", "clang++"]
    found = next((name for name in names if name and shutil.which(name)), None)
    header = Path(sysconfig.get_path("include"), "Python.h")
    if found is None:
        tools = {"nt": "the Build Tools for Visual Studio"}.get(os.name, "g++ or clang++")
        yield Line(f"-p compile: no C++ compiler on the path; install {tools}")
    elif not header.is_file():
        yield Line(f"-p compile: {found}, but no {header}; install the development files of Python")
    else:
        yield Line(f"-p compile: {found}", works="-p compile works on the CPU")


def workers() -> Iterator[Line]:
    method = multiprocessing.get_context().get_start_method()
    copied = "copies of this process" if method == "fork" else "new processes that import the recipe"
    yield Line(f"{method}: num_workers starts {copied}")
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < GIB / 4:
        yield Line(f"{shared} has only {free / 2**20:.0f} MiB, through which batches go: docker run --shm-size=2g")


def plugins() -> Iterator[Line]:
    points = [*importlib.metadata.entry_points(group="framework")]
    verbs = [*importlib.metadata.entry_points(group="framework.commands")]
    faults: dict[tuple[str, str], list[str]] = {}  # by package and error, since one cause may break them all
    for point in (*points, *verbs):
        try:
            point.load()
        except (Exception, SystemExit) as error:
            owner = point.dist.name if point.dist else "an unknown package"
            faults.setdefault((owner, f"{type(error).__name__}: {error}"), []).append(point.name)
    for (owner, reason), names in faults.items():
        said = f"{', '.join(names)} of {owner} cannot be loaded: {reason}"
        yield Line(said, broken=said if owner == DISTRIBUTION else "")
    yield Line(f"{len(points)} plugins and {len(verbs)} verbs, {sum(map(len, faults.values())) or 'none'} broken")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


CHECKS = {
    "versions": versions, "devices": devices, "text": encodings, "disk": disk, "data": data, "packages": packages,
    "compiler": compiler, "workers": workers, "plugins": plugins,
}  # fmt: skip
NEEDED = versions, devices, disk
