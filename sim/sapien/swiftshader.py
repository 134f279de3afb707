"""`python -m polyarm.sim.sapien.swiftshader`: brings SwiftShader, a Vulkan driver that draws on a CPU, where none draws.

It takes the two files out of a Chromium package of the machine's own sources, without root and without installing it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from polyarm.sim.sapien.vulkan import ICD, NAMED_BY, PLACES, REMEDY
from polyarm.spec import UserError

LIBRARY = "libvk_swiftshader.so"
PACKAGES = ("chromium-common", "chromium", "chromium-browser")
"""The first is Debian's; Ubuntu's has nothing in it, since its Chromium is a snap."""
BY_HAND = "install Chromium or Chrome (they carry it), or a GPU's driver; `polyarm doctor` says whether it draws"


def tried() -> str:
    """What drew a picture, in a process of its own: a driver may take its process down with it."""
    program = [sys.executable, "-m", "polyarm.sim.sapien.vulkan"]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    if done.returncode < 0:
        raise UserError(f"the Vulkan driver crashes with {signal.Signals(-done.returncode).name}: {REMEDY}")
    said = "".join(done.stderr.strip().splitlines()[-1:])
    if done.returncode == 1:
        raise UserError(f"SAPIEN draws nothing ({said}): {REMEDY}")
    if done.returncode:
        raise UserError(said)
    return done.stdout.strip()


def place() -> Path:
    """Where it goes: into the virtual environment; without one into the user's cache."""
    return Path(PLACES[0] if sys.prefix != sys.base_prefix else PLACES[1]).expanduser()


def bring(folder: Path) -> None:
    """SwiftShader in `folder`. Raises `UserError` where apt or such a package is missing."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise UserError(f"SwiftShader comes by itself only where there is apt-get: {BY_HAND}")
    with TemporaryDirectory() as temporary:
        for package in _packages(Path(temporary)):
            if _unpack(package, folder):
                return
    raise UserError(f"apt-get finds SwiftShader in none of {', '.join(PACKAGES)}: {BY_HAND}")


def _packages(folder: Path) -> Iterator[Path]:
    """Each of `PACKAGES` that can be downloaded, by the machine's package lists, then by lists fetched for this."""
    own = [f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}/cache"]
    apt = ["apt-get", "-qq", "-oAcquire::Retries=2", "-oAcquire::http::Timeout=30"]
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    for lists in ([], own):
        if lists:
            subprocess.run([*apt, *lists, "update"], check=False, capture_output=True)
        for name in PACKAGES:
            to = folder / f"{name}{len(lists)}"
            to.mkdir()
            subprocess.run([*apt, *lists, "download", name], check=False, cwd=to, capture_output=True)
            yield from to.glob("*.deb")


def _unpack(package: Path, folder: Path) -> bool:
    """Whether both files were in it; they are in `folder` then, each whole, the one that names the other last."""
    with TemporaryDirectory() as temporary:
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking,
            tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar,
        ):
            for member in tar:
                member.name = Path(member.name).name
                if member.name in (LIBRARY, ICD) and member.isfile():
                    tar.extract(member, temporary, filter="data")
        if {file.name for file in Path(temporary).iterdir()} != {LIBRARY, ICD}:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        for name in (LIBRARY, ICD):
            beside = folder / f".{name}.{os.getpid()}"
            shutil.copyfile(Path(temporary, name), beside)
            beside.replace(folder / name)
    return True


def main() -> int:
    try:
        if find_spec("sapien") is None:
            raise UserError("sapien is not installed: pip install 'polyarm[sapien]'")
        try:
            drawn = tried()
        except UserError:
            if any(os.environ.get(name) for name in NAMED_BY):
                raise
            print("bringing SwiftShader, which draws where no GPU does (30 MB)", flush=True)
            bring(place())
            drawn = tried()
    except UserError as error:
        print(f"SAPIEN's worlds cannot be drawn here: {error}", file=sys.stderr)
        return 1
    print(f"SAPIEN's worlds are drawn by {drawn}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
