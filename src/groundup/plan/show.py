"""The plan in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from groundup.console import duration
from groundup.recipe.schema import Recipe


def show(recipe: Recipe, found: dict[str, Any]) -> None:
    """Print what `budget` found."""
    console = Console()
    parameters = found["parameters"]
    table = Table("parameters", "", title=f"{recipe.name}: the plan", title_style="bold", show_header=False)
    for name in ("total", "embedding", "attention", "mlp", "norm", "head", "active"):
        table.add_row(f"parameters, {name}" if name == "total" else f"  {name}", f"{parameters[name]:,}")
    table.add_section()
    table.add_row("tokens", f"{found['tokens']:,}  ({found['tokens_note']})")
    table.add_row("FLOPs", f"{found['flops']:.3g}  ({found['flops_per_token']:.3g} a token)")
    memory = found["memory"]
    table.add_row("memory, estimated", ", ".join(f"{k} {v / 2**20:,.0f} MiB" for k, v in memory.items()))
    table.add_row("matmul peak, measured", f"{found['peak_flops'] / 1e9:,.0f} GFLOP/s in {recipe.pretrain.precision}")
    table.add_row("pretraining, estimated", duration(found["seconds"]))
    console.print(table)
    if not found["resolved"]:
        return
    autos = Table("key", "value", "reason (source)", title="every auto, resolved", title_style="bold")
    autos.columns[0].no_wrap = True  # a key cut short cannot be copied
    for note in found["resolved"]:
        autos.add_row(note["key"], str(note["value"]), f"{note['reason']} ({note['source']})")
    console.print(autos)
