"""2:4 kernels: what counts as 2:4, when they are refused, and, on a GPU, that they compute the same."""

from typing import Any

import pytest
import torch

from core.errors import NotAvailableError
from core.evaluation.sparse_kernels import is_two_of_four, with_sparse_kernels


def halve(weight: torch.Tensor) -> None:
    """Zero the first two of every four."""
    weight.data.view(weight.shape[0], -1, 4)[:, :, :2] = 0


def test_two_zeros_in_every_four_inputs_and_not_half_of_all() -> None:
    weight = torch.ones(4, 8)
    assert not is_two_of_four(weight)
    halve(weight)
    assert is_two_of_four(weight)
    weight[:, :4], weight[:, 4:] = 0, 1
    assert not is_two_of_four(weight)
    assert not is_two_of_four(torch.zeros(4, 6))


def test_a_cpu_is_refused_in_words(tiny_llama: Any) -> None:
    with pytest.raises(NotAvailableError, match="compute capability"):
        with_sparse_kernels(tiny_llama())


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_give_the_same_logits(tiny_llama: Any) -> None:
    model = tiny_llama(
        hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=4, head_dim=64
    )
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                halve(module.weight)
    model = model.half().cuda()
    fast, count = with_sparse_kernels(model)
    assert count == 7 * len(model.model.layers)
    ids = torch.arange(64, device="cuda")[None] % 96
    with torch.inference_mode():
        torch.testing.assert_close(fast(ids).logits, model(ids).logits, rtol=2e-2, atol=2e-2)
