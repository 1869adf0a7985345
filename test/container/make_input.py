"""Lay out a case as grand-challenge.org puts it into /input, with the standard library alone."""

from __future__ import annotations

import argparse
import json
import shutil
import uuid
from pathlib import Path

SOCKETS = {
    "ct-image": ("ct.mha", "images/ct", "Image"),
    "pulmonary-lobes": ("lobes.mha", "images/pulmonary-lobes", "Segmentation"),
}


def make_input(sample: Path, destination: Path, slugs: list[str], key: str) -> None:
    """Write inputs.json and the images of the given sockets into an existing folder, emptied first.

    Args:
        sample: folder with ct.mha and lobes.mha.
        destination: becomes /input; kept itself, since a running container may have it mounted.
        slugs: sockets of the interface to lay out.
        key: name under which inputs.json describes a socket: "socket" today, "interface" on older platforms.
    """
    for old in destination.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    entries: list[dict[str, object]] = []
    for slug in slugs:
        file_name, relative_path, kind = SOCKETS[slug]
        folder = destination / relative_path
        folder.mkdir(parents=True)
        shutil.copyfile(sample / file_name, folder / f"{uuid.uuid4()}.mha")
        descriptor = {"slug": slug, "kind": kind, "super_kind": "Image", "relative_path": relative_path}
        image = {"pk": str(uuid.uuid4()), "name": file_name}
        entries.append({"pk": len(entries) + 1, "value": None, "file": None, "image": image, key: descriptor})
    (destination / "inputs.json").write_text(json.dumps(entries, indent=2))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sample", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("slugs", nargs="+", choices=list(SOCKETS))
    parser.add_argument("--key", choices=["socket", "interface"], default="socket")
    arguments = parser.parse_args()
    make_input(arguments.sample, arguments.destination, arguments.slugs, arguments.key)


if __name__ == "__main__":
    main()
