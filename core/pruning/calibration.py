"""What calibration text tells of a model: statistics of each linear layer's inputs, layer by layer.

Every calibrated method goes through the same walk: catch what enters the first layer once, then for each layer run it
with hooks, cut it, and run it again, so that the next layer is judged on what the already pruned ones hand it. One
layer at a time needs the device. On a CPU with bfloat16 arithmetic the passes of a float32 model run in bfloat16 (three
times as fast); statistics are always summed in float32 or wider.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.errors import NumericalError
from core.models.body import Body
from core.models.families import Matrix

# Roles that read the same tensor: one set of statistics serves them all.
READS = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "gate", "up": "gate", "down": "down"}
SHARING = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}

Gather = Literal["moments", "gram"]

# Tokens in one batch of the walk: small enough on a CPU that progress moves every half second or so.
_TOKENS_A_BATCH = {"cpu": 2048, "cuda": 8192}
_GRAM_BLOCK = 256  # columns; only blocks on and above the diagonal are multiplied


@dataclass
class InputStats:
    """Running statistics of one linear layer's inputs X (tokens, in).

    `square_sum` and, where moments are gathered, `mean` and `spread` (Σ (x − mean)²) are float64; `gram` = XᵀX is
    float32 with float32 sums.
    """

    square_sum: Tensor  # (in,) Σ_t x_tj²
    tokens: int = 0
    mean: Tensor | None = None  # (in,)
    spread: Tensor | None = None  # (in,)
    _gram: Tensor | None = None  # (in, in); of blocks below the diagonal only zeros until they are read
    _mirrored: bool = True

    @classmethod
    def empty(cls, width: int, device: torch.device | str, gather: Iterable[Gather] = ()) -> "InputStats":
        """No tokens of `width` features seen yet."""

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        found = cls(zeros(torch.float64, width))
        if "moments" in gather:
            found.mean, found.spread = zeros(torch.float64, width), zeros(torch.float64, width)
        if "gram" in gather:
            found._gram = zeros(torch.float32, width, width)
        return found

    def add(self, x: Tensor) -> None:
        """Take in x (…, in) of any float dtype."""
        rows = x.detach().reshape(-1, x.shape[-1])
        # squared in float32 first: norms over the rows of bfloat16 take ten times as long on a CPU
        for part in torch.split(rows, 512 if rows.device.type == "cpu" else 2**20):
            self.square_sum += part.float().square().sum(dim=0).double()
        if self.mean is not None and self.spread is not None:
            self._add_moments(rows, self.mean, self.spread)
        if self._gram is not None:
            add_gram(self._gram, rows)
            self._mirrored = False
        self.tokens += rows.shape[0]

    def _add_moments(self, rows: Tensor, mean: Tensor, spread: Tensor) -> None:
        """Chan's update: exact whatever the size of the batches."""
        n = rows.shape[0]
        batch_mean = rows.mean(dim=0, dtype=torch.float32)
        batch_spread = (rows.float() - batch_mean).square().sum(dim=0).double()
        delta = batch_mean.double() - mean
        total = self.tokens + n
        spread += batch_spread + delta.square() * (self.tokens * n / total)
        mean += delta * (n / total)

    @property
    def norm(self) -> Tensor:
        """‖X_j‖₂ (in,) in float32."""
        return self.square_sum.sqrt().float()

    @property
    def variance(self) -> Tensor:
        """Sample variance of each feature (in,) in float32; only for methods that gather moments."""
        if self.spread is None:
            raise ValueError("no moments were gathered: the method must be registered with needs moments")
        return (self.spread / max(self.tokens - 1, 1)).float()

    @property
    def gram(self) -> Tensor:
        """H = XᵀX (in, in) in float32, symmetric; only for methods that gather it."""
        if self._gram is None:
            raise ValueError("no Gram matrix was gathered: the method must be registered with needs gram")
        if not self._mirrored:
            self._gram = self._gram.triu() + self._gram.triu(1).T
            self._mirrored = True
        return self._gram


def add_gram(gram: Tensor, rows: Tensor, others: Tensor | None = None) -> None:
    """gram += rowsᵀ·others, summed in float32. Without `others`: rowsᵀ·rows, blocks below the diagonal left out.

    rows, others: (tokens, in) of any float dtype; products of 16-bit values are exact in float32.
    """
    if rows.is_cuda and rows.dtype in (torch.float16, torch.bfloat16):
        right = rows if others is None else others.to(rows.dtype)
        gram += torch.mm(rows.T, right, out_dtype=torch.float32)
        return
    rows = rows.float()
    if others is not None:
        gram.addmm_(rows.T, others.float())
        return
    width = rows.shape[1]
    for start in range(0, width, _GRAM_BLOCK):
        stop = min(start + _GRAM_BLOCK, width)
        gram[start:stop, start:] += rows[:, start:stop].T @ rows[:, start:]


@dataclass
class Stream:
    """Hidden states (windows, tokens, d) between two layers, batch by batch, kept on `store`."""

    batches: list[Tensor]
    device: torch.device
    store: torch.device

    def __len__(self) -> int:
        return len(self.batches)

    def get(self, i: int) -> Tensor:
        """Batch i on the device."""
        return self.batches[i].to(self.device, non_blocking=True)

    def put(self, i: int, hidden: Tensor) -> None:
        """Keep `hidden` as batch i."""
        self.batches[i] = kept_on(self.store, hidden)

    def fork(self) -> "Stream":
        """A second stream that starts from the same states and goes its own way."""
        return Stream(list(self.batches), self.device, self.store)


def kept_on(store: torch.device, hidden: Tensor) -> Tensor:
    """`hidden` on `store`; page-locked where a GPU will ask for it again."""
    if hidden.device.type == store.type:
        return hidden
    if hidden.is_cuda:
        held = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True)
        return held.copy_(hidden, non_blocking=True)
    return hidden.to(store)


class _Caught(Exception):
    """Ends a forward pass early; raised and caught in this module only."""


def pass_dtype(model_dtype: torch.dtype, device: torch.device | str) -> torch.dtype:
    """The dtype of calibration passes: bfloat16 for float32 models on CPUs that have it, else the model's own."""
    has_bfloat16 = torch.device(device).type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if model_dtype == torch.float32 and has_bfloat16 and _fast_bfloat16() else model_dtype


def _fast_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); elsewhere it is slower than float32."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test() for test in tests if test is not None)


def windows_a_batch(batch_size: int | str, length: int, device: torch.device) -> int:
    """Windows in one batch of the walk; `auto` fits the tokens to the device."""
    if batch_size != "auto":
        return int(batch_size)
    return max(1, _TOKENS_A_BATCH.get(device.type, 2048) // length)


@dataclass
class _Arguments:
    """What a decoder layer is called with besides its hidden states, for one shape of batch."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]


@dataclass
class Walk:
    """Passes over calibration windows (n, length), one decoder layer at a time.

    dtype: of the passes. store: where hidden states wait between layers. tick: called before each batch of each layer,
    and each piece of logits (core/pruning/head.py); raises where the work is to end.
    """

    body: Body
    windows: Tensor
    batch: int
    dtype: torch.dtype
    store: torch.device
    tick: Callable[[], None] = lambda: None
    _arguments: dict[tuple[torch.Size, int], _Arguments] = field(default_factory=dict)

    @classmethod
    def over(
        cls,
        body: Body,
        windows: Tensor,
        batch_size: int | str = "auto",
        *,
        store: torch.device | str | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> "Walk":
        """A walk in the dtype and with the batches that suit the body's device."""
        batch = windows_a_batch(batch_size, windows.shape[1], body.device)
        dtype = pass_dtype(body.model.dtype, body.device)
        return cls(body, windows, batch, dtype, torch.device(store) if store else body.device, tick)

    @torch.no_grad()
    def enter(self, progress: Callable[[float], None] = lambda _done: None, windows: Tensor | None = None) -> Stream:
        """What enters the first layer. progress(done windows) after each batch."""
        batches: list[Tensor] = []
        done = 0
        with self.body.outside():
            for tokens in torch.split(self.windows if windows is None else windows, self.batch):
                self.tick()
                hidden = self._embed(tokens.to(self.body.device)).to(self.dtype)
                batches.append(kept_on(self.store, hidden))
                done += tokens.shape[0]
                progress(done)
        return Stream(batches, self.body.device, self.store)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Run the backbone with every layer stepped over; notes what each would have been called with."""
        entering: list[Tensor] = []
        layers = self.body.layers()

        def step_over(index: int) -> Callable[..., Any]:
            def forward(*positional: Any, **named: Any) -> Any:
                hidden = positional[0] if positional else named.pop("hidden_states")
                if index == 0:
                    entering.append(hidden)
                self._arguments[hidden.shape, index] = _Arguments(
                    self._cast(positional[1:]), {name: self._cast(value) for name, value in named.items()}
                )
                if index == len(layers) - 1:
                    raise _Caught
                return hidden

            return forward

        with _forwards(layers, step_over), suppress(_Caught):
            self.body.family.backbone(self.body.model)(input_ids=tokens, use_cache=False)
        return entering[0]

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self.dtype)
        if isinstance(value, tuple):
            return tuple(self._cast(each) for each in value)
        return value

    def at_work(self, layer: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        """The layer itself, or a copy of it in the dtype of the passes. Call again after a cut."""
        dtype = dtype or self.dtype
        own = next(layer.parameters()).dtype
        return layer if own == dtype else copy.deepcopy(layer).to(dtype)

    def run(self, index: int, working: nn.Module, hidden: Tensor) -> Tensor:
        """Output of decoder layer `index` for one batch; `working` from `at_work`."""
        self.tick()
        arguments = self._arguments[hidden.shape, index]
        output = working(hidden, *arguments.positional, **arguments.named)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @torch.no_grad()
    def advance(
        self, index: int, layer: nn.Module, stream: Stream, progress: Callable[[int], None] = lambda _done: None
    ) -> None:
        """Run the layer and put its outputs in place of its inputs, batch by batch: the next layer's inputs."""
        working = self.at_work(layer)
        for i in range(len(stream)):
            stream.put(i, self.run(index, working, stream.get(i)))
            progress(i + 1)

    @torch.no_grad()
    def statistics(
        self,
        index: int,
        layer: nn.Module,
        roles: Iterable[str],
        stream: Stream,
        gather: Iterable[Gather] = (),
        progress: Callable[[int], None] = lambda _done: None,
        *,
        advance: bool = False,
    ) -> dict[str, InputStats]:
        """Run the layer on all batches and gather statistics of the inputs of `roles`.

        Roles that read the same tensor share one object. advance: also put the outputs in place of the inputs.
        progress(done batches). NumericalError on nan or inf.
        """
        working = self.at_work(layer)
        matrices = self.body.family.matrices(working)
        sources: dict[str, Matrix] = {}
        for role in roles:
            sources.setdefault(READS[role], matrices[role])
        stats = {
            source: InputStats.empty(matrix.weight.shape[1], self.body.device, gather)
            for source, matrix in sources.items()
        }
        last = max(sources, key=list(SHARING).index)  # of those the last to run

        def watcher(source: str) -> Callable[[Tensor], None]:
            def add(x: Tensor) -> None:
                stats[source].add(x)
                if source == last and not advance:
                    raise _Caught  # nothing further is asked of this pass

            return add

        with self.watching({source: watcher(source) for source in sources}, matrices):
            for i in range(len(stream)):
                with suppress(_Caught):
                    stream.put(i, self.run(index, working, stream.get(i)))
                progress(i + 1)
        for source, found in stats.items():
            if not bool(torch.isfinite(found.square_sum).all()):
                raise NumericalError(
                    f"the inputs of {source} in layer {index} hold nan or inf on the calibration text.",
                    "Load the model as float32 or bfloat16.",
                )
        return {role: stats[READS[role]] for role in roles}

    @contextmanager
    def watching(
        self, watchers: Mapping[str, Callable[[Tensor], None]], matrices: Mapping[str, Matrix]
    ) -> Iterator[None]:
        """While open, each watcher is given the inputs (…, in) of the matrix of its role."""

        def hook(watcher: Callable[[Tensor], None]) -> Callable[..., None]:
            return lambda _module, arguments: watcher(arguments[0])

        handles = [matrices[role].linear.register_forward_pre_hook(hook(watcher)) for role, watcher in watchers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _forwards(layers: list[nn.Module], replacement: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """While open, layers[i] runs replacement(i) in place of its own forward."""
    for index, layer in enumerate(layers):
        layer.forward = replacement(index)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again
