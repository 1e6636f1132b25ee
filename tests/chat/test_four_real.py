"""Four real models at once: SmolLM2 dense and pruned by 10, 30 and 50 %; one is stopped, one fails, the rest go on."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.chat.client import ChatClient
from core.chat.protocol import Sampling
from core.experiment import Pruning
from core.models.saving import save
from core.pruning.prune import prune
from pages._parts.chat_view import footer
from tests.chat.test_client import eventually, held

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DENSE = "dense:builtin:smollm2-135m-instruct"
PROMPT = "Write a very long story about a gardener who prunes an old apple tree."
RATIOS = (0.1, 0.3, 0.5)


@pytest.fixture
def four(smollm2: Any, home: Path) -> list[tuple[str, str]]:
    """(key, title) of the dense model and of three that the engine pruned, where runs leave theirs."""
    models = [(DENSE, "dense")]
    for number, ratio in enumerate(RATIOS):
        model = copy.deepcopy(smollm2.model)
        cut = Pruning(method="l2", ratio=ratio, layers=(4, 25), parts=("mlp",))
        prune(model, cut, architecture=smollm2.source.architecture, windows=None, seed=0, device="cpu")
        key = f"20261123-000000-0a1b2c3d-000{number}"
        save(model, smollm2.tokenizer, home / "runs" / key / "model")
        models.append((key, f"{ratio:.0%}"))
    return models


@pytest.fixture
def client(home: Path) -> Iterator[ChatClient]:
    made = ChatClient(home, device="cpu")
    yield made
    made.close()


def test_four_stream_at_once_one_is_stopped_one_fails_and_the_rest_go_on(
    client: ChatClient, four: list[tuple[str, str]], home: Path
) -> None:
    talk = client.conversation(four, Sampling(max_tokens=40))
    talk.start(turn := talk.ask(PROMPT))
    sides = turn.answers
    assert eventually(lambda: all(side.tokens >= 3 for side in sides), 600)
    assert all(side.state == "streaming" and side.text for side in sides)
    talk.stop(turn, 1)
    assert sides[1].ended.wait(60)
    kept = sides[1].text
    assert all(side.live for side in (sides[0], sides[2], sides[3]))
    assert all(side.ended.wait(60) for side in sides)
    assert [side.state for side in sides] == ["done", "stopped", "done", "done"]
    assert [side.reason for side in sides] == ["length", "cancelled", "length", "length"]
    assert [side.tokens for side in sides if side.state == "done"] == [40] * 3
    assert sides[1].text == kept
    assert 3 <= sides[1].tokens < 40

    report = client.status().report
    assert report is not None
    weights = {model.key: model for model in report.models}
    assert set(weights) == {key for key, _ in four}
    sizes = [weights[key].memory_bytes for key, _ in four]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 4 * 134_515_008 > 1.2 * sizes[3]
    for side, size in zip(sides, sizes, strict=True):
        assert side.stats is not None
        keys_and_values = 2 * 30 * 3 * 64 * 4  # two, layers, KV heads, head width, bytes: of one token
        told = side.stats.prompt_tokens + side.stats.tokens
        assert 0 <= size + keys_and_values * told - side.stats.memory_bytes <= keys_and_values  # the last is not read
        assert f"{side.stats.memory_bytes / 1e6:.0f} MB of memory" in footer(side)
        assert "tokens/s" in footer(side)

    from safetensors.torch import load_file, save_file

    file = home / "runs" / four[3][0] / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    client.unload(four[3][0])
    assert eventually(lambda: four[3][0] not in held(client))
    talk.sampling = Sampling(max_tokens=8)
    talk.start(again := talk.ask("And then?"))
    assert all(side.ended.wait(60) for side in again.answers)
    assert [side.state for side in again.answers] == ["done", "done", "done", "failed"]
    assert "not finite" in again.answers[3].notice
    assert all(side.tokens == 8 and side.text for side in again.answers[:3])
