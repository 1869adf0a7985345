"""docs/performance.md, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .peers import NNUNET_MIRRORINGS, Cost

DEFAULT = "width 8"


def render(
    *,
    command: str,
    hardware: str,
    box: tuple[int, int, int],
    slices: int,
    rates: Mapping[str, float],
    costs: Mapping[str, Cost],
    growth: Mapping[tuple[int, int, int], float],
    stages: Mapping[str, float],
    kernels: Mapping[str, float],
    lobes: tuple[tuple[int, int, int], Mapping[str, float]],
    memory: Mapping[str, float],
    agreement: Mapping[str, Sequence[tuple[str, float, bool]]],
    minutes: Callable[[], float],
) -> str:
    """The whole document."""
    parts = [
        "# What segmenting a scan costs",
        f"Made by `{command}` in {minutes():.0f} minutes. {hardware}. Seconds are this machine's; read the ratios.",
        f"The scan is a lung box of {_size(box)} voxels at 1.5 mm, {slices} slices. Width 8 is the default model, 32 "
        "the dRAM paper's. All networks compute all of the scan once, in PyTorch where nothing else is said; weights "
        "of other widths and of others' networks are random, which changes no time.",
        "## Networks",
        _networks(costs, rates),
        "One tile of the paper's tiling (132 voxels in, 44 out, stride 44), one patch of nnU-Net's default network "
        "(128 voxels, half overlap) and one batch of lungmask's network were measured and multiplied by their number; "
        "OpenVINO's time is that of a third of the slices, tripled. bf16 of others is autocast. lungmask's lobe model "
        "runs two such networks; both run in fp32. With mirroring, nnU-Net's default, the network runs eight times.",
        "## Against others",
        _ratios(costs),
        "## Where the time of one segment call goes",
        _stages(stages),
        "The model is loaded and warm; files are compressed. `segment` draws while it writes; `segment-batch` does "
        "everything else while the network computes the case before or after.",
        "## Where the network's time goes, and the floor",
        _table(("operation", "share of time"), [(name, f"{share:.0%}") for name, share in kernels.items()]),
        _floor(costs, rates),
        "## Growth",
        _table(
            ("lung box", "microseconds a voxel", "against the middle size"),
            [(_size(b), f"{cost:.3f}", f"{cost / list(growth.values())[1]:.2f}") for b, cost in growth.items()],
        ),
        "## Lobes of a scan that comes without",
        _lobes(*lobes),
        "## Peak memory of a process",
        _table(("process", "GB"), [(name, f"{peak:.2f}") for name, peak in memory.items()]),
        "## The answer does not change",
        "Against fp32 over the whole scan at once, default model:",
        _table(
            ("scan", "path", "lowest Dice of a class", "scores"),
            [
                (scan, path, f"{dice:.5f}", "equal" if same else "differ")
                for scan, paths in agreement.items()
                for path, dice, same in paths
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _networks(costs: Mapping[str, Cost], rates: Mapping[str, float]) -> str:
    unit = costs[f"{DEFAULT}, bf16, ours"].seconds
    rows = [
        (
            name,
            f"{cost.seconds:.1f}",
            f"{cost.seconds / unit:.1f}",
            f"{cost.operations / 1e12:.2f}",
            f"{cost.operations / cost.seconds / rates['bf16' if 'bf16' in name else 'fp32']:.0%}",
        )
        for name, cost in costs.items()
    ]
    heads = ("network", "s", f"against {DEFAULT}, bf16, ours", "10^12 operations", "of the peak rate")
    return _table(heads, rows)


def _ratios(costs: Mapping[str, Cost]) -> str:
    rows = []
    for ours, cost in costs.items():
        if not ours.endswith("ours"):
            continue
        precision = ours.split(", ")[1]
        nnunet, lungmask = costs[f"nnU-Net, {precision}"].seconds, costs["lungmask, fp32"].seconds
        paper = costs[ours.replace("ours", "paper's tiling")].seconds
        times = (paper, nnunet, NNUNET_MIRRORINGS * nnunet, lungmask)
        rows.append((ours, *(f"{time / cost.seconds:.1f}x" for time in times)))
    heads = ("ours is faster than", "the paper's tiling", "nnU-Net", "nnU-Net, mirrored", "lungmask's network")
    return _table(heads, rows)


def _stages(stages: Mapping[str, float]) -> str:
    total = sum(stages.values())
    rows = [(name, f"{time:.2f}", f"{time / total:.0%}") for name, time in stages.items()]
    call = sum(stages[name] for name in ("preprocess", "network", "postprocess"))
    note = f"From arrays to arrays a call costs {call / stages['network']:.2f} times its network, "
    note += f"from files to files {total / stages['network']:.2f} times where nothing overlaps."
    return _table(("step", "s", "share"), rows) + "\n\n" + note


def _lobes(size: tuple[int, int, int], times: Mapping[str, float]) -> str:
    lobes, network = times["lobes"], times["lesion network"]
    return (
        f"On a CT of {_size(size)} voxels, 400 x 360 x 360 mm, from HU to labels at its own voxels: {lobes:.1f} s, "
        f"{lobes / network:.2f} times the lesion network on the same scan ({network:.1f} s)."
    )


def _floor(costs: Mapping[str, Cost], rates: Mapping[str, float]) -> str:
    rows = []
    for name, cost in costs.items():
        if name.endswith("ours"):
            floor = cost.operations / rates[name.split(", ")[1]]
            rows.append((name, f"{floor:.1f}", f"{cost.seconds:.1f}", f"{cost.seconds / floor:.2f}"))
    peak = " and ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in rates.items())
    text = f"The floor is the arithmetic of the convolutions over the rate of a large matrix product: {peak}."
    return text + "\n\n" + _table(("network", "floor, s", "measured, s", "ratio"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _size(box: tuple[int, int, int]) -> str:
    return " x ".join(map(str, box))
