"""Table of `capabilities` for the documentation: a cell is ``yes``, or ``no`` with the number of its reason below."""

from __future__ import annotations

from collections.abc import Mapping

STOCK = {
    "lora": "LoRA",
    "peft_dora": "DoRA",
    "peft_loha": "LoHa",
    "peft_lokr": "LoKr",
    "peft_ia3": "IA3",
    "peft_vera": "VeRA",
    "peft_ln_tuning": "LN-Tuning",
    "peft_oft": "OFT",
    "peft_boft": "BOFT",
    "peft_fourierft": "FourierFT",
    "peft_randlora": "RandLoRA",
    "peft_miss": "MiSS",
    "peft_beft": "BEFT",
}
"""Names of PEFT's own methods by their recipe, in the order of the table."""


def capability_rows(
    cells: Mapping[str, Mapping[str, str]], names: Mapping[str, str]
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the header, the rows and the numbered reasons of the table.

    Args:
        cells: cells by recipe and column.
        names: names of our own adapters by their recipe. Each needs one.
    """
    numbers: dict[str, int] = {}
    rows = []
    ours = sorted(cells.keys() - STOCK.keys(), key=list(names).index)
    for recipe in [*ours, *(recipe for recipe in STOCK if recipe in cells)]:
        row = [STOCK.get(recipe) or names[recipe]]
        for cell in cells[recipe].values():
            kind, _, reason = cell.partition(": ")
            reason = f"In PEFT: {reason}" if kind == "limit of PEFT" else reason
            row.append("yes" if cell == "yes" else f"no ({numbers.setdefault(reason, len(numbers) + 1)})")
        rows.append(row)
    return ["adapter", *next(iter(cells.values()))], rows, [f"{number}. {reason}" for reason, number in numbers.items()]
