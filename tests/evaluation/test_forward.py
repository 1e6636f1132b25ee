"""Watched passes and chunked logits."""

from typing import Any

import pytest
import torch

from core.errors import Cancelled
from core.evaluation import forward
from core.evaluation.forward import Meter, NextTokenLogits, batch_rows, decoder_layers, watched


def gathered(logits: NextTokenLogits, ids: torch.Tensor, rows: int) -> torch.Tensor:
    result = torch.full((ids.numel(), logits.vocabulary), torch.nan)
    with torch.inference_mode():
        for positions, chunk in logits.chunks(ids, rows):
            assert len(chunk) <= max(rows, 1)
            assert result[positions].isnan().all()  # no position twice
            result[positions] = chunk
    return result


@pytest.mark.parametrize("rows", [1, 3, 7, 10, 20, 25, 1000])
@pytest.mark.parametrize("tied", [True, False])
def test_chunks_hold_each_position_once_and_give_the_models_logits(tiny_llama: Any, rows: int, tied: bool) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    ids = torch.arange(50).view(5, 10)
    logits = NextTokenLogits(model)
    assert logits.plain_head
    with torch.inference_mode():
        torch.testing.assert_close(gathered(logits, ids, rows), model(input_ids=ids).logits.flatten(0, 1))


@pytest.mark.parametrize("rows", [4, 10, 25])
def test_a_soft_cap_that_the_config_states_is_put_on_the_heads_logits(tiny_model: Any, rows: int) -> None:
    model = tiny_model("gemma2", final_logit_softcapping=0.5)
    logits = NextTokenLogits(model)
    assert logits.plain_head
    ids = torch.arange(30).view(3, 10)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.flatten(0, 1)
    torch.testing.assert_close(gathered(logits, ids, rows), expected)
    assert 0.1 < expected.abs().max() <= 0.5


@pytest.mark.parametrize("rows", [4, 10, 25])
def test_a_family_that_scales_its_logits_is_found_out_and_gets_its_own_forward(rows: int) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        logits_scaling=8.0,
    )
    model = GraniteForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 1)
    logits = NextTokenLogits(model)
    assert not logits.plain_head
    ids = torch.arange(30).view(3, 10)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.flatten(0, 1)
    torch.testing.assert_close(gathered(logits, ids, rows), expected)


def test_two_models_are_cut_alike_whatever_way_their_logits_are_made(tiny_llama: Any) -> None:
    first, second = NextTokenLogits(tiny_llama()), NextTokenLogits(tiny_llama())
    second.plain_head = False
    ids = torch.arange(60).view(3, 20)
    with torch.inference_mode():
        for rows in (7, 20, 45):
            cuts = [[positions for positions, _ in logits.chunks(ids, rows)] for logits in (first, second)]
            assert cuts[0] == cuts[1]


def test_chunk_count_is_the_number_of_chunks(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = NextTokenLogits(tiny_llama())
    monkeypatch.setitem(forward.LOGIT_BYTES, "cpu", 4 * 96 * 16)
    ids = torch.zeros(3, 20, dtype=torch.int64)
    with torch.inference_mode():
        assert logits.chunk_count(3, 20) == len(list(logits.chunks(ids))) == 6


def test_decoder_layers_are_found_without_knowing_the_family(tiny_llama: Any) -> None:
    model = tiny_llama(num_hidden_layers=3)
    assert decoder_layers(model) == list(model.model.layers)
    assert decoder_layers(torch.nn.Linear(2, 2)) == []


def test_progress_moves_inside_a_pass_and_never_back(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_INTERVAL", 0.0)
    model, said = tiny_llama(num_hidden_layers=4), []
    meter = Meter(lambda *call: said.append(call), 6, "windows")
    with watched(model, meter) as layers:
        for _ in range(2):
            meter.begin(3, layers + 1)
            model(input_ids=torch.zeros(1, 4, dtype=torch.int64))
            meter.end()
    done = [call[0] for call in said]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == 6
    assert {0.6, 1.2, 1.8, 2.4, 3.0} <= {round(value, 6) for value in done}
    assert {call[1:] for call in said} == {(6, "windows")}
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_a_cancelled_run_leaves_a_pass_between_two_layers(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_INTERVAL", 0.0)
    model = tiny_llama(num_hidden_layers=4)

    def stop(done: float, _total: float, _unit: str) -> None:
        if done > 0:
            raise Cancelled

    seen: list[int] = []
    model.model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    meter = Meter(stop, 1, "windows")
    with watched(model, meter) as layers:
        meter.begin(1, layers)
        with pytest.raises(Cancelled):
            model(input_ids=torch.zeros(1, 4, dtype=torch.int64))
    assert seen == []
    assert not model.model.layers[0]._forward_hooks


def test_auto_batches_hold_about_as_many_tokens_whatever_the_length() -> None:
    assert batch_rows(512, "cpu", "auto") == 1
    assert batch_rows(100, "cpu", "auto") == 5
    assert batch_rows(10_000, "cpu", "auto") == 1
    assert batch_rows(512, "cuda:1", "auto") > 8
    assert batch_rows(512, "cpu", 7) == 7
