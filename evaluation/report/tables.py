"""The tables of a comparison, each of which can be written as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation.comparison import Comparison
from evaluation.measures import TARGETS
from evaluation.metrics import LOBES, OVERALL
from evaluation.report.formats import NONE, counted, interval, number, p_value, spread

TARGET_NAMES = {target: target.capitalize().replace("_", "-") for target in TARGETS}

MEASURE_NAMES = {
    "iou": "IoU",
    "dice": "Dice",
    "sensitivity": "Sensitivity",
    "precision": "Precision",
    "surface_dice_2mm": "Surface Dice 2 mm",
    "hausdorff95_mm": "HD95 (mm)",
    "absolute_volume_error_ml": "Volume error (ml)",
}
_DECIMALS = {"hausdorff95_mm": 1, "absolute_volume_error_ml": 1}
_PERCENT_DECIMALS = 1

SIGNIFICANCE = 0.01

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "×": r"$\times$", "²": "$^2$", "<": "$<$", ">": "$>$", "−": "$-$", "–": "--", "\u00a0": "~"}
)

Numbers = dict[str, Any]
Cell = tuple[int, int]


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        title: what it shows.
        header: one text a column.
        rows: one text a cell; the first column names the row.
        note: what a reader must know to read it right.
        best: (row, column) of the cells to stress.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    best: frozenset[Cell] = field(default_factory=frozenset)

    def markdown(self) -> str:
        """As a Markdown section."""
        lines = [_markdown_row(self.header), _markdown_row(["---"] + ["---:"] * (len(self.header) - 1))]
        for i, row in enumerate(self.rows):
            cells = [text.replace("|", "\\|").replace("*", "\\*") for text in row]
            lines.append(_markdown_row([f"**{c}**" if (i, j) in self.best else c for j, c in enumerate(cells)]))
        return f"## {self.title}\n\n" + "\n".join(lines) + f"\n\n{self.note}\n"

    def latex(self) -> str:
        """As a LaTeX table; it needs the package booktabs."""
        rows = []
        for i, row in enumerate(self.rows):
            cells = [text.translate(_LATEX) for text in row]
            rows.append([rf"\textbf{{{c}}}" if (i, j) in self.best else c for j, c in enumerate(cells)])
            if rows[-1][0].startswith(("[", "*")):  # else an argument of the line break before it
                rows[-1][0] = "{}" + rows[-1][0]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{self.title.translate(_LATEX)}. {self.note.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
            r"\toprule",
            " & ".join(text.translate(_LATEX) for text in self.header) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


def all_tables(comparison: Comparison) -> dict[str, Table]:
    """Every table of a report."""
    return {
        "paper": paper_table(comparison),
        "overall": overall_table(comparison),
        "subtypes": subtype_table(comparison),
        "scores": score_table(comparison),
        "lobes": lobe_table(comparison),
        "tests": paired_test_table(comparison),
    }


def paper_table(comparison: Comparison) -> Table:
    """IoU of all lesions and of each subtype, and kappa: the shape of the paper's Table II."""
    rows, means, scans = [], [], []
    for name, method in comparison.metrics["methods"].items():
        aggregates = method["aggregates"]
        kappa, ious = aggregates["kappa"], [aggregates["iou"][target] for target in TARGETS]
        cells = [
            counted(number(iou["mean"]) + star(comparison, name, target), iou["n_valid"])
            for target, iou in zip(TARGETS, ious, strict=True)
        ]
        rows.append([name, *cells, f"{number(kappa['value'])} {interval(kappa)}", method["agreement"] or NONE])
        means.append([*(iou["mean"] for iou in ious), kappa["value"]])
        scans.append([*(_scans_with(comparison, name, target) for target in TARGETS), frozenset()])
    first = next(iter(comparison.metrics["methods"].values()))["aggregates"]
    note = (
        "Mean IoU over [n] scans: a subtype's are those in which the reference or the method has it, so a method that "
        "invents a subtype has more of them. Linearly weighted kappa of "
        f"{first['kappa']['n']} lobes with the analytic 95 % interval (large-sample standard error), which takes lobes "
        "as independent. Bold: best of a column in which all methods have the same scans."
    )
    if comparison.against:
        note += (
            f" *: differs from {comparison.against}, p < {SIGNIFICANCE:g} (two-sided Wilcoxon signed-rank test, "
            "Bonferroni-corrected)."
        )
    header = ["Method", *TARGET_NAMES.values(), "Kappa (analytic 95 % CI)", "Agreement"]
    return Table("Lesion IoU and agreement of severity scores", header, rows, note, best_cells(means, scans))


def star(comparison: Comparison, method: str, target: str) -> str:
    """A star for a method that differs significantly from the one that tests are against; else nothing."""
    if comparison.against is None:
        return ""
    is_significant = any(
        method != comparison.against
        and method in (test["first"], test["second"])
        and test["target"] == target
        and test["p_bonferroni"] is not None
        and test["p_bonferroni"] < SIGNIFICANCE
        for test in comparison.metrics["comparisons"]["pairs"]
    )
    return "*" if is_significant else ""


def best_cells(values: Sequence[Sequence[float | None]], scans: Sequence[Sequence[frozenset[str]]]) -> frozenset[Cell]:
    """Cells with the highest value of their column, columns counted behind that of the names.

    Args:
        values: one row a method; None where undefined.
        scans: the cases that each value is of. A column in which they differ has no best.
    """
    best = set()
    for column, cells in enumerate(zip(*values, strict=True), start=1):
        known = [value for value in cells if value is not None]
        if len(known) > 1 and len({row[column - 1] for row in scans}) == 1:
            best |= {(row, column) for row, value in enumerate(cells) if value == max(known)}
    return frozenset(best)


def overall_table(comparison: Comparison) -> Table:
    """Every measure of all lesions together."""
    rows = []
    for name, method in comparison.metrics["methods"].items():
        aggregates = method["aggregates"]
        iou = aggregates["iou"][OVERALL]
        others = [_measure(aggregates, measure, OVERALL) for measure in list(MEASURE_NAMES)[1:]]
        rows.append([name, spread(iou), interval(iou), number(iou["median"]), number(iou["pooled"]), *others])
    header = ["Method", "IoU", "95 % CI", "Median IoU", "Pooled IoU", *list(MEASURE_NAMES.values())[1:]]
    note = (
        "Mean ± standard deviation over scans; [n] scans where a measure is undefined in others. 95 % CI: percentile "
        "bootstrap of the mean IoU over scans. Pooled: IoU of all scans' voxels together."
    )
    return Table("All lesions together", header, rows, note)


def subtype_table(comparison: Comparison) -> Table:
    """Every measure of each subtype."""
    rows = []
    for target, target_name in list(TARGET_NAMES.items())[1:]:
        for name, method in comparison.metrics["methods"].items():
            aggregates = method["aggregates"]
            n = aggregates["iou"][target]["n_valid"]
            cells = [_measure(aggregates, measure, target, n) for measure in MEASURE_NAMES]
            rows.append([f"{target_name}: {name}", str(n), *cells])
    note = (
        "Mean ± standard deviation over the scans in which the reference or the method has the subtype; [n] where a "
        "measure is of another number of scans: undefined in some, or, as the volume error, 0 in those without the "
        "subtype."
    )
    return Table("Subtypes", ["Subtype: method", "Scans", *MEASURE_NAMES.values()], rows, note)


def score_table(comparison: Comparison) -> Table:
    """Agreement of severity scores, with every interval and border."""
    rows = []
    for name, method in comparison.metrics["methods"].items():
        aggregates = method["aggregates"]
        kappa, total = aggregates["kappa"], aggregates["total_score"]
        intervals = [interval(numbers) for numbers in (kappa, kappa["naive_bootstrap"], kappa["scan_bootstrap"])]
        borders = [number(aggregates[f"kappa_border_{border}_percent"]["value"]) for border in ("0_5", "0")]
        totals = [spread(total["absolute_error"], decimals=2), number(total["r_squared"]), number(total["icc_2_1"])]
        rows.append([name, number(kappa["value"]), *intervals, *borders, *totals])
    header = ["Method", "Kappa", "CI, analytic", "CI, bootstrap over lobes", "CI, bootstrap over scans"]
    header += ["Kappa, 0.5\u00a0%", "Kappa, 0\u00a0%", "Total: MAE", "Total: R²", "Total: ICC(2,1)"]
    note = (
        "95 % intervals of kappa: large-sample standard error (Fleiss, Cohen and Everitt); percentile bootstrap over "
        "lobes; percentile bootstrap over scans, the only one that allows for lobes of one scan being alike. Kappa "
        "with score 1 from 0.5 % and from any lesion voxel instead of from 1 %. Total score 0 to 25; [n] scans have "
        "one in reference and prediction, where not all do."
    )
    return Table("Severity scores", header, rows, note)


def lobe_table(comparison: Comparison) -> Table:
    """Error of involvement, lobe by lobe."""
    columns = [*LOBES.values(), "mean_of_lobes"]
    rows = []
    for name, method in comparison.metrics["methods"].items():
        aggregates = method["aggregates"]
        for text, key in (("error", "lobe_percent_error"), ("absolute error", "lobe_percent_absolute_error")):
            cells = [spread(aggregates[key][lobe], decimals=_PERCENT_DECIMALS) for lobe in columns]
            rows.append([f"{name}: {text}", *cells])
    header = ["Method", *(lobe.upper() for lobe in LOBES.values()), "All lobes"]
    note = (
        "Predicted minus reference percentage of the lobe that is lesion, in percent points: mean ± standard deviation "
        "over scans. LUL, LLL: left upper and lower; RUL, RLL, RML: right upper, lower and middle lobe."
    )
    return Table("Involvement of lobes", header, rows, note)


def paired_test_table(comparison: Comparison) -> Table:
    """The paired tests."""
    comparisons = comparison.metrics["comparisons"]
    rows = [
        [
            f"{test['first']} – {test['second']}",
            TARGET_NAMES[test["target"]],
            f"{test['n']} ({test['n_nonzero']})",
            str(test["n_left_out"]),
            number(test["median_difference"], signed=True),
            number(test["rank_biserial"], signed=True),
            p_value(test["p"]),
            str(test["m"]),
            p_value(test["p_bonferroni"]),
        ]
        for test in comparisons["pairs"]
    ]
    header = ["Pair", "IoU", "Scans (differ)", "Left out", "Median difference", "Rank-biserial r"]
    header += ["p", "m", "p\u00a0×\u00a0m"]
    note = (
        f"{comparisons['test']}. m: number of tests in Bonferroni's correction, counted apart for the overall IoU and "
        "for the subtypes. r: matched-pairs rank-biserial correlation, from −1 (second always better) to 1. Left out: "
        "scans in which a method has no value, for neither it nor the reference has the subtype. So where only one "
        "method invents a subtype, this test does not see it."
    )
    return Table("Paired tests", header, rows, note)


def _scans_with(comparison: Comparison, method: str, target: str) -> frozenset[str]:
    """The cases in which a method has an IoU."""
    return frozenset(scan.case for scan in comparison.scans[method] if scan.measures["iou"][target] is not None)


def _measure(aggregates: Numbers, measure: str, target: str, n: int | None = None) -> str:
    return spread(aggregates[measure][target], decimals=_DECIMALS.get(measure, 3), n=n)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
