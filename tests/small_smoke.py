"""The smoke preset over 150 prompts: the calibration, which grows with the world, takes no time."""

import json
from pathlib import Path

from overopt.worlds.prompts import load_openings

N_PROMPTS = 150


def prompts_file(path: Path) -> str:
    """Write the prompts file of a small world; returns the override that selects it."""
    lines = [json.dumps(text) for text in load_openings()[:N_PROMPTS]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"world.prompts_file={path}"
