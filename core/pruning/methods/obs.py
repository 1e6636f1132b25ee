"""Optimal Brain Surgeon on heads and channels: what is lost if all that stays is refitted after each removal."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from core.pruning.registry import Need, Options, register

if TYPE_CHECKING:
    import torch

    from core.pruning.units import Structure

DAMPING = 0.01  # of H, as a share of its mean diagonal
ROUNDING = 1e-9  # of what is left of H, likewise; raised where that could not be factorised
SHRINKAGE = 1e-3  # of G towards the identity, likewise: directions in which no gradient was seen still count
RESTART = 4  # H⁻¹ is computed anew, and not downdated, when one in so many of the units left has gone


class ObsOptions(Options):
    """Options of `obs`."""

    metric: Literal["output", "identity"] = Field(
        "output",
        description="output: errors of a matrix weighed by the loss's gradients at its output, one backward pass; "
        "identity: all errors of the output count alike, forward pass only.",
    )
    round: int = Field(
        16, ge=1, le=4096, description="MLP channels removed before the costs of the others are computed anew."
    )


def _needs(options: ObsOptions) -> frozenset[Need]:
    return frozenset({"curvature"}) if options.metric == "output" else frozenset({"inputs", "gram"})


@register(
    name="obs",
    title="Optimal Brain Surgeon",
    summary="Removes, round by round, the heads and MLP channels that all the others can best make up for.",
    paper="Kurtić et al. 2023, ZipLM: Inference-Aware Structured Pruning of Language Models",
    url="https://arxiv.org/abs/2302.04089",
    kind="width",
    needs=_needs,
    options=ObsOptions,
    standardised=True,
)
def obs(
    structure: "Structure", options: ObsOptions, warn: Callable[[str], None], tick: Callable[[], None]
) -> "torch.Tensor":
    """S_u = max of c over u and what went before u, c_u = ½·tr(R·W_u·[(H⁻¹)_uu]⁻¹·(R·W_u)ᵀ) / parameters of u

    W: weight (out, in) of the matrix that reads the unit (o, down); W_u its columns of unit u. After each removal the
       kept columns are refitted, W ← W − W_u·[(H⁻¹)_uu]⁻¹·(H⁻¹)_u, and H⁻¹ is that of the kept inputs alone.
    H: E[x·xᵀ] (in, in) of the matrix's inputs, 1 % of its mean diagonal added to the diagonal.
    R: RᵀR = G = E[g·gᵀ] (out, out), g the loss's gradient at the output, next tokens drawn from the model itself; with
       metric identity R = I, and costs are divided by ½·tr(W·H·Wᵀ), what losing all inputs would cost.
    S: score (units,), higher stays; the order of removal, cheapest unit first. An attention unit goes at a time, and
       `round` MLP channels. Comparable between layers: nats, or shares of the output, per parameter.
    Kurtić et al. 2023, section 3.1, https://arxiv.org/abs/2302.04089
    """
    import torch

    from core.pruning.linalg import damped_cholesky, exact_products

    with exact_products():
        weight, scale = structure.reader.weight.double(), 1.0
        if options.metric == "output":
            H = structure.curvature.inputs.double()
            W = damped_cholesky(structure.curvature.outputs.double(), SHRINKAGE, warn).T @ weight
        else:
            H, W = structure.inputs.gram.double() / structure.inputs.tokens, weight
            scale = float((W @ H).mul_(W).sum() / 2)
        at_once = options.round if structure.part == "mlp" else 1
        order, costs = _removal(W, H, structure.units, at_once, warn, tick)
        size = sum(each.matrix.weight.numel() for each in structure.members) / structure.units
        costs = costs.cummax(dim=0).values / max(scale * size, 1e-300)
        step = float(costs[-1]) * 1e-12 + 1e-300  # equal costs keep their order, too
        scores = torch.empty_like(costs)
        scores[order] = costs + step * torch.arange(1, len(costs) + 1, dtype=costs.dtype, device=costs.device)
        return scores


def _removal(
    W: "torch.Tensor",
    H: "torch.Tensor",
    units: int,
    at_once: int,
    warn: Callable[[str], None],
    tick: Callable[[], None],
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Order in which the units go (units,), and what each costs; the last one is given the cost of the one before.

    W: (out, in), H: (in, in), float64. A unit owns in / units consecutive columns. tick is called after each round.
    """
    import torch

    from core.pruning.linalg import damped_cholesky

    size = W.shape[1] // units
    H = H + DAMPING * H.diagonal().mean().clamp_min(1e-30) * torch.eye(len(H), dtype=H.dtype, device=H.device)
    all_H = W @ H
    left = torch.arange(units, device=W.device)
    within = torch.arange(size, device=W.device)
    order: list[torch.Tensor] = []
    costs: list[torch.Tensor] = []
    while len(left) > 1:
        columns = (left[:, None] * size + within).flatten()
        inverse = torch.cholesky_inverse(damped_cholesky(H[columns][:, columns], ROUNDING, warn))
        fitted = (all_H[:, columns] @ inverse).float()  # what the columns left are after a refit
        run = _Downdated(fitted, inverse.float(), size)
        goal = max(1, len(left) // RESTART)
        while goal > 0:
            gone, cost = run.remove(min(at_once, goal))
            order.append(left[gone])
            costs.append(cost)
            goal -= len(gone)
            tick()
        left = left[run.alive]
    order.append(left)
    last = costs[-1][-1:] if costs else torch.zeros(1, dtype=torch.float64, device=W.device)
    return torch.cat(order), torch.cat([*costs, last])


class _Downdated:
    """H⁻¹ and the refitted W while units go, (in, in) and (out, in), both float32."""

    def __init__(self, fitted: "torch.Tensor", inverse: "torch.Tensor", size: int) -> None:
        import torch

        self.fitted, self.inverse, self.size = fitted, inverse, size
        self.alive = torch.ones(fitted.shape[1] // size, dtype=torch.bool, device=fitted.device)

    def _prices(self) -> "torch.Tensor":
        """What each unit would cost alone (units,), inf where it is gone."""
        import torch

        if self.size == 1:
            price = self.fitted.square().sum(dim=0) / self.inverse.diagonal().clamp_min(1e-30)
        else:
            n, size = len(self.alive), self.size
            blocks = self.inverse.view(n, size, n, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            eye = torch.eye(size, device=blocks.device)
            blocks = torch.where(self.alive[:, None, None], blocks, eye).double()
            fan = self.fitted.view(-1, n, size).transpose(0, 1).double()  # (units, out, size)
            price = (torch.linalg.solve(blocks, fan, left=False) * fan).sum(dim=(1, 2))
        return torch.where(self.alive, price.double() / 2, torch.inf)

    def remove(self, count: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """Take the `count` cheapest units: which, cheapest first, and an equal share of their common cost for each."""
        import torch

        gone = self._prices().topk(count, largest=False).indices
        columns = (gone[:, None] * self.size + torch.arange(self.size, device=gone.device)).flatten()
        rows = self.inverse[columns]
        share = torch.linalg.inv(rows[:, columns].double())
        lost = self.fitted[:, columns]
        cost = ((lost.double() @ share) * lost).sum() / 2
        takes = share.float() @ rows
        self.fitted.addmm_(lost, takes, alpha=-1)
        self.inverse.addmm_(rows.T, takes, alpha=-1)
        self.fitted[:, columns] = 0
        self.alive[gone] = False
        return gone, cost.clamp_min(0).expand(count) / count
