"""Tiny random checkpoints of real architectures, with a tokenizer trained on the spot."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from overopt.base.seeding import scoped_torch_seed
from overopt.worlds.prompts import load_instructions

VOCAB, WIDTH, LAYERS, CONTEXT = 320, 32, 2, 160
CHAT = (
    "{% for m in messages %}<u>{{ m['role'] }}: {{ m['content'] }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<u>assistant: {% endif %}"
)
SHAPES = {
    "llama": dict(
        intermediate_size=48, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False
    ),
    "mistral": dict(intermediate_size=48, num_key_value_heads=2, sliding_window=None, head_dim=12),
    "gpt2": dict(attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3),
    "gpt_neox": dict(intermediate_size=48, rotary_pct=0.5),
    "qwen2": dict(intermediate_size=48, num_key_value_heads=2),
    "roberta": dict(intermediate_size=48, type_vocab_size=1),
}


def make_tokenizer(seed: int = 0, *, chat: bool = False, **special):
    """A byte-level BPE tokenizer; other seeds number their pieces otherwise."""
    texts = load_instructions()[seed * 40 :]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 8,
        special_tokens=["<p>", "<e>", "<u>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    wanted = {"eos_token": "<e>", "pad_token": "<p>"} | special
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, **{k: v for k, v in wanted.items() if v is not None}
    )
    if chat:
        made.chat_template = CHAT
    return made


def write_checkpoint(
    folder: Path, kind: str, *, seed: int = 0, tokenizer=None, labels: int = 0, **shape
) -> Path:
    """A random causal LM (``labels`` 0) or sequence classifier in the transformers layout."""
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    base = dict(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    config = AutoConfig.for_model(kind, **(base | SHAPES[kind] | shape))
    if labels:
        config.num_labels = labels
    auto = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    with scoped_torch_seed(seed):
        model = auto.from_config(config)
        for p in model.parameters():  # biases and norms that differ from 0 and 1
            if p.ndim == 1:
                p.data += 0.2 * torch.randn(p.shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(path: Path, n: int) -> Path:
    """The first ``n`` shipped instructions as a prompts file."""
    path.write_text("\n".join(json.dumps(t) for t in load_instructions()[:n]))
    return path
