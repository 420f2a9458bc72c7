"""A report as JUnit XML, which every CI system shows."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from groundup.record.files import atomic_write
from groundup.verify import describe


def junit(found: dict[str, Any]) -> bytes:
    """One suite a stage, one case a check. found: a report."""
    root = ET.Element("testsuites", name="groundup verify")
    stages = dict.fromkeys(c["stage"] for c in [*found["checks"], *found["skipped"]])
    for stage in stages:
        checks = [c for c in found["checks"] if c["stage"] == stage]
        skipped = [c for c in found["skipped"] if c["stage"] == stage]
        numbers = {
            "name": stage,
            "tests": str(len(checks) + len(skipped)),
            "failures": str(sum(not c["passed"] for c in checks)),
            "skipped": str(len(skipped)),
            "time": f"{sum(c['seconds'] for c in checks):.3f}",
        }
        suite = ET.SubElement(root, "testsuite", numbers)
        for one in checks:
            case = ET.SubElement(
                suite, "testcase", classname=f"groundup.{stage}", name=one["id"], time=f"{one['seconds']:.3f}"
            )
            if not one["passed"]:
                ET.SubElement(case, "failure", message=_plain(one["bug"])).text = _plain(describe(one))
        for one in skipped:
            case = ET.SubElement(suite, "testcase", classname=f"groundup.{stage}", name=one["id"], time="0")
            ET.SubElement(case, "skipped", message=_plain(one["reason"]))
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _plain(text: str) -> str:
    """Without what XML cannot hold: notes quote texts with control characters."""
    return "".join(c if _holds(c) else "\ufffd" for c in text)


def _holds(c: str) -> bool:
    return c in "\t\n" or (c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff")


def write_junit(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, junit(found))
