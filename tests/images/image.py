"""Container images: deterministic layers, and archives that `orch image load`, Docker, Podman and skopeo all read.

An archive is an OCI image layout with Docker's `manifest.json` beside it, as `docker save` writes since version 25. Layers are
not compressed, so a layer's digest is also its diff id, and loading costs no inflating. The same files always give the same bytes:
entries are sorted, times come from the packages or are `EPOCH`, owners are numbers.
"""

import hashlib
import io
import json
import tarfile
from pathlib import Path

# The time of everything that no package dates: 2023-06-10, the day Debian 12 was released.
EPOCH = 1686355200
EPOCH_TEXT = "2023-06-10T00:00:00Z"


class Tree:
    """A root file system in memory: path (no leading slash) → entry and bytes."""

    def __init__(self):
        self.entries: dict[str, tuple[tarfile.TarInfo, bytes | None]] = {}

    def add(self, info: tarfile.TarInfo, data: bytes | None) -> None:
        """Adds an entry; a later one at the same path wins, and a folder never takes the place of a link to one."""
        old = self.entries.get(info.name)
        if old and old[0].issym() and info.isdir():
            return
        # Some packages leave folders of theirs to a maintainer script.
        parent = info.name.rpartition("/")[0]
        if parent and parent not in self.entries:
            self.folder(parent)
        info.uname = info.gname = ""
        info.pax_headers = {}
        self.entries[info.name] = (info, data)

    def _entry(self, path: str, kind: bytes, mode: int, uid: int, gid: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(path.strip("/"))
        info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, uid, gid, EPOCH
        return info

    def folder(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Makes a folder."""
        self.add(self._entry(path, tarfile.DIRTYPE, mode, uid, gid), None)

    def file(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Makes a regular file owned by root."""
        data = data.encode() if isinstance(data, str) else data
        info = self._entry(path, tarfile.REGTYPE, mode, 0, 0)
        info.size = len(data)
        self.add(info, data)

    def link(self, path: str, target: str) -> None:
        """Makes a symbolic link."""
        info = self._entry(path, tarfile.SYMTYPE, 0o777, 0, 0)
        info.linkname = target
        self.add(info, None)

    def remove(self, prefixes: tuple[str, ...]) -> None:
        """Drops every entry at or below the given paths."""
        gone = [path for path in self.entries if any(path == p or path.startswith(p + "/") for p in prefixes)]
        for path in gone:
            del self.entries[path]

    def without(self, lower: "Tree") -> "Tree":
        """What this tree has that `lower` has not in the same form: the next layer above `lower`."""
        upper = Tree()
        for path, (info, data) in self.entries.items():
            below = lower.entries.get(path)
            same = below and below[1] == data and all(
                getattr(below[0], field) == getattr(info, field) for field in ("type", "mode", "uid", "gid", "linkname")
            )
            if not same:
                upper.entries[path] = (info, data)
        return upper

    def layer(self) -> bytes:
        """This tree as the bytes of an uncompressed tar."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            # Hard links sort after the files they name only if they come last.
            for path in sorted(self.entries, key=lambda p: (self.entries[p][0].islnk(), p)):
                info, data = self.entries[path]
                tar.addfile(info, io.BytesIO(data) if data is not None else None)
        return out.getvalue()


def _blob(data: bytes) -> tuple[str, bytes]:
    return "sha256:" + hashlib.sha256(data).hexdigest(), data


def _json(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def archive(path: Path, tags: list[str], arch: str, config: dict, layers: list[tuple[str, bytes]]) -> None:
    """Writes one image to `path`: `layers` are (what made it, tar bytes), lowest first; `config` is the OCI `config` object."""
    blobs = [_blob(data) for _, data in layers]
    settings = sum(1 for key in config if key != "Labels")
    history = [{"created": EPOCH_TEXT, "created_by": made_by} for made_by, _ in layers]
    if settings:
        history.append({"created": EPOCH_TEXT, "created_by": "settings: " + " ".join(sorted(config)), "empty_layer": True})
    image = _blob(_json({
        "architecture": arch,
        "os": "linux",
        "created": EPOCH_TEXT,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest for digest, _ in blobs]},
        "history": history,
    }))

    def descriptor(blob: tuple[str, bytes], kind: str) -> dict:
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": blob[0], "size": len(blob[1])}

    manifest = _blob(_json({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(image, "config.v1+json"),
        "layers": [descriptor(blob, "layer.v1.tar") for blob in blobs],
    }))
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {**descriptor(manifest, "manifest.v1+json"), "annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags
        ],
    }

    def place(digest: str) -> str:
        return "blobs/" + digest.replace(":", "/")

    docker = [{"Config": place(image[0]), "RepoTags": tags, "Layers": [place(digest) for digest, _ in blobs]}]
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json(index),
        "manifest.json": _json(docker),
        **{place(digest): data for digest, data in [*blobs, image, manifest]},
    }
    with tarfile.open(path, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(files[name]), EPOCH, 0o644
            tar.addfile(info, io.BytesIO(files[name]))
