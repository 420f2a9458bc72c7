"""The plan in the terminal: a summary; the document has the rest."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from groundup.plan.document import long_duration


def show(plan: dict[str, Any]) -> None:
    """Print the summary of what `document.planned` holds."""
    console = Console()
    parameters, compute = plan["parameters"], plan["compute"]
    table = Table("", "", title=f"{plan['name']}: the plan", title_style="bold", show_header=False)
    for name in ("total", "embedding", "attention", "mlp", "norm", "head", "active"):
        table.add_row(f"parameters, {name}" if name == "total" else f"  {name}", f"{parameters[name]:,}")
    table.add_section()
    table.add_row("tokens", f"{plan['tokens']:,}  ({plan['tokens_note']})")
    if plan["data"]["repetition"]:
        table.add_row("  repetition", plan["data"]["repetition"]["note"])
    table.add_row("FLOPs", f"{plan['flops']:.3g}  ({plan['flops_per_token']:.3g} a token)")
    if plan["memory"]:
        parts = ", ".join(f"{k} {v / 2**20:,.0f}" for k, v in plan["memory"].items())
        table.add_row("memory, MiB a device", f"{parts}{'' if plan['memory_fits'] else '  DOES NOT FIT'}")
    table.add_section()
    how = "measured" if plan["device"]["measured"] else "dense, by its data sheet"
    table.add_row(
        "device", f"{compute['devices']} x {compute['device']}, {compute['peak_flops'] / 1e9:,.0f} GFLOP/s ({how})"
    )
    if compute["mfu"]:
        table.add_row("MFU", f"{compute['mfu']:.1%} ({compute['mfu_source']})")
        table.add_row("device-hours", f"{compute['device_hours']:,.4g}")
        table.add_row("pretraining, estimated", long_duration(compute["wall_clock_seconds"]))
    if compute["cost_usd"] is not None:
        table.add_row("cost", f"{compute['cost_usd']:,.0f} USD")
    if compute["energy_kwh"]:
        table.add_row("energy", f"{compute['energy_kwh']:,.4g} kWh ({compute['energy_assumption']})")
    for n, reason in enumerate((plan.get("layout") or {}).get("reasons", [])):
        table.add_row("" if n else "layout", reason)
    for row in plan.get("more_devices", []):
        clock = long_duration(row["step_seconds"] * plan["training"]["steps"]) + ", limited by " if row["mfu"] else ""
        table.add_row(f"  on {row['devices']:,}", clock + row["limit"])
    if plan.get("does_not_fit"):
        table.add_row("does not fit", plan["does_not_fit"])
    for to, obstacles in (("Hugging Face", plan["export"]["obstacles"]), ("GGUF", plan["export"]["gguf_obstacles"])):
        if obstacles:
            table.add_row(f"export to {to}", "in the way: " + "; ".join(obstacles))
    console.print(table)
    if not plan["resolved"]:
        return
    autos = Table("key", "value", "reason (source)", title="every auto, resolved", title_style="bold")
    autos.columns[0].no_wrap = True  # a key cut short cannot be copied
    for note in plan["resolved"]:
        autos.add_row(note["key"], str(note["value"]), escape(f"{note['reason']} ({note['source']})"))
    console.print(autos)
