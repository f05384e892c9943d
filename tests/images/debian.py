"""Debian packages as sources of files: which ones a set needs, where their archives lie, what is in them.

Nothing is installed and no maintainer script runs: packages are resolved by apt against an empty system, fetched with the host's
own apt sources, and read as tar streams. What maintainer scripts would have done (users, alternatives) is the recipe's business.
"""

import io
import os
import subprocess
import tarfile
import urllib.parse
from pathlib import Path


class PackageError(Exception):
    """A package could not be resolved, fetched or read; the message says which and why."""


def _run(args: list[str], cwd: Path | None = None) -> bytes:
    done = subprocess.run(args, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip().splitlines()
        raise PackageError(f"`{' '.join(args[:2])} …` failed with code {done.returncode}:\n  " + "\n  ".join(why[-5:]))
    return done.stdout


def architecture() -> str:
    """Debian's name of this machine's architecture, for example `amd64`."""
    return _run(["dpkg", "--print-architecture"]).decode().strip()


def update() -> None:
    """Brings apt's lists up to date, as root; an unreachable source that is not Debian's does not matter here."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    try:
        _run([*sudo, "apt-get", "update", "-q"])
    except OSError as error:
        raise PackageError(f"cannot update apt's lists: {error}") from error


def resolve(wanted: list[str], scratch: Path) -> dict[str, str]:
    """The packages that `wanted` and their dependencies come to on an empty system, as `{name: archive file name}`.

    Recommended packages are left out. `scratch` is a folder for an empty package status file.
    """
    status = scratch / "status"
    status.touch()
    plan = _run(
        ["apt-get", "--yes", "--print-uris", "--no-install-recommends", "-o", f"Dir::State::status={status}"]
        # Locks and archives of the host must not matter: this only asks. The empty archive folder makes apt print every address.
        + ["-o", "Debug::NoLocking=1", "-o", f"Dir::Cache::archives={scratch}", "install", *wanted]
    )
    found = {}
    for line in plan.decode().splitlines():
        if line.startswith("'"):
            archive = urllib.parse.unquote(line.split()[1])
            found[archive.split("_")[0]] = line.split()[1]
    if not found:
        raise PackageError(f"apt resolved {' '.join(wanted)} to nothing")
    return found


def fetch(archives: dict[str, str], store: Path) -> dict[str, Path]:
    """Fetches each of `{name: archive file name}` that `store` does not hold yet; returns `{name: path}`.

    apt verifies each archive against the signed index and renames it into place when it is whole.
    """
    missing = sorted(name for name, archive in archives.items() if not (store / archive).exists())
    if missing:
        # As root apt would fetch as its own user `_apt`, who may not write to the store, and warn about it each time.
        _run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *missing], cwd=store)
    paths = {name: store / archive for name, archive in archives.items()}
    absent = [name for name, path in paths.items() if not path.exists()]
    if absent:
        raise PackageError(f"apt fetched another version than it planned of: {' '.join(absent)}; run `apt-get update` and try again")
    return paths


def members(archive: Path) -> list[tuple[tarfile.TarInfo, bytes | None]]:
    """Every file of a package with its bytes (`None` for what has none), in the package's order."""
    stream = io.BytesIO(_run(["dpkg-deb", "--fsys-tarfile", str(archive)]))
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        return [(info, tar.extractfile(info).read() if info.isreg() else None) for info in tar]


def version(archive: Path) -> str:
    """The upstream version of a package archive: `5:7.0.15-1~deb12u1` gives `7.0.15`."""
    full = urllib.parse.unquote(archive.name).split("_")[1]
    return full.split(":")[-1].rsplit("-", 1)[0]
