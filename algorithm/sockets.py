"""What Grand Challenge hands to the algorithm and expects of it: slugs, paths, and the inputs of one case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from algorithm.errors import InputError
from algorithm.images import SUFFIXES


@dataclass(frozen=True)
class Socket:
    """A named input or output of the platform, and where its file or folder lies."""

    slug: str
    relative_path: str


CT = Socket("ct-image", "images/ct")
LOBES = Socket("pulmonary-lobes", "images/pulmonary-lobes")
"""Labels 1 to 5 as in `algorithm.lobes`."""
LESIONS = Socket("covid-19-lesion-segmentation", "images/covid-19-lesion-segmentation")
"""Labels 0 background, 1 ground-glass, 2 consolidation, 3 mixed."""
SEVERITY = Socket("covid-19-severity", "covid-19-severity.json")

INPUTS = {socket.slug: socket for socket in (CT, LOBES)}
INTERFACES = (frozenset({CT.slug, LOBES.slug}), frozenset({CT.slug}))


@dataclass(frozen=True)
class CaseInputs:
    """The files of one case.

    Attributes:
        name: file name under which the CT was uploaded, or its name here where the platform tells none.
        ct: image file or DICOM folder.
        lobes: image file; None where the interface has no lobes.
    """

    name: str
    ct: Path
    lobes: Path | None


class _Descriptor(BaseModel):
    slug: str
    relative_path: str | None = None


class _Image(BaseModel):
    name: str


class _SocketValue(BaseModel):
    """One entry of inputs.json; older platforms say `interface` where newer ones say `socket`."""

    socket: _Descriptor | None = None
    interface: _Descriptor | None = None
    image: _Image | None = None

    @property
    def descriptor(self) -> _Descriptor | None:
        return self.socket or self.interface


def read_inputs(input_dir: Path) -> CaseInputs:
    """Read inputs.json and find the case's files.

    Raises:
        InputError: inputs.json is missing or invalid, its sockets form no interface of this algorithm, or a socket's
            folder does not hold exactly one image.
    """
    values = _read_values(input_dir / "inputs.json")
    if values.keys() not in INTERFACES:
        raise InputError(f"inputs.json: got the sockets {_listed(sorted(values))}, expected {_expected_interfaces()}")
    paths = {slug: _find_image(input_dir / _relative_path(slug, value), slug) for slug, value in values.items()}
    image = values[CT.slug].image
    return CaseInputs(name=image.name if image else paths[CT.slug].name, ct=paths[CT.slug], lobes=paths.get(LOBES.slug))


def _read_values(path: Path) -> dict[str, _SocketValue]:
    if not path.is_file():
        raise InputError(f"{path}: missing, expected the platform's list of inputs")
    try:
        values = TypeAdapter(list[_SocketValue]).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}; expected the platform's list of inputs") from error
    by_slug: dict[str, _SocketValue] = {}
    for number, value in enumerate(values):
        if value.descriptor is None:
            raise InputError(f"{path}: {number}: names no socket; expected the platform's list of inputs")
        if value.descriptor.slug in by_slug:
            raise InputError(f"{path}: got the socket {value.descriptor.slug} twice, expected {_expected_interfaces()}")
        by_slug[value.descriptor.slug] = value
    return by_slug


def _relative_path(slug: str, value: _SocketValue) -> str:
    stated = value.descriptor.relative_path if value.descriptor else None
    return stated or INPUTS[slug].relative_path


def _find_image(folder: Path, slug: str) -> Path:
    """The one image in a socket's folder; the folder itself where it holds DICOM files."""
    if not folder.is_dir():
        raise InputError(f"{slug}: {folder} is missing, expected a folder with one image")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    dicom = [path for path in files if path.suffix.lower() == ".dcm"]
    if len(images) == 1 and not dicom:
        return images[0]
    if dicom and not images:
        return folder
    if images:
        raise InputError(f"{slug}: {folder} holds {_listed([p.name for p in [*images, *dicom]])}, expected one image")
    if files:
        raise InputError(
            f"{slug}: {folder} holds {_listed([p.name for p in files])}, expected one image ({', '.join(SUFFIXES)}) "
            "or a DICOM series; TIFF is not supported, for it keeps no patient geometry"
        )
    raise InputError(f"{slug}: {folder} is empty, expected one image")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _expected_interfaces() -> str:
    return " or ".join(f"{{{', '.join(sorted(interface))}}}" for interface in INTERFACES)
