"""Branching trees of arteries, veins and airways in every lobe, and their drawing on a voxel grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from algorithm.images import Geometry
from training.phantom.grid import indices
from training.phantom.lobes import LOBE_LABELS, LobeFields
from training.phantom.texture import FloatArray

_MURRAY = 2.75


@dataclass(frozen=True)
class Tubes:
    """Short straight pieces of tube: ends (N, 3) in patient x, y, z mm, and radii (N,) in mm."""

    start: FloatArray
    end: FloatArray
    radius_mm: FloatArray

    def where(self, chosen: NDArray[np.bool_]) -> Tubes:
        """Some of the pieces."""
        return Tubes(self.start[chosen], self.end[chosen], self.radius_mm[chosen])

    def with_radius(self, radius_mm: FloatArray) -> Tubes:
        """The same pieces with other radii."""
        return Tubes(self.start, self.end, radius_mm)


@dataclass(frozen=True)
class LungTubes:
    """Blood vessels, sheaths of looser tissue around them, airways (lumen radius), and where they enter each lung."""

    vessels: Tubes
    sheaths: Tubes
    airways: Tubes
    hila: tuple[FloatArray, FloatArray]


def join(parts: list[Tubes]) -> Tubes:
    """All pieces of several sets."""
    return Tubes(
        np.concatenate([p.start for p in parts]),
        np.concatenate([p.end for p in parts]),
        np.concatenate([p.radius_mm for p in parts]),
    )


def grow_lung_tubes(rng: np.random.Generator, lobes: LobeFields) -> LungTubes:
    """Grow an artery, a vein and an airway tree in each lobe, from the hilum of its lung outward."""
    apart_mm = rng.uniform(7.0, 8.8)
    tip_mm = rng.uniform(0.34, 0.44)
    hila = {side: _hilum(lobes, side) for side in ("left", "right")}
    vessels, sheaths, airways = [], [], []
    for label in LOBE_LABELS:
        points = lobes.positions(lobes.labels == label)
        hilum = hila["left" if label in (1, 2) else "right"]
        count = max(int(len(points) * lobes.step_mm**3 / apart_mm**3 / 2), 12)
        for kind in ("artery", "vein"):
            tree = _grow(rng, points, (hilum + rng.normal(0, (3, 7, 9))).astype(np.float32), count, tip_mm)
            vessels.append(_widen_at_hilum(rng, _curves(tree), hilum))
            sheaths.append(_sheaths(rng, vessels[-1], hilum))
            if kind == "artery":
                airways.append(_beside(rng, vessels[-1]))
    return LungTubes(join(vessels), join(sheaths), join(airways), (hila["left"], hila["right"]))


def _hilum(lobes: LobeFields, side: str) -> FloatArray:
    """A point on the medial face of a lung, at the height and depth of its centre."""
    points = lobes.positions(np.isin(lobes.labels, (1, 2) if side == "left" else (3, 4, 5)))[::7]
    centre = points.mean(axis=0)
    near = points[(np.abs(points[:, 1] - centre[1]) < 12) & (np.abs(points[:, 2] - centre[2] - 10) < 12)]
    if len(near) == 0:
        near = points
    edge = np.percentile(near[:, 0], 3 if side == "left" else 97)
    return np.array([edge, centre[1], centre[2] + 8], dtype=np.float32)


@dataclass(frozen=True)
class _Tree:
    points: FloatArray
    parent: NDArray[np.intp]
    radius_mm: FloatArray


def _grow(rng: np.random.Generator, inside: FloatArray, root: FloatArray, count: int, tip_mm: float) -> _Tree:
    """Connect random points of a lobe to a root, a few far apart first; radii by Murray's law."""
    chosen = inside[rng.choice(len(inside), size=count, replace=len(inside) < count)]
    points = np.concatenate([root[None], chosen + rng.uniform(-1, 1, chosen.shape)]).astype(np.float32)
    parent, order = _connect(points, stages=((max(count // 10, 4), 1.1), (count, 0.6)))
    flow = np.ones(len(points))
    for node in order[:0:-1]:
        flow[parent[node]] += flow[node]
    radius_mm = np.minimum(tip_mm * flow ** (1 / _MURRAY), 6.5)
    return _Tree(_relax(points, parent, flow), parent, radius_mm.astype(np.float32))


def _connect(points: FloatArray, stages: tuple[tuple[int, float], ...]) -> tuple[NDArray[np.intp], list[int]]:
    """Greedy trees of least wire plus balance x path length: parents, and the order in which nodes joined.

    Args:
        points: (N, 3), the root first.
        stages: (last point, balance): the points up to the last one join before any later point does.
    """
    length = np.zeros(len(points))
    parent = np.zeros(len(points), dtype=np.intp)
    waiting = np.ones(len(points), dtype=bool)
    order = [0]
    waiting[0] = False
    for last, balance in stages:
        distance = np.full(len(points), np.inf)
        cost = np.full(len(points), np.inf)
        todo = waiting.copy()
        todo[last + 1 :] = False
        fresh = order.copy()
        for _ in range(int(todo.sum()) + 1):
            for node in fresh:
                offset = points - points[node]
                away = np.sqrt(np.einsum("nd,nd->n", offset, offset))
                offer = away + balance * (length[node] + away)
                better = (offer < cost) & todo
                cost[better], distance[better], parent[better] = offer[better], away[better], node
            if not todo.any():
                break
            nearest = int(cost.argmin())
            length[nearest] = length[parent[nearest]] + distance[nearest]
            todo[nearest] = waiting[nearest] = False
            cost[nearest] = np.inf
            order.append(nearest)
            fresh = [nearest]
    return parent, order


def _main_child(parent: NDArray[np.intp], flow: NDArray[np.float64]) -> NDArray[np.intp]:
    """For each node the child that carries most; the node itself at a tip."""
    child = np.arange(len(parent))
    for node in np.argsort(flow[1:], kind="stable") + 1:
        child[parent[node]] = node
    return child


def _relax(points: FloatArray, parent: NDArray[np.intp], flow: NDArray[np.float64]) -> FloatArray:
    """Straighten the main paths: each node moves towards the middle of its neighbours."""
    child = _main_child(parent, flow)
    free = child != np.arange(len(parent))
    free[0] = False
    for _ in range(3):
        middle = (points[parent] + points[child]) / 2
        points = np.where(free[:, None], 0.5 * points + 0.5 * middle, points)
    return points.astype(np.float32)


def _curves(tree: _Tree, piece_mm: float = 2.0) -> Tubes:
    """Hermite curves along the edges, cut into short pieces; radii fall evenly along an edge's last half."""
    points, parent = tree.points, tree.parent
    child = _main_child(parent, tree.radius_mm.astype(np.float64))
    tangent = points[child] - points[parent]
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-6
    a, b = points[parent[1:]], points[1:]
    length = np.linalg.norm(b - a, axis=1, keepdims=True)
    ta, tb = tangent[parent[1:]] * length * 0.6, tangent[1:] * length * 0.6
    starts, ends, radii = [], [], []
    cuts = np.clip(np.ceil(length[:, 0] / piece_mm), 1, 24).astype(int)
    for n in np.unique(cuts):
        some = cuts == n
        t = np.linspace(0, 1, n + 1, dtype=np.float32)[:, None, None]
        path = (
            (2 * t**3 - 3 * t**2 + 1) * a[some]
            + (t**3 - 2 * t**2 + t) * ta[some]
            + (3 * t**2 - 2 * t**3) * b[some]
            + (t**3 - t**2) * tb[some]
        )
        starts.append(path[:-1].reshape(-1, 3))
        ends.append(path[1:].reshape(-1, 3))
        radii.append(np.tile(tree.radius_mm[1:][some], n))
    return Tubes(*(np.concatenate(part).astype(np.float32) for part in (starts, ends, radii)))


def _widen_at_hilum(rng: np.random.Generator, vessels: Tubes, hilum: FloatArray) -> Tubes:
    """The same vessels in the fat and nodes that surround them where they enter the lung, as dense as they on CT."""
    gain, reach_mm = rng.uniform(0.1, 0.9), rng.uniform(15, 35)
    away_mm = np.linalg.norm((vessels.start + vessels.end) / 2 - hilum, axis=1)
    return vessels.with_radius(vessels.radius_mm * (1 + gain * np.exp(-((away_mm / reach_mm) ** 2))).astype(np.float32))


def _sheaths(rng: np.random.Generator, vessels: Tubes, hilum: FloatArray) -> Tubes:
    """What surrounds the vessels, thick at the hilum and thinning out: interstitium, lymphatics, what is blurred."""
    thick_mm, reach_mm = rng.uniform(0.5, 5), rng.uniform(20, 55)
    away_mm = np.linalg.norm((vessels.start + vessels.end) / 2 - hilum, axis=1)
    around_mm = (thick_mm * np.exp(-((away_mm / reach_mm) ** 2))).astype(np.float32)
    return vessels.with_radius(vessels.radius_mm + around_mm).where((vessels.radius_mm > 0.8) & (around_mm > 0.3))


def _beside(rng: np.random.Generator, artery: Tubes) -> Tubes:
    """An airway along each thick artery, displaced by the sum of their radii."""
    thick = artery.where(artery.radius_mm > rng.uniform(1.3, 1.9))
    lumen_mm = np.clip(0.8 * thick.radius_mm - 0.2, 0.7, 5.0)
    direction = thick.end - thick.start
    side = np.cross(direction, rng.normal(0, 0.15, 3) + np.array([0.0, 0.3, 1.0]))
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-6
    offset = side * (thick.radius_mm + 1.35 * lumen_mm)[:, None]
    return Tubes(
        (thick.start + offset).astype(np.float32), (thick.end + offset).astype(np.float32), lumen_mm.astype(np.float32)
    )


def draw_tubes(tubes: Tubes, geometry: Geometry) -> FloatArray:
    """The share of each voxel that tubes fill, float32 (z, y, x).

    Thick slices are drawn as thinner ones and averaged, as a scanner does; a tube thinner than a voxel fills a share
    of it.
    """
    spacing = np.asarray(geometry.spacing_zyx_mm)
    layers = max(1, round(spacing[0] / (1.4 * spacing[2])))
    fine_spacing = spacing / (layers, 1, 1)
    shift = np.array([[(layers - 1) / 2], [0], [0]])
    start = indices(geometry, tubes.start) * ((layers,), (1,), (1,)) + shift
    end = indices(geometry, tubes.end) * ((layers,), (1,), (1,)) + shift
    size_z, size_y, size_x = geometry.size_zyx
    fine = np.zeros((size_z * layers, size_y, size_x), dtype=np.uint8)
    scale = fine_spacing[:, None]
    _splat(fine, (start * scale).T, (end * scale).T, tubes.radius_mm, fine_spacing)
    if layers == 1:
        return fine.astype(np.float32) / np.float32(255)
    total = np.zeros(geometry.size_zyx, dtype=np.float32)
    for layer in range(layers):
        total += fine[layer::layers]
    return total / np.float32(255 * layers)


def _splat(
    canvas: NDArray[np.uint8],
    start_mm: NDArray[np.float64],
    end_mm: NDArray[np.float64],
    radius_mm: FloatArray,
    spacing: NDArray[np.float64],
) -> None:
    """Write the coverage of capsules into a canvas, the maximum where they meet."""
    thinnest = 0.55 * float(spacing[2])
    drawn_mm = np.maximum(radius_mm, thinnest)
    strength = 255 * np.minimum(radius_mm / drawn_mm, 1.0) ** 2
    reach_mm = drawn_mm + np.linalg.norm(end_mm - start_mm, axis=1) / 2 + 0.5 * spacing[2]
    group = np.ceil(np.log(reach_mm) / np.log(1.3)).astype(int)
    flat = canvas.reshape(-1)
    for value in np.unique(group):
        members = np.flatnonzero(group == value)
        half = np.ceil(reach_mm[members].max() / spacing).astype(int)
        offsets = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij")).reshape(3, -1).T
        for some in np.array_split(members, 1 + len(members) * len(offsets) // 2_000_000):
            _splat_group(
                flat, canvas.shape, start_mm[some], end_mm[some], drawn_mm[some], strength[some], offsets, spacing
            )


def _splat_group(
    flat: NDArray[np.uint8],
    shape: tuple[int, ...],
    start_mm: NDArray[np.float64],
    end_mm: NDArray[np.float64],
    radius_mm: FloatArray,
    strength: FloatArray,
    offsets: NDArray[np.int_],
    spacing: NDArray[np.float64],
) -> None:
    middle = np.rint((start_mm + end_mm) / 2 / spacing).astype(np.int32)
    axis = (end_mm - start_mm).astype(np.float32)
    squared = np.maximum((axis**2).sum(axis=1), 1e-6)
    from_start = (middle * spacing - start_mm).astype(np.float32)[:, None] + (offsets * spacing).astype(np.float32)
    along = np.clip(np.einsum("nkd,nd->nk", from_start, axis) / squared[:, None], 0, 1)
    from_start -= along[..., None] * axis[:, None]
    distance = np.sqrt(np.einsum("nkd,nkd->nk", from_start, from_start))
    share = np.clip(0.5 + (radius_mm[:, None] - distance) / np.float32(spacing[2]), 0, 1) * strength[:, None]
    index = middle[:, None] + offsets.astype(np.int32)
    keep = (share > 1) & (index >= 0).all(axis=2) & (index < np.asarray(shape, dtype=np.int32)).all(axis=2)
    z, y, x = index[keep].T
    np.maximum.at(flat, (z.astype(np.int64) * shape[1] + y) * shape[2] + x, share[keep].astype(np.uint8))
