"""The Debian package, the wheel and the source distribution, as they are built."""

from __future__ import annotations

import gzip
import os
import re
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

from tests.packaging.support import CHECKOUT, run, tool

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]


def shipped() -> set[str]:
    """The files of the package understudy, as it is installed anywhere."""
    found = set()
    for folder, name in (("toolkit/understudy", "understudy"), ("units", "understudy/_units")):
        for path in (CHECKOUT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{name}/{path.relative_to(CHECKOUT / folder)}")
    return found


def test_all_say_the_same_version(packages: Path) -> None:
    changelog = (CHECKOUT / "packaging/debian/changelog").read_text()
    assert changelog.startswith(f"understudy ({VERSION}) ")
    assert {path.name for path in packages.iterdir()} == {
        f"understudy_{VERSION}_all.deb",
        f"understudy-{VERSION}-py3-none-any.whl",
        f"understudy-{VERSION}.tar.gz",
    }


def test_wheel_holds_the_package_and_its_entry_points(packages: Path) -> None:
    with zipfile.ZipFile(next(packages.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        about = f"understudy-{VERSION}.dist-info/"
        points = wheel.read(about + "entry_points.txt").decode()
        metadata = wheel.read(about + "METADATA").decode()
    assert {name for name in names if not name.startswith(about)} == shipped()
    assert {"understudy/py.typed", "understudy/_units/mediamtx/service.toml"} <= names
    assert "[console_scripts]\nunderstudy = understudy.cli:main\n" in points
    assert "[pytest11]\nunderstudy = understudy.pytest_plugin\n" in points
    assert "\nRequires-Python: >=3.11\n" in metadata


def test_source_distribution_builds_the_same_wheel(packages: Path, tmp_path: Path) -> None:
    run("tar", "--extract", "--file", next(packages.glob("*.tar.gz")), "--directory", tmp_path)
    run(
        *(sys.executable, "-m", "hatchling", "build", "--target", "wheel"),
        *("--directory", tmp_path / "again"),
        cwd=tmp_path / f"understudy-{VERSION}",
    )
    wheel = next(packages.glob("*.whl"))
    assert (tmp_path / "again" / wheel.name).read_bytes() == wheel.read_bytes()


def test_deb_puts_everything_where_debian_has_it(root: Path) -> None:
    files = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    library = "usr/lib/python3/dist-packages/"
    assert {name for name in files if name.startswith(f"{library}understudy/")} == {
        library + name for name in shipped()
    }
    about = root / library / f"understudy-{VERSION}.dist-info"
    assert "understudy = understudy.pytest_plugin" in (about / "entry_points.txt").read_text()
    # Whatever environment is active: the system's Python.
    assert re.match(r"#! ?/usr/bin/python3\n", (root / "usr/bin/understudy").read_text())
    for name in (
        "usr/share/bash-completion/completions/understudy",
        "usr/share/zsh/vendor-completions/_understudy",
        "usr/lib/systemd/system/understudy.slice",
        "usr/lib/systemd/user/understudy.slice",
        "usr/share/fish/vendor_completions.d/understudy.fish",
        "usr/share/man/man1/understudy.1.gz",
        "usr/share/man/man1/understudy-spawn.1.gz",
        "usr/share/man/man5/understudy.service-definition.5.gz",
        "usr/share/doc/understudy/copyright",
        "usr/share/doc/understudy/changelog.gz",
        "usr/share/doc/understudy/README.md",
        "usr/share/doc/understudy/news.md",
        "usr/share/doc/understudy/ci/github.yml",
    ):
        assert name in files
    places = ("usr/bin/", library, "usr/lib/systemd/", "usr/share/")
    assert [name for name in files if not name.startswith(places)] == []
    assert [name for name in files if name.endswith(".pyc")] == []
    license_text = (root / "usr/share/doc/understudy/copyright").read_text()
    assert "THE SOFTWARE IS PROVIDED" in license_text


def test_deb_is_roots_and_of_the_changelogs_time(deb: Path) -> None:
    command = ("dpkg-parsechangelog", "--file", CHECKOUT / "packaging/debian/changelog")
    released = int(run(*command, "--show-field", "Timestamp").stdout)
    data = run("sh", "-c", 'dpkg-deb --fsys-tarfile "$1" >"$2"', "sh", deb, deb.parent / "data.tar")
    assert data.stderr == ""
    try:
        with tarfile.open(deb.parent / "data.tar") as archive:
            members = archive.getmembers()
    finally:
        (deb.parent / "data.tar").unlink()
    assert {(one.uname, one.gname, one.uid) for one in members} == {("root", "root", 0)}
    assert max(one.mtime for one in members) <= released
    assert {oct(one.mode) for one in members if one.isfile()} == {"0o644", "0o755"}


def test_deb_needs_no_compiler_and_no_pip(deb: Path) -> None:
    def field(name: str) -> set[str]:
        return set(run("dpkg-deb", "--field", deb, name).stdout.strip().split(", "))

    assert field("Architecture") == {"all"}
    assert {"python3-click", "python3-jinja2", "python3-pystemd", "systemd (>= 252)"} <= field(
        "Depends"
    )
    assert "python3 (>= 3.11)" in field("Depends")
    assert not any("pip" in one or "gcc" in one for one in field("Depends"))
    assert {"systemd-container", "dbus-user-session", "polkitd"} <= field("Recommends")
    assert field("Suggests") == {"python3-pytest", "python3-pytest-xdist"}


def test_lintian_finds_nothing(deb: Path) -> None:
    tool("lintian")
    options = ["--allow-root"] if os.geteuid() == 0 else []
    # Which version of the policy is the newest is for each lintian another.
    options += ["--suppress-tags", "out-of-date-standards-version,newer-standards-version"]
    done = run("lintian", *options, "--pedantic", "--display-info", "--tag-display-limit=0", deb)
    assert done.stdout + done.stderr == ""


def test_news_and_changelog_go_along(root: Path) -> None:
    with gzip.open(root / "usr/share/doc/understudy/changelog.gz", "rt") as changelog:
        assert "/usr/share/doc/understudy/news.md" in changelog.read()


def test_build_says_how_it_is_used() -> None:
    script = CHECKOUT / "packaging/build"
    assert run(script, "--help").stdout.startswith("Usage: packaging/build [--deb] [--wheel]")
    assert "no such option: --rpm" in run(script, "--rpm", code=2).stderr
