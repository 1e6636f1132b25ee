"""Kernels that skip the zeros of 2:4 sparsity, so that a run can measure what such a mask gains on its own GPU.

PyTorch's semi-structured tensors need CUDA of compute capability 8.0 or more and 16-bit weights.
"""

import copy
import warnings
from typing import Any

from core.errors import NotAvailableError

LEAST_CAPABILITY = (8, 0)


def with_sparse_kernels(model: Any) -> tuple[Any, int]:
    """A copy of a 2:4 model whose sparse linear layers run on 2:4 kernels, and how many of its layers do.

    Layers that are not 2:4, the LM head among them, stay as they are. NotAvailableError where the GPU, the dtype or
    the shapes do not allow any.
    """
    import torch
    from torch.sparse import to_sparse_semi_structured

    if not model.device.type.startswith("cuda") or torch.cuda.get_device_capability(model.device) < LEAST_CAPABILITY:
        raise NotAvailableError("2:4 kernels need an NVIDIA GPU of compute capability 8.0 or more.")
    if model.dtype not in (torch.float16, torch.bfloat16):
        raise NotAvailableError(f"2:4 kernels need float16 or bfloat16 weights, not {model.dtype}.")
    fast = copy.deepcopy(model)
    count, reason = 0, "no linear layer is 2:4"
    for module in fast.modules():
        if isinstance(module, torch.nn.Linear) and is_two_of_four(module.weight):
            try:
                with warnings.catch_warnings():  # that the interface may change
                    warnings.simplefilter("ignore", UserWarning)
                    sparse = to_sparse_semi_structured(module.weight.detach())
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                continue
            module.weight = torch.nn.Parameter(sparse, requires_grad=False)
            count += 1
    if not count:
        raise NotAvailableError(f"2:4 kernels could not be used: {reason}.")
    return fast, count


def is_two_of_four(weight: Any) -> bool:
    """Whether at least two of every four consecutive inputs of weight (out, in) are zero."""
    if weight.dim() != 2 or weight.shape[1] % 4:
        return False
    return bool(((weight == 0).view(weight.shape[0], -1, 4).sum(dim=2) >= 2).all())
