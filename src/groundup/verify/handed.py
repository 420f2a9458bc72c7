"""What a run hands to other tools, as a target: the exported folder or file beside the model that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.model.storage import load_model
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.verify.check import Face

COPIES = 3  # of the weights in fp32: ours, theirs, and what opening them takes


@dataclass(frozen=True)
class Export:
    """model, tokenizer: the run's. out: what was written, a folder (to = hf) or a file (to = gguf)."""

    model: Transformer
    tokenizer: Tokenizer
    out: Path
    to: str

    kind = "export"

    def face(self, name: Face) -> Any | None:
        return self if name == {"hf": "export", "gguf": "gguf"}[self.to] else None


def look_at(folder: Path, tokenizer: Tokenizer, out: Path, to: str, memory: int) -> dict[str, Any]:
    """The report of the checks on `out`, made from the model in `folder`. memory: bytes that this machine has."""
    from groundup.verify.run import report, run_checks  # it imports the checks, which import this

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if COPIES * 2 * size > memory:  # stored as bf16, it doubles
        reason = f"{COPIES} copies of the weights in fp32 do not fit into {memory / 2**30:.0f} GiB"
        return {"checks": [], "failed": 0, "skipped": [{"id": "all", "stage": "export", "reason": reason}]}
    return report(run_checks(Export(load_model(folder).eval(), tokenizer, out, to)))
