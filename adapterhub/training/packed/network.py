"""Many adapters learning at once on a base of the Llama family: one packed line, one forward, one backward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapterhub.base.features import default_pooling
from adapterhub.base.llama import STACKS, LlamaWeights, weights_of
from adapterhub.base.load import compute_dtype, load_network
from adapterhub.base.record import Base
from adapterhub.data.task import Pooling
from adapterhub.lora.config import AdapterConfig
from adapterhub.lora.weights import lora_scaling
from adapterhub.recipe import LABELLED
from adapterhub.training.begin import Principal, principal_pairs
from adapterhub.training.job import TrainingJob
from adapterhub.training.learner import Judged, Learner, Turn
from adapterhub.training.objectives import Objective
from adapterhub.training.rows import Batch, Row, batch_of
from adapterhub.training.targets import Modules, Targets, adapter_config, check_ranks, choose_targets, without_layers

from .adapter import LearningAdapter, Site
from .decoder import PackedDecoder
from .line import Line, Span, pack
from .logprobs import token_logprobs
from .trunk import Trunk

# Tokens of one forward and backward. Fewer make the products small, more only take memory.
LINE_TOKENS = 1024
_HEAD = "score"
_BACKBONE = "model."
# The number of a turn, the turn, and those of its rows that are in the line.
_Part = tuple[int, Turn, Sequence[Row]]


class PackedLearner:
    """An adapter that learns on the packed decoder."""

    def __init__(
        self,
        adapter: LearningAdapter,
        config: AdapterConfig,
        pooling: Pooling | None,
        root: str,
    ) -> None:
        """`root` is what the backbone is called in the model that PEFT loads the adapter on, with a dot, or empty."""
        self.adapter, self.config, self.pooling = adapter, config, pooling
        self.trunk: Trunk | None = None
        self._root = root
        # Layers below the lowest that learns are the same for every row: no gradient goes there.
        self.first = adapter.lowest

    def name_of(self, site: Site) -> str:
        """Return PEFT's name of a site's pair, without what tells A from B."""
        return f"base_model.model.{self._root}{site.module}"

    def parameters(self) -> Mapping[str, Tensor]:
        """Return the flat tensors that learn."""
        return self.adapter.parameters()

    def refresh(self) -> None:
        """Renew the matrices that the network multiplies with."""
        self.adapter.refresh()

    def clear(self) -> None:
        """Set the gradients to zero."""
        self.adapter.clear()

    def saved(self) -> Mapping[str, Tensor]:
        """Return the tensors under PEFT's names."""
        return self.adapter.tensors(self._root, _HEAD)

    def random_state(self) -> Tensor:
        """Return the state of the adapter's own generator."""
        return self.adapter.generator.get_state()

    def set_random_state(self, state: Tensor) -> None:
        """Put the generator where it was."""
        self.adapter.generator.set_state(state)


@dataclass(frozen=True)
class PackedView:
    """What a task sees of a forward: its own states, read as its kind reads them. `states` are [states, hidden]."""

    states: Tensor
    span: Span
    head: Tensor | None
    output: Tensor
    pooling: Pooling | None
    sequences: int

    def classify(self, batch: Batch) -> Tensor:
        """Return logits [rows, labels]."""
        assert self.head is not None
        return self._read().to(self.head.dtype) @ self.head.T

    def answer_logprobs(self, batch: Batch) -> Tensor:
        """Return the log-probability of each completion token, sequence by sequence."""
        return token_logprobs(self._read(), self.output, self.span.reading.answers)

    def embed(self, batch: Batch) -> Tensor:
        """Return a vector [hidden] a sequence, float32 or wider: the mean of its states, its last or its first."""
        read, owner = self._read(), self.span.reading.owner
        wide = read.to(torch.promote_types(read.dtype, torch.float32))
        if self.pooling == "mean":
            sums = wide.new_zeros(self.sequences, wide.shape[1]).index_add(0, owner, wide)
            return sums / batch.lengths[:, None]
        ends = batch.lengths.cumsum(0)
        return wide[ends - 1 if self.pooling == "last" else ends - batch.lengths]

    def _read(self) -> Tensor:
        return self.states.index_select(0, self.span.reading.index)


class PackedNetwork:
    """The packed decoder and the base's output layer; raises ValueError for a base it does not compute."""

    pads = False

    def __init__(self, base: Base, precision: str, device: torch.device) -> None:
        self.device = device
        self.dtype = compute_dtype(precision, device.type)
        found = load_network(base, self.dtype, device)
        weights = found if isinstance(found, LlamaWeights) else weights_of(found)
        self._base, self._shape = base, weights.shape
        self.decoder = PackedDecoder(weights)

    def learner(self, job: TrainingJob) -> PackedLearner:
        """Return a fresh adapter of a job. Raises ConfigError for targets or layers that the base does not have."""
        lora, kind = job.recipe.lora, job.spec.kind
        backbone = Modules.all_linear(self._shape.linear())
        targets = choose_targets(backbone.below(_BACKBONE), lora.targets, lora.layers)
        classes = len(job.spec.labels) if kind in LABELLED else 0
        heads = (_HEAD,) if classes else ()
        named = without_layers(backbone, targets) if kind == "embedding" else targets
        config = adapter_config(job, named, heads)
        root = "" if kind == "embedding" else _BACKBONE
        sites = self._sites(targets, config, root)
        check_ranks(config, [f"{root}{site.module}" for site in sites])
        adapter = LearningAdapter(sites, self.dtype, self.device, classes, self.decoder.hidden, lora.dropout)
        adapter.start(job.recipe.training.seed, self._shape.initializer_range)
        pooling = default_pooling(self._base) if kind == "embedding" else "last" if classes else None
        return PackedLearner(adapter, config, pooling, root)

    def begin_at_principal(self, learner: PackedLearner, seed: int) -> Principal:
        """Have a fresh learner begin at the principal components of the base's weights."""
        adapter = learner.adapter
        sites = {learner.name_of(site): site for site in adapter.sites}
        found = principal_pairs(
            sites,
            lambda name: self.decoder.stacks(sites[name].layer)[sites[name].stack].weight_of(sites[name].index),
            lambda name: sites[name].rank,
            lambda name: sites[name].scaling,
            seed,
        )
        with torch.no_grad():
            for name, (a, b) in found.pairs.items():
                adapter.a_of(sites[name]).copy_(a)
                adapter.b_of(sites[name]).copy_(b)
        adapter.fix({sites[name]: (a, -b) for name, (a, b) in found.pairs.items()})
        adapter.refresh()
        return found

    def _sites(self, targets: Targets, config: AdapterConfig, root: str) -> list[Site]:
        """Return the layers of the decoder that targets name, with their ranks and scalings by PEFT's rules."""
        found = []
        for layer in range(self.decoder.depth):
            for stack, (names, weights) in enumerate(zip(STACKS, self.decoder.stacks(layer), strict=True)):
                first = 0
                for index, (name, out) in enumerate(zip(names, weights.outs, strict=True)):
                    module = f"{root}layers.{layer}.{name}"
                    chosen = any(name == each or name.endswith(f".{each}") for each in targets.names)
                    if chosen and (targets.layers is None or layer in targets.layers):
                        rank = config.rank_of(module)
                        scaling = lora_scaling(config.alpha_of(module), rank, rslora=config.rslora)
                        width = weights.in_features
                        found.append(Site(layer, stack, index, width, out, first, rank, scaling))
                    first += out
        return found

    def learn(self, turns: Sequence[Turn]) -> list[float]:
        """Add the gradients of each turn's loss to its learner's, and return the losses."""
        losses = [0.0] * len(turns)
        apart = [i for i, turn in enumerate(turns) if turn.objective.joint and len(_cut(turn.rows)) > 1]
        for part in _parts([() if i in apart else turn.rows for i, turn in enumerate(turns)]):
            for group in _by_first([(i, turns[i], rows) for i, rows in part]):
                for i, loss in self._learn(group):
                    losses[i] += loss
        for i in apart:
            losses[i] = self._learn_jointly(turns[i])
        for turn in turns:
            _adapter(turn.learner).collect()
        return losses

    def learn_apart(self, turn: Turn) -> float:
        """Run the rows of one turn as one line, in order, forward and backward, without common beginnings."""
        ((_, loss),) = self._learn([(0, turn, turn.rows)], apart=True)
        return loss

    @torch.no_grad()
    def judge(self, learner: Learner, objective: Objective, rows: Sequence[Row]) -> Judged:
        """Return what `rows` come to with the adapter as it is, without dropout."""
        found = [(part, self._outputs(learner, objective, part, learn=False)) for part, _ in _cut(rows)]
        if objective.joint:
            found = [([row for part, _ in found for row in part], torch.cat([outputs for _, outputs in found]))]
        batches = [(batch_of(part, self.device), outputs) for part, outputs in found]
        return Judged(
            sum(float(objective.loss(outputs, batch)) for batch, outputs in batches),
            sum(float(objective.share(batch)) for batch, _ in batches),
            [objective.tally(outputs, batch) for batch, outputs in batches],
        )

    @torch.no_grad()
    def bare_logprobs(self, learner: Learner, rows: Sequence[Row]) -> list[list[float]]:
        """Return for each row the log-probabilities that the bare base gives its sequences' completions."""
        found: dict[Row, list[float]] = {}
        for part in _parts([rows]):
            for _, each in part:
                line = pack([(each, "answers", True)], self.device)
                states = self.decoder.forward(line, [None], learn=False)
                reading = line.spans[0].reading
                each_token = token_logprobs(states.index_select(0, reading.index), self.decoder.output, reading.answers)
                sums = each_token.new_zeros(sum(len(row.sequences) for row in each))
                told: list[float] = sums.index_add(0, reading.owner, each_token).tolist()
                for row in each:
                    count = len(row.sequences)
                    found[row], told = told[:count], told[count:]
        return [found[row] for row in rows]

    def _learn(
        self, group: Sequence[_Part], given: Tensor | None = None, *, apart: bool = False
    ) -> list[tuple[int, float]]:
        """Run rows of turns that begin to learn at the same layer, forward and backward; return the losses by turn.

        `given` is the gradient of what the network says, where it is known already. Rows share what they begin alike
        with, unless `apart` or under dropout.
        """
        line = pack(
            [
                (rows, turn.objective.reads, not apart and _adapter(turn.learner).dropout == 0)
                for _, turn, rows in group
            ],
            self.device,
        )
        learners = [turn.learner for _, turn, _ in group]
        states = self._forward(line, learners, [rows for _, _, rows in group], learn=True)
        gradient = torch.zeros_like(states)
        losses = []
        for (number, turn, rows), span in zip(group, line.spans, strict=True):
            own = states[span.low : span.high].detach().requires_grad_()
            batch = batch_of(rows, self.device)
            outputs = turn.objective.outputs(self._view(own, span, turn.learner, rows), batch)
            loss = turn.objective.loss(outputs, batch) / turn.share if given is None else (outputs * given).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            assert own.grad is not None
            gradient[span.low : span.high] = own.grad
            losses.append((number, float(loss.detach())))
        self.decoder.backward(gradient)
        return losses

    def _learn_jointly(self, turn: Turn) -> float:
        """Where a row's loss depends on all others, run the parts twice: for the loss, then for the gradients.

        Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021. The second run
        draws the same dropout as the first.
        """
        parts = [part for part, _ in _cut(turn.rows)]
        random = turn.learner.random_state()
        with torch.no_grad():
            outputs = [self._outputs(turn.learner, turn.objective, part, learn=True) for part in parts]
        turn.learner.set_random_state(random)
        whole = torch.cat(outputs).requires_grad_()
        batch = batch_of([row for part in parts for row in part], self.device)
        loss = turn.objective.loss(whole, batch) / turn.share
        (gradient,) = torch.autograd.grad(loss, whole)
        for part, piece in zip(parts, torch.split(gradient, [len(each) for each in outputs]), strict=True):
            self._learn([(0, turn, part)], piece)
        return float(loss.detach())

    def _outputs(self, learner: Learner, objective: Objective, rows: Sequence[Row], *, learn: bool) -> Tensor:
        """Return what the objective asks of the network; with `learn`, under dropout."""
        line = pack([(rows, objective.reads, not learn or _adapter(learner).dropout == 0)], self.device)
        states = self._forward(line, [learner], [rows], learn=learn)
        return objective.outputs(self._view(states, line.spans[0], learner, rows), batch_of(rows, self.device))

    def _forward(
        self, line: Line, learners: Sequence[Learner], rows: Sequence[Sequence[Row]], *, learn: bool
    ) -> Tensor:
        packed = [packed_learner(each) for each in learners]
        first, trunk = packed[0].first, packed[0].trunk
        below = None if trunk is None else trunk.states(line, rows)
        return self.decoder.forward(line, [each.adapter for each in packed], learn=learn, first=first, trunk=below)

    def _view(self, states: Tensor, span: Span, learner: Learner, rows: Sequence[Row]) -> PackedView:
        sequences = sum(len(row.sequences) for row in rows)
        return PackedView(states, span, _adapter(learner).head, self.decoder.output, learner.pooling, sequences)


def _parts(given: Sequence[Sequence[Row]]) -> Iterable[list[tuple[int, list[Row]]]]:
    """Cut the rows that the tasks give into lines of LINE_TOKENS or so.

    Yields for each line (which task, rows). How a task's rows are cut depends on themselves alone, so that it learns
    the same, with the same dropout, whoever learns beside it.
    """
    line: list[tuple[int, list[Row]]] = []
    room = LINE_TOKENS
    for i, rows in enumerate(given):
        for part, size in _cut(rows):
            if line and size > room:
                yield line
                line, room = [], LINE_TOKENS
            line.append((i, part))
            room -= size
    if line:
        yield line


def _cut(rows: Sequence[Row]) -> list[tuple[list[Row], int]]:
    """Return a task's rows in parts of LINE_TOKENS at most (or one row), with the tokens of each."""
    sizes = [row.tokens for row in rows]
    parts: list[tuple[list[Row], int]] = []
    # Sorted, so that rows that begin alike come into the same part.
    for row, size in sorted(zip(rows, sizes, strict=True), key=lambda pair: pair[0].ids):
        if parts and parts[-1][1] + size <= LINE_TOKENS:
            parts[-1] = ([*parts[-1][0], row], parts[-1][1] + size)
        else:
            parts.append(([row], size))
    return parts


def _by_first(given: Sequence[_Part]) -> list[list[_Part]]:
    """Group the turns whose line begins at the same layer, of the same trunk."""
    found: dict[tuple[int, Trunk | None], list[_Part]] = {}
    for part in given:
        learner = packed_learner(part[1].learner)
        found.setdefault((learner.first, learner.trunk), []).append(part)
    return list(found.values())


def packed_learner(learner: Learner) -> PackedLearner:
    """Return the learner as what it is on this network."""
    assert isinstance(learner, PackedLearner), "the packed decoder trains its own learners only"
    return learner


def _adapter(learner: Learner) -> LearningAdapter:
    return packed_learner(learner).adapter
