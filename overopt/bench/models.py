"""Models in the layout of transformers, for the other side of a comparison."""

import json
from pathlib import Path

from safetensors.torch import save_file

from overopt.nets.checkpoints import load_lm
from overopt.nets.heads import ScalarHeadModel
from overopt.nets.layout import to_transformers_state
from overopt.nets.llama import Llama


def ladder(name: str) -> Llama:
    """A rung of the ladder, all of which are compact."""
    model = load_lm(f"ladder:{name}")
    assert isinstance(model, Llama)
    return model


def write_lm(model: Llama, folder: Path) -> None:
    """Write a causal language model, float32, that ``AutoModelForCausalLM`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.cfg.to_transformers()
    _write(folder, config, {k: t.cpu() for k, t in to_transformers_state(model).items()})


def write_reward_model(model: ScalarHeadModel, folder: Path, *, scale: float = 1.0) -> None:
    """Write a reward model, float32, that ``AutoModelForSequenceClassification`` reads.

    Its output is ``scale`` times the head's, without the bias: that layout has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.compact.cfg.to_transformers() | {
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "num_labels": 1,
    }
    state = {k: t.cpu() for k, t in to_transformers_state(model.compact).items()}
    _write(
        folder, config, state | {"score.weight": (model.head.weight.detach() * scale).cpu().clone()}
    )


def _write(folder: Path, config: dict, state: dict) -> None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
