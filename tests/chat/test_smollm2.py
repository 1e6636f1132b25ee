"""The real model and a really pruned one, side by side: each says what transformers' own generate() says with it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from core.chat.client import ChatClient
from core.chat.lens import measure
from core.chat.protocol import Finished, Sampling, conversation
from core.experiment import Pruning
from core.models.saving import save
from core.pruning.prune import prune

PROMPT = "What is the capital of France?"
DENSE = "dense:builtin:smollm2-135m-instruct"
RUN = "20261123-000000-0a1b2c3d-beef"


def expected(model: Any, tokenizer: Any, tokens: int) -> str:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    batch = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        output = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(output[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.fixture
def pruned(smollm2: Any, shared_home: Path) -> Any:
    """SmolLM2 with 10 % of the MLP channels of layers 4–25 cut, saved where a run would have saved it."""
    model = copy.deepcopy(smollm2.model)
    cut = Pruning(method="l2", ratio=0.1, layers=(4, 25), parts=("mlp",))
    prune(model, cut, architecture=smollm2.source.architecture, windows=None, seed=0, device="cpu")
    save(model, smollm2.tokenizer, shared_home / "runs" / RUN / "model")
    return model


def test_dense_and_pruned_say_side_by_side_what_generate_says(client: ChatClient, smollm2: Any, pruned: Any) -> None:
    wanted = [expected(model, smollm2.tokenizer, 16) for model in (smollm2.model, pruned)]
    assert wanted[0] == "The capital of France is Paris."
    streams = [client.generate(key, [("user", PROMPT)], Sampling(max_tokens=16)) for key in (DENSE, RUN)]
    said = ["".join(e.text for e in stream if e.kind == "piece") for stream in streams]
    assert said == wanted
    report = client.status().report
    assert report is not None
    dense, cut = (next(m for m in report.models if m.key == key) for key in (DENSE, RUN))
    assert dense.params == 134_515_008
    assert cut.params == sum(p.numel() for p in pruned.parameters()) < dense.params
    turns = conversation([("user", PROMPT)])
    scored = []
    for key in (DENSE, RUN):
        end = list(client.generate(key, turns, Sampling(max_tokens=8)))[-1]
        assert isinstance(end, Finished)
        scored.append(measure(client, client.source(key), client.source(DENSE), turns, end.ids))
    own, other = scored
    assert "".join(token.text for token in own).startswith(wanted[0])
    assert [token.divergence for token in own] == [0.0] * len(own)
    said_own = [token for token in own if token.text]
    assert all(token.guesses[0].text == token.text for token in said_own)  # greedy: it said its likeliest token
    assert max(token.divergence for token in other) > 0.01
    for key in (DENSE, RUN):
        client.unload(key)
