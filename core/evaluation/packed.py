"""Log-likelihoods of many continuations, each token of a shared beginning computed once.

Sequences of tokens are sorted and laid into rows as a forest: what a sequence shares with the one before it in its row
is not laid again. The tokens of a tree stand in depth-first order, and one attends to another if that is above it on
its own branch; positions are depths in the tree. So a row gives for every branch what the branch alone would give, and
holds as many questions as fit. The LM head runs at the scored positions only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.evaluation.forward import LOGIT_BYTES, Meter, decoder_layers, watched
from core.progress import silent

if TYPE_CHECKING:
    import torch

ROW = {"cpu": 256, "cuda": 512}  # tokens in a row, unless a sequence is longer: attention costs more in longer rows
ROWS_A_PASS = {"cpu": 2, "cuda": 128}
MARGIN = 0.5  # of free memory that activations may take
TOLERANCE = 1e-3  # nats, of what packing may change in a float32 model
_PROBE = ((5, 6, 7, 8, 9, 10), (5, 6, 7, 11), (5, 6, 12, 13, 14), (20, 21, 22))


@dataclass(frozen=True)
class Scored:
    """A sequence whose last `count` tokens are scored; `tokens` holds all of it, at least one before those."""

    tokens: tuple[int, ...]
    count: int


@dataclass
class Row:
    """A forest of tokens in depth-first order. `last[i]`: where the branches below token i end, exclusive."""

    tokens: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)
    """Of each sequence laid here: places of its tokens, in order."""
    _open: list[int] = field(default_factory=list)

    def room_needed(self, inputs: Sequence[int]) -> int:
        """Tokens that a sequence would add."""
        return len(inputs) - self._shared(inputs)

    def _shared(self, inputs: Sequence[int]) -> int:
        count = 0
        for place, token in zip(self._open, inputs, strict=False):
            if self.tokens[place] != token:
                break
            count += 1
        return count

    def lay(self, number: int, inputs: Sequence[int]) -> None:
        """Add sequence `number`, below what it shares with the one before."""
        shared = self._shared(inputs)
        self._close(shared)
        for depth in range(shared, len(inputs)):
            self._open.append(len(self.tokens))
            self.tokens.append(inputs[depth])
            self.depth.append(depth)
            self.last.append(-1)
        self.paths[number] = list(self._open)

    def _close(self, depth: int) -> None:
        for place in self._open[depth:]:
            self.last[place] = len(self.tokens)
        del self._open[depth:]

    def finish(self) -> "Row":
        """End all branches."""
        self._close(0)
        return self


def lay_out(sequences: Sequence[Scored], room: int) -> list[Row]:
    """Rows of at most `room` tokens (or of one longer sequence) that hold the inputs of all sequences.

    The input of a sequence is all but its last token. Equal inputs share everything.
    """
    order = sorted(range(len(sequences)), key=lambda number: sequences[number].tokens[:-1])
    rows: list[Row] = []
    row = Row()
    for number in order:
        inputs = sequences[number].tokens[:-1]
        if row.tokens and len(row.tokens) + row.room_needed(inputs) > room:
            rows.append(row.finish())
            row = Row()
        row.lay(number, inputs)
    if row.tokens:
        rows.append(row.finish())
    return sorted(rows, key=lambda each: -len(each.tokens))


class PackedScorer:
    """Scores sequences with a loaded causal model, a few rows a pass; fewer where memory does not suffice."""

    def __init__(self, model: Any, *, batch_size: int | str = "auto") -> None:
        self.model = model
        self.kind = "cuda" if model.device.type == "cuda" else "cpu"
        self._asked = batch_size
        self._most: int | None = None
        self.cap: float | None = getattr(model.config, "final_logit_softcapping", None)

    def exact(self) -> bool:
        """Whether packing gives this model's own answers: tried on a few short sequences.

        Models that mask attention in ways of their own, or scale logits after the head, are found out so.
        """
        import torch

        vocabulary = int(self.model.get_output_embeddings().weight.shape[0])
        some = [Scored(tuple(token % vocabulary for token in each), len(each) - 1) for each in _PROBE]
        if self.model.base_model is self.model:
            return False
        try:
            found = self.score(some)
        except (TypeError, ValueError, RuntimeError):  # it takes no such mask, or no positions
            return False
        rough = {torch.float32: TOLERANCE}.get(self.model.dtype, 0.2)
        for sequence, (value, _) in zip(some, found, strict=True):
            ids = torch.tensor([sequence.tokens], device=self.model.device)
            with torch.inference_mode():
                logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
            own = logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).sum()
            if not abs(float(own) - value) <= rough * max(1.0, abs(value) ** 0.5):
                return False
        return True

    def fits(self, longest: int) -> bool:
        """Whether sequences of this length are attended to in full: no sliding window is shorter."""
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        return window is None or not getattr(config, "use_sliding_window", True) or longest < int(window)

    def score(self, sequences: Sequence[Scored], meter: Meter | None = None) -> list[tuple[float, bool]]:
        """(sum of log-probabilities in nats, whether each token is the likeliest) of the scored tokens of each."""
        import torch

        rows = lay_out(sequences, ROW[self.kind])
        if meter is None:
            meter = Meter(silent, 0, "tokens")
        values: list[torch.Tensor] = []
        greedy: list[torch.Tensor] = []
        numbers: list[int] = []
        place = 0
        with torch.inference_mode(), watched(self.model, meter) as layers:
            while place < len(rows):
                batch = rows[place : place + self._rows_a_pass(len(rows[place].tokens))]
                meter.begin(sum(len(row.tokens) for row in batch), layers + 1)
                try:
                    own, best, members = self._pass(batch, sequences)
                except torch.OutOfMemoryError:
                    if len(batch) == 1:
                        raise
                    self._most = len(batch) // 2
                    torch.cuda.empty_cache()
                    continue
                values.append(own)
                greedy.append(best)
                numbers += members
                place += len(batch)
                meter.end()
        found: list[tuple[float, bool]] = [(0.0, False)] * len(sequences)
        if values:
            pairs = zip(torch.cat(values).tolist(), torch.cat(greedy).tolist(), strict=True)
            for number, (value, best_of_all) in zip(numbers, pairs, strict=True):
                found[number] = (float(value), bool(best_of_all))
        return found

    def tokens_in(self, sequences: Sequence[Scored]) -> int:
        """Tokens that a scoring of these sequences runs through the model."""
        return sum(len(row.tokens) for row in lay_out(sequences, ROW[self.kind]))

    def _rows_a_pass(self, length: int) -> int:
        if isinstance(self._asked, int):
            rows = self._asked
        elif self.kind == "cpu":
            rows = max(1, ROWS_A_PASS["cpu"] * ROW["cpu"] // length)
        else:
            rows = max(1, min(ROWS_A_PASS["cuda"] * ROW["cuda"] // length, self._fitting(length)))
        return rows if self._most is None else max(1, min(rows, self._most))

    def _fitting(self, length: int) -> int:
        from core.device import info

        config, size = self.model.config, self.model.dtype.itemsize
        weights = (weight for layer in decoder_layers(self.model) for weight in layer.parameters())
        widest = max((weight.shape[0] for weight in weights if weight.ndim == 2), default=config.hidden_size)
        row = length * size * (8 * config.hidden_size + 4 * widest) + 2 * size * length**2
        return int(MARGIN * info(str(self.model.device)).free_bytes // row)

    def _pass(self, rows: Sequence[Row], sequences: Sequence[Scored]) -> "tuple[torch.Tensor, torch.Tensor, list[int]]":
        """Scores and greediness of all sequences of some rows, and which ones they are."""
        import torch

        device, length = self.model.device, max(len(row.tokens) for row in rows)

        def stacked(values: Callable[[Row], list[int]], rest: int) -> torch.Tensor:
            return torch.tensor([values(row) + [rest] * (length - len(row.tokens)) for row in rows]).to(device)

        ids, positions = stacked(lambda row: row.tokens, 0), stacked(lambda row: row.depth, 0)
        last = stacked(lambda row: row.last, length)  # padding sees itself and what is padding before it
        states = self.model.base_model(
            input_ids=ids, position_ids=positions, attention_mask=self._mask(last), use_cache=False
        ).last_hidden_state.flatten(0, 1)
        where: list[int] = []
        targets: list[int] = []
        owner: list[int] = []
        members: list[int] = []
        for at, row in enumerate(rows):
            for number, path in row.paths.items():
                count = sequences[number].count
                where += [at * length + place for place in path[-count:]]
                targets += sequences[number].tokens[-count:]
                owner += [len(members)] * count
                members.append(number)
        found = self._log_probabilities(states, torch.tensor(where).to(device), torch.tensor(targets).to(device))
        index = torch.tensor(owner).to(device)
        sums = torch.zeros(len(members), dtype=torch.float64, device=device).index_add_(0, index, found[0].double())
        misses = torch.zeros(len(members), dtype=torch.int64, device=device).index_add_(0, index, (~found[1]).long())
        return sums, misses == 0, members

    def _mask(self, last: "torch.Tensor") -> "torch.Tensor":
        """Additive attention mask (rows, 1, length, length) of forests whose branches end at `last` (rows, length)."""
        import torch

        length = last.shape[1]
        place = torch.arange(length, device=last.device)
        seen = (place[None, :] <= place[:, None]) & (place[:, None] < last[:, None, :])
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=last.device)
        return mask.masked_fill_(~seen, torch.finfo(self.model.dtype).min)[:, None]

    def _log_probabilities(
        self, states: "torch.Tensor", where: "torch.Tensor", targets: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Log-probability of each target from the state at its place, and whether it is the likeliest: both (n,)."""
        import torch

        head = self.model.get_output_embeddings()
        places, index = torch.unique(where, return_inverse=True)  # branches share what they are scored at, too
        order = index.argsort()
        step = max(16, LOGIT_BYTES[self.kind] // (4 * int(head.weight.shape[0])))
        values = torch.empty(len(where), device=where.device)
        best = torch.empty(len(where), dtype=torch.bool, device=where.device)
        counts = torch.bincount(index, minlength=len(places)).cumsum(0)
        for start in range(0, len(places), step):
            stop = min(start + step, len(places))
            logits = head(states[places[start:stop]]).float()
            if self.cap is not None:
                logits = self.cap * torch.tanh(logits / self.cap)
            members = order[int(counts[start - 1]) if start else 0 : int(counts[stop - 1])]
            rows, wanted = index[members] - start, targets[members]
            chosen = logits[rows, wanted]
            values[members] = chosen - logits.logsumexp(-1)[rows]
            best[members] = logits.argmax(-1)[rows] == wanted
        return values, best
