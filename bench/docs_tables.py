"""Generator of the documentation's tables and figures, from ``bench/results/*.json``, and of the recipe's reference.

    python -m dmgal.bench.docs_tables            # rewrite the tables and figures
    python -m dmgal.bench.docs_tables --check    # exit with 1 and name each file that is stale

A page marks a table by the HTML comments ``<!-- table:NAME -->`` and ``<!-- end -->``, each on its own line. ``TABLES``
lists the names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from pathlib import Path

from dmgal.bench import docs_recipe
from dmgal.bench.capability_table import capability_rows
from dmgal.bench.comparison import MethodSummary
from dmgal.bench.docs_figures import FIGURES, HEAD_SCALE, NAMES, RESULTS, load
from dmgal.bench.matrix import report as matrix_report
from dmgal.bench.matrix.report import markdown
from dmgal.bench.matrix.report_folder import generate_docs
from dmgal.bench.quantized import table as quantized_table
from dmgal.bench.reproduction import TITLES, read_record, reproduction_table, sources

DOCS = Path("docs")
PAGES = (
    Path("README.md"),
    *(DOCS / f"{name}.md" for name in ("index", "adapters", "backbones", "benchmark", "evaluation")),
    *(DOCS / f"{name}.md" for name in ("results", "performance", "motion", "text", "galleries")),
)
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = Sequence[str]
MatrixTable = Callable[[Sequence[matrix_report.Row]], str]


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check every file, and return the exit code."""
    return generate_docs(generated, argv, __doc__, "python -m dmgal.bench.docs_tables")


def generated(root: Path) -> Iterator[tuple[Path, str | bytes]]:
    """Yield the path and the content of each generated file."""
    for path in PAGES:
        yield path, with_tables(root, (root / path).read_text(encoding="utf-8"))
    yield docs_recipe.PAGE, docs_recipe.recipe_page()
    for path, draw in FIGURES.items():
        yield path, draw(root)


def with_tables(root: Path, page: str) -> str:
    """Return a page with the current tables between its markers."""
    return MARKED.sub(lambda match: match[1] + TABLES[match[2]](root) + match[3], page)


def spread(values: dict[str, float], sign: str = "") -> str:
    """Return a mean and its range, such as ``92.8 (91.1 to 94.2)``."""
    mean, lowest, highest = (values[name] for name in ("mean", "lowest", "highest"))
    return f"{fixed(mean, sign)} ({fixed(lowest)} to {fixed(highest)})"


def fixed(value: float, sign: str = "") -> str:
    """Round half up to one decimal, as written in the JSON file: 4.85 is 4.9, although its float is below."""
    return f"{Decimal(str(value)).quantize(Decimal('0.1'), ROUND_HALF_UP):{sign}}"


def demo_table(root: Path) -> str:
    """Compare frozen backbone, adapters and full fine-tuning over three data sets."""
    rows = []
    for name, row in load(root, "demo")["summary"].items():
        share = row["share_of_visual_tower_percent"]
        rows.append([
            NAMES[name],
            spread(row["accuracy"]),
            "" if name == "frozen" else spread(row["difference_to_frozen"], "+"),
            fixed(row["reversal_two_way"]["mean"]),
            fixed(row["reversal_four_way"]["mean"]),
            "0" if not share else f"{fixed(share)} %" if share < 100 else "all, and its head",
        ])  # fmt: skip
    header = ["method", "accuracy %", "over frozen, points", "reversal, 2-way %", "reversal, 4-way %"]
    return markdown([*header, "trained, of the visual tower"], rows)


def adapter_table(root: Path) -> str:
    """Compare the adapters at one shot, best first."""
    summary = load(root, "adapter_comparison")["summary"]["1-shot"]
    rows = [comparison_row(name, row, HEAD_SCALE) for name, row in best_first(summary)]
    return markdown(["adapter", "parameters", "accuracy %", "to DMGAL-Adapter, points", "reversal, 2-way %"], rows)


def method_table(root: Path) -> str:
    """Compare the methods at one and five shots, best first."""
    shots = load(root, "method_comparison")["summary"]
    rows = [
        [*comparison_row(name, row), spread(shots["5-shot"][name]["accuracy"])]
        for name, row in best_first(shots["1-shot"])
    ]
    header = ["method", "trained", "1 shot %", "to DMGAL-Adapter, points", "reversal, 2-way %", "5 shots %"]
    return markdown(header, rows)


def comparison_row(name: str, row: MethodSummary, uncounted: int = 0) -> list[str]:
    """Return the columns that adapters and methods share. ``uncounted`` parameters are not of the adapter."""
    return [
        NAMES[name],
        f"{row['trained_parameters'] - uncounted:,}",
        spread(row["accuracy"]),
        "" if name == "dmgal_adapter" else spread(row["difference_to_first"]),
        fixed(row["reversal_two_way"]["mean"]),
    ]


def best_first(summary: dict[str, MethodSummary]) -> list[tuple[str, MethodSummary]]:
    """Sort methods by their mean accuracy."""
    return sorted(summary.items(), key=lambda item: -item[1]["accuracy"]["mean"])


def gallery_table(root: Path) -> str:
    """Show recognition accuracy by the number of enrolled classes."""
    accuracy = load(root, "gallery")["test"]["accuracy"]
    classes = sorted({row["classes"] for row in accuracy})
    rows = [
        [
            f"{shots} clip{'s' * (shots > 1)} each, correct %",
            *(fixed(row["whole_gallery"]["percent"]) for row in accuracy if row["shots"] == shots),
        ]
        for shots in sorted({row["shots"] for row in accuracy})
    ]
    return markdown(["classes", *map(str, classes)], rows)


def adapter_cost_table(root: Path) -> str:
    """Show parameters, FLOPs and CPU time that adapters add to ViT-B/16."""
    rows = []
    for name, row in load(root, "adapters")["adapters"].items():
        if name != "frozen":
            time = row["cpu_time_percent"]
            low, high = time["interval_95"]
            rows.append([
                "Smga (DMGAL)" if name == "smga" else NAMES[name],
                f"{row['parameters'] / 1e6:.2f} M",
                f"+{fixed(row['flops_percent'])} %",
                f"+{fixed(time['median'])} % ({fixed(low)} to {fixed(high)})",
            ])  # fmt: skip
    return markdown(["adapter", "parameters", "FLOPs", "CPU time"], rows)


def training_table(root: Path) -> str:
    """Compare time and memory of a training step with full fine-tuning."""
    report = load(root, "training")
    cases, ratios = report["cases"], {name: f"{ratio['median']:.2f}" for name, ratio in report["ratios"].items()}

    def case(precision: str) -> list[str]:
        row = cases[f"everything_{precision}"]
        return [f"{row['seconds']['median']:.1f} s", f"{row['peak_mb']['median'] / 1000:.1f} GB"]

    def ratio(name: str, suffix: str = "") -> list[str]:
        return [ratios[f"{name}_over_full_{what}{suffix}"] for what in ("time", "memory")]

    rows = [
        ["full fine-tuning, no adapters", *case("float32"), *case("bf16")],
        ["DMGAL-Adapters on a frozen backbone", *ratio("adapters"), *ratio("adapters", "_in_bf16")],
        ["the same in two passes, one video at a time", *ratio("two_passes"), "", ""],
    ]
    return markdown(["ViT-B/16, one training step", "time", "memory", "bf16: time", "bf16: memory"], rows)


def memory_table(root: Path) -> str:
    """Compare ways to save memory in a 5-shot training step."""
    plain, *others = load(root, "memory")["measured"]
    budget = f"two passes, budget {others[-1]['peak_extra_tensor_mb'] / 1000:.1f} GB"
    rows = [["plain", f"{plain['seconds']:.0f} s", f"{plain['peak_extra_mb'] / 1000:.1f} GB", ""]]
    for row in others:
        name = budget if row["way"] == "two passes" else "checkpointed blocks"
        rows.append([
            name,
            f"{row['time_ratio']:.2f}",
            f"{row['memory_share']:.2f}",
            f"{row['gradient_difference']:.2g}",
        ])  # fmt: skip
    return markdown(["", "time", "memory", "gradient difference"], rows)


def evaluation_table(root: Path) -> str:
    """Show how many times faster cached evaluation is than re-encoding every episode."""
    report = load(root, "evaluation")
    measured = {(row["case"], row["shots"]): row["times_plain"]["median"] for row in report["tiny_clip"]}
    rows = [
        [
            "Smga only, Bi-MHM" if row["case"] == "smga" else "with a Cmga",
            *(fixed(measured[row["case"], shots]) for shots in (1, 5)),
            *(fixed(row[f"{shots}-shot"]["times_plain_reckoned"]) for shots in (1, 5)),
        ]
        for row in report["vit_b_16_reckoned_from_measured_pieces"]
    ]
    header = ["", "tiny-clip, 1 shot", "5 shots", "ViT-B/16, estimated from measured parts, 1 shot", "5 shots"]
    return markdown(header, rows)


def decode_table(root: Path) -> str:
    """List the wrong frames of both decoders, one row for each kind of clip that decord gets wrong."""
    wrong = load(root, "decode")["wrong_frames"]
    rows, correct = [], 0
    for clip, decoders in wrong.items():
        counts = {name: wrong_counts(report) for name, report in decoders.items()}
        if set(counts.values()) == {"0, 0, 0"}:
            correct += 1
        else:
            rows.append([clip, counts["ours"], counts["decord"]])
    return markdown(["clips", "ours (PyAV)", "decord 0.6.0"], [*rows, [f"{correct} other kinds", *["0, 0, 0"] * 2]])


def wrong_counts(report: dict[str, object]) -> str:
    """Return the numbers of wrong frames in uniform, random and reverse reads."""
    return "unreadable" if "error" in report else ", ".join(str(report[k]) for k in ("uniform", "random", "reverse"))


def motion_table(root: Path, backbone: str) -> str:
    """Show what the bundled motion adapter is worth on real clips, at one and five shots."""
    results = load(root, "motion_transfer")["results"][backbone]
    rows = {
        name: [pair([of["shots"][shots]["accuracy"][name] for shots in ("1", "5")]) for of in results.values()]
        for name in next(iter(results.values()))["shots"]["1"]["accuracy"]
    }
    for difference in MOTION_DIFFERENCES[backbone]:
        cells = [
            pair([of["shots"][shots]["difference"][difference] for shots in ("1", "5")], "+") for of in results.values()
        ]
        rows[difference.replace(" - ", " minus ")] = cells
    used = [f"{name}{' *' if of['used_for_choices'] else ''}" for name, of in results.items()]
    header = [f"{MOTION_BACKBONES[backbone]}, 5-way, 1 / 5 shots", *used]
    return markdown(header, [[name, *cells] for name, cells in rows.items()])


def pair(estimates: Sequence[dict[str, float]], sign: str = "") -> str:
    """Return two accuracies or differences, the latter with their intervals."""
    return " / ".join(
        f"{fixed(one['percent'], sign)}{' ± ' + fixed(one['half_width']) if sign else ''}" for one in estimates
    )


def study_table(root: Path) -> str:
    """Show what each change of an adapter's training is worth on real validation clips, at one and five shots."""
    groups = load(root, "motion_study")["groups"]
    sets = dict.fromkeys(name.rpartition(", ")[0] for name in groups[""]["reference"])
    rows = []
    for group, variants in groups.items():
        for variant, found in variants.items():
            cells = [
                ""
                if sign and variant == "frozen"
                else pair([found[f"{name}, {shots}-shot"][kind] for shots in (1, 5)], sign)
                for kind, sign in (("accuracy", ""), ("minus frozen", "+"))
                for name in sets
            ]
            rows.append([f"{group}: {variant}" if group else variant, *cells])
    differences = [f"{name}, minus frozen" for name in sets]
    return markdown(["5-way, 1 / 5 shots", *sets, *differences], rows)


def text_table(root: Path) -> str:
    """Show what the text of the classes is worth beside clips, at one and five shots."""
    rows = []
    for data, methods in load(root, "text")["results"].items():
        for method in methods:
            if method != "captions":
                by_shots = [methods[method][shots] for shots in ("1", "5")]
                cells = [pair([one["accuracy"][name] for one in by_shots]) for name in ("clips", "text", "both")]
                weights = " / ".join(f"{one['weight']:g}" for one in by_shots)
                rows.append([data, method, *cells, pair([one["both - clips"] for one in by_shots], "+"), weights])
    header = ["classes", "method", "clips %", "text %", "both %", "both minus clips, points", "weight of the text"]
    return markdown(header, rows)


def capabilities_table(root: Path) -> str:
    """Show what each adapter can do, with the reasons of what it cannot."""
    header, rows, reasons = capability_rows(load(root, "capabilities")["cells"], NAMES)
    return markdown(header, rows) + "\n" + "".join(f"{reason}\n" for reason in reasons)


def matrix_table(root: Path, matrix: str, table: MatrixTable = matrix_report.other_data_table) -> str:
    """Show a table of a committed matrix."""
    return table(matrix_report.rows_of(matrix_report.load(root / RESULTS / matrix)))


def reproduction_rows(root: Path) -> str:
    """Show our accuracies on the standard data sets beside the published ones. Those without a run are empty."""
    paths = [root / RESULTS / "reproduce" / f"{data}.json" for data in TITLES]
    records = [read_record(path) for path in paths if path.exists()]
    return f"{reproduction_table(records, list(TITLES))}\n{sources(TITLES)}"


def unknown_table(root: Path, method: str, data: dict[str, str], measures: Sequence[str]) -> str:
    """Compare scores of unknown actions on several data sets, the best on the first one first.

    Args:
        root: folder of the repository.
        method: name in the results.
        data: title of each data set by its name in the results. Some have all scores, others only those in use.
        measures: names in the results.
    """
    found = load(root, "unknown")["results"][method]
    first = found[next(iter(data))]["scores"]
    names = sorted(first, key=lambda name: -first[name]["area_under_roc"]["percent"])
    rows = [
        [name, *(_with_interval(found[part]["scores"].get(name), measure) for part in data for measure in measures)]
        for name in names
    ]
    return markdown(
        ["score", *(f"{MEASURES[measure]}, {title}" for title in data.values() for measure in measures)], rows
    )


def _with_interval(measures: Mapping[str, Mapping[str, float]] | None, name: str) -> str:
    return "" if measures is None else f"{fixed(measures[name]['percent'])} ± {fixed(measures[name]['half_width'])}"


MEASURES = {
    "area_under_roc": "AUROC %",
    "false_accepts_at_80": "false accepts at 80 %",
    "false_accepts_at_90": "at 90 %",
}
OWN_SMGA = "resnet50-imagenet-112px with resnet50-smga"
MOTION_BACKBONES = {
    "tiny-clip": "tiny-clip",
    "resnet50-imagenet": "ResNet-50 (ImageNet), frozen",
    OWN_SMGA: "ResNet-50 at 112 pixels with its own Smga",
}
MOTION_DIFFERENCES = {
    "tiny-clip": (
        "motion adapter - frozen",
        "motion adapter - ft",
        "weighted per task - frozen",
        "weighted per task - motion adapter",
    ),
    "resnet50-imagenet": ("weighted per task - frozen as it is", "weighted per task - frozen"),
    OWN_SMGA: ("motion adapter - frozen", "weighted per task - frozen as it is", "weighted per task - frozen"),
}

TABLES: dict[str, Callable[[Path], str]] = {
    "demo": demo_table,
    "adapters": adapter_table,
    "methods": method_table,
    "gallery": gallery_table,
    "adapter_cost": adapter_cost_table,
    "training": training_table,
    "memory": memory_table,
    "evaluation": evaluation_table,
    "decode": decode_table,
    "motion_tiny_clip": partial(motion_table, backbone="tiny-clip"),
    "motion_resnet": partial(motion_table, backbone="resnet50-imagenet"),
    "motion_resnet_own": partial(motion_table, backbone=OWN_SMGA),
    "motion_study": study_table,
    "text": text_table,
    "capabilities": capabilities_table,
    "efficiency_accuracy": partial(matrix_table, matrix="efficiency", table=matrix_report.accuracy_table),
    "efficiency_cost": partial(matrix_table, matrix="efficiency", table=matrix_report.cost_table),
    "ablations": partial(matrix_table, matrix="ablations", table=matrix_report.ablation_table),
    "domains": partial(matrix_table, matrix="domains"),
    "real_clips": partial(matrix_table, matrix="real_clips"),
    "quantized": lambda root: markdown(*quantized_table(load(root, "quantized"))),
    "unknown": partial(
        unknown_table, method="dmgal_adapter", data={"val": "validation", "test": "novel"}, measures=[*MEASURES]
    ),
    "unknown_motion": partial(
        unknown_table,
        method="motion",
        data={"val": "validation", "ut_interaction": "UT-Interaction", "ssv2_mini": "SSv2-mini", "test": "novel"},
        measures=[*MEASURES][:2],
    ),
    "reproduction": reproduction_rows,
}
"""Functions that return a Markdown table, by its name in the markers."""


if __name__ == "__main__":
    sys.exit(main())
