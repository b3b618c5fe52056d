"""A labelled data set in the layout of HH-RLHF trains proxies, and a gold; agreement is recorded."""

import json

import pytest
from hf_checkpoints import make_tokenizer, write_checkpoint, write_prompts

from overopt.cli.main import main
from overopt.engine.store import Store
from overopt.records.curves import load_records
from overopt.study.chain import build_graph
from overopt.study.presets import load_experiment
from overopt.worlds.prompts import load_instructions

GOOD, BAD = "Yes, gladly.", "No."


def write_hh(path, texts, *, wrong=0):
    """HH-RLHF's layout: the friendly answer is chosen, in the first ``wrong`` rows the other."""
    rows = []
    for i, text in enumerate(texts):
        front = f"\n\nHuman: {text}\n\nAssistant: "
        sides = [front + GOOD + f" {i}", front + BAD + f" {i}"]
        chosen, rejected = sides[::-1] if i < wrong else sides
        rows.append(json.dumps({"chosen": chosen, "rejected": rejected}))
    path.write_text("\n".join(rows))
    return path


@pytest.mark.slow
def test_people_train_proxies_and_a_gold(tmp_path):
    policy = write_checkpoint(
        tmp_path / "policy", "llama", tokenizer=make_tokenizer(chat=True), initializer_range=0.05
    )
    foreign = write_checkpoint(tmp_path / "foreign", "qwen2", tokenizer=make_tokenizer(2))
    texts = load_instructions()
    labelled = write_hh(tmp_path / "pairs.jsonl", texts[:120], wrong=30)
    of_gold = write_hh(tmp_path / "gold.jsonl", texts[120:220])
    prompts = write_prompts(tmp_path / "prompts.jsonl", 90)
    settings = [
        *("world.kind=hf", f"world.policy={policy}", f"world.prompts_file={prompts}"),
        *("world.max_response_tokens=24", f"labels.pairs_file={labelled}", "labels.n_pairs=90"),
        *("labels.n_validation_prompts=20", "gold.kind=learned", f"gold.source={policy}"),
        *(f"gold.pairs_file={of_gold}", "gold.epochs=6", "gold.lr=3e-3"),
        *(f"proxy.backbone={policy}", "proxy.epochs=4", "proxy.lr=3e-3", "bon.n_prompts=2"),
        *("bon.pool_size=8", "bon.ns=1,2,4,8", "method=none"),
    ]
    store, results = tmp_path / "store", tmp_path / "results"
    command = ["run", "smoke", *settings, "--store", str(store), "--results", str(results)]
    assert main([*command, "--quiet", "--workers", "1"]) == 0
    (end,) = build_graph(load_experiment("smoke", settings))
    labels = end.upstream["proxy"].upstream["labels"]
    folder = Store(store).open("labels", labels.fingerprint).path
    agreement = json.loads((folder / "agreement.json").read_text())
    # A quarter of the labels are wrong, and gold has learned from right ones.
    assert agreement["train"]["pairs"] == 90
    assert agreement["train"]["share"] == pytest.approx(0.75, abs=0.12)
    row = load_records(results).iloc[0]
    assert row["label_agreement"] == agreement["validation"]["share"]
    assert row["gold_labels"] == 0
    assert row["proxy_accuracy"] > 0.55  # on pairs of which a quarter are wrong
    # A proxy with another tokenizer reads the same pairs as text.
    again = [s for s in command if not s.startswith("proxy.backbone")]
    assert main([*again, "--quiet", "--workers", "1", f"proxy.backbone={foreign}"]) == 0
