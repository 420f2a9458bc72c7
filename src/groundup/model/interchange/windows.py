"""Which layers see a window alone, in a config.json, both ways."""

from __future__ import annotations

from typing import Any

from groundup.model.config import ModelConfig
from groundup.model.interchange.keys import Keys


class WindowEverywhere:
    """Mistral, Mixtral, Phi-3: the window, where there is one, is in every layer."""

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        if keys.get("sliding_window") is None:
            return {}
        return {"window": min(keys.whole("sliding_window"), so_far["context"])}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {"sliding_window": config.window or None}


class SwitchedWindow(WindowEverywhere):
    """Qwen3-MoE: the same, behind a switch of its own."""

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        if not keys.get("use_sliding_window"):
            return {}
        if keys.get("max_window_layers"):
            keys.found.append(
                "max_window_layers with use_sliding_window: transformers 4 and 5 compute different things"
            )
        return super().read(keys, so_far)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        layers = 0 if config.window else config.n_layers
        return super().write(config) | {"use_sliding_window": config.window > 0, "max_window_layers": layers}


class WindowByLayer:
    """`layer_types`, or for configs without it the rule of the architecture."""

    def read(self, keys: Keys, so_far: dict[str, Any]) -> dict[str, Any]:
        n = so_far["n_layers"]
        types = self.types(keys, n) if keys.get("layer_types") is None else keys.get("layer_types")
        odd = sorted({str(t) for t in types} - {"full_attention", "sliding_attention"})
        if odd:
            keys.found.append(f"layer_types: {', '.join(odd)} cannot be expressed")
        if len(types) != n:
            keys.found.append(f"layer_types has {len(types)} entries for {n} layers")
        pattern = "".join("L" if t == "sliding_attention" else "G" for t in types)
        if "L" not in pattern:
            return {}
        if not self.switched_on(keys) or keys.get("sliding_window") is None:
            keys.found.append("layer_types has sliding_attention, but no sliding_window is on")
            return {}
        return {"window": min(keys.whole("sliding_window"), so_far["context"]), "window_pattern": shortest(pattern)}

    def switched_on(self, keys: Keys) -> bool:
        return True

    def types(self, keys: Keys, n_layers: int) -> list[str]:
        raise NotImplementedError

    def write(self, config: ModelConfig) -> dict[str, Any]:
        local = [config.is_local(layer) for layer in range(config.n_layers)]
        return {"layer_types": ["sliding_attention" if here else "full_attention" for here in local]}


class QwenWindows(WindowByLayer):
    """Qwen2, Qwen3: the layers from max_window_layers up, if switched on at all."""

    def switched_on(self, keys: Keys) -> bool:
        return bool(keys.get("use_sliding_window"))

    def types(self, keys: Keys, n_layers: int) -> list[str]:
        on = self.switched_on(keys) and keys.get("sliding_window") is not None
        first = keys.get("max_window_layers") if on else n_layers
        return ["sliding_attention" if layer >= first else "full_attention" for layer in range(n_layers)]

    def write(self, config: ModelConfig) -> dict[str, Any]:
        local = [config.is_local(layer) for layer in range(config.n_layers)]
        return super().write(config) | {
            "use_sliding_window": any(local),
            "sliding_window": config.window if any(local) else None,
            "max_window_layers": local.index(True) if any(local) else config.n_layers,
        }


class GemmaWindows(WindowByLayer):
    """Gemma 2 alternates; Gemma 3 lets one layer in `sliding_window_pattern` see everything."""

    def __init__(self, every: int) -> None:
        self.every = every

    def types(self, keys: Keys, n_layers: int) -> list[str]:
        every = keys.whole("sliding_window_pattern") if "sliding_window_pattern" in keys.content else self.every
        return ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(n_layers)]

    def write(self, config: ModelConfig) -> dict[str, Any]:
        out = super().write(config)
        # TRAP: transformers builds the mask of windowed layers even when there are none
        out["sliding_window"] = config.window or config.context
        globals_at = [n for n, kind in enumerate(out["layer_types"]) if kind == "full_attention"]
        every = globals_at[0] + 1 if globals_at else config.n_layers + 1
        if globals_at == list(range(every - 1, config.n_layers, every)):
            out["sliding_window_pattern"] = every  # for versions before layer_types
        return out


def shortest(pattern: str) -> str:
    """The shortest pattern that repeats to this one."""
    lengths = range(1, len(pattern) + 1)
    return next(pattern[:n] for n in lengths if (pattern[:n] * len(pattern))[: len(pattern)] == pattern)
