"""The training loop: one optimiser step per global batch of lanes, the same numbers for any number of processes.

Losses are summed over labels and divided by label counts added up over the ranks; gradients are added up explicitly.
Teacher and student, first training and distillation all run through here; they differ by model and objective only.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.auxiliary import of_sequence_path
from rayrank.learning.blend import choose_share
from rayrank.learning.choice import with_choice
from rayrank.learning.collectives import Collectives, Solo
from rayrank.learning.forward import StepNoise, forward, retrieval_tasks
from rayrank.learning.inputs import DivergedError, Hooks, Snapshot, Step, TrainData, TrainSpec, Used
from rayrank.learning.matching import Matching
from rayrank.learning.negatives import Negatives, NegativeSampler
from rayrank.learning.optimiser import Rates, schedule, split_parameters
from rayrank.learning.predict import Protocol, Wanted, empty_scores, scored
from rayrank.learning.rows import STAGE as ROWS
from rayrank.learning.rows import train_rows
from rayrank.learning.state import StageState, share_marks, under
from rayrank.learning.texts import TextCache, encode_catalogue, trained_encoder, with_tokens
from rayrank.memory import release
from rayrank.metrics.evaluated import Evaluated
from rayrank.metrics.summary import metrics_of
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker
from rayrank.objectives.losses import check_negatives, compute, label_counts, loss_weights
from rayrank.objectives.matching import matching_weights
from rayrank.objectives.targets import Targets, random_horizon, some_targets, training_targets
from rayrank.schema import TRAIN, VALID


@dataclass(frozen=True)
class TrainResult:
    """The best epoch's averaged weights (already in the model), its metrics, and what happened on the way."""

    metrics: dict[str, float]  # '<protocol>/<task>/<metric>' on valid, of the best epoch
    history: list[dict[str, Any]]  # one entry per epoch
    curve: list[dict[str, float]]  # one entry per step: loss by task
    best_epoch: int
    catalogue: Catalogue  # with the text vectors that the weights were evaluated with


def train(
    model: Ranker, data: TrainData, spec: TrainSpec, hooks: Hooks | None = None, collectives: Collectives | None = None
) -> TrainResult:
    """Train ``model`` in place. Seed torch before building it; everything after is drawn from ``spec.learning.seed``.

    Raises:
        ValueError: an objective weight for an unknown task, a metric to choose by that valid does not give.
        DivergedError: losses are no numbers, in either stage.
    """
    run = _Run(model, data, spec, hooks or Hooks(), collectives or Solo())
    return run.all_epochs()


class _Run:
    def __init__(self, model: Ranker, data: TrainData, spec: TrainSpec, hooks: Hooks, collectives: Collectives) -> None:
        self.model, self.data, self.hooks, self.collectives = model, data, hooks, collectives
        self.spec = with_choice(spec.learning, model.schema)
        self.objective = spec.objective
        self.device = next(model.parameters()).device
        self.terms = (*(task.name for task in model.schema.tasks), *matching_weights(self.objective))
        self.weights = loss_weights(self.objective, self.terms)
        check_negatives(self.objective, model.schema)
        catalogue = data.catalogue.to(self.device)
        catalogue = with_tokens(model, catalogue)
        self._catalogue = encode_catalogue(model, catalogue) if catalogue.vectors_ND is None else catalogue
        self.sampler = NegativeSampler.of(catalogue, self.objective)
        self.auxiliary = of_sequence_path(model, self.objective)
        self.matching = Matching.of(model, self.objective, (data.taught_ND, data.state_width), self.spec.seed)
        self.encoder = trained_encoder(model)
        cached = self.encoder if not model.item_tokens else None  # tokens are read with the texts that they are part of
        self.texts = TextCache(cached, self._catalogue, self.spec, self.collectives) if cached else None
        if self.encoder:
            self.encoder.bf16 = self.spec.precision == "bf16" and self.encoder.multiplies_bf16(self.device)
            if self.encoder.additions:
                self.encoder.additions.begin(self.spec.epochs * data.steps_per_epoch)
        self.step, self.epoch, self.position = 0, 0, 0
        self.history: list[dict[str, Any]] = []
        self.curve: list[dict[str, float]] = []
        self.best: tuple[int, dict[str, Tensor], Catalogue] | None = None

    @property
    def catalogue(self) -> Catalogue:
        """The items as they are known now."""
        return self.texts.catalogue if self.texts else self._catalogue

    def all_epochs(self) -> TrainResult:
        resume = self.hooks.resume
        goes_on = resume is not None and resume.meta["stage"] != ROWS
        if not goes_on:
            self._first_stage()
        parameters, rates = split_parameters(self.model)[1], Rates.of(self.spec)
        kept = (self.spec.ema, self.spec.dense_rows)
        dropped = [module for module in (self.auxiliary, self.matching) if module is not None]
        beside = nn.ModuleList(dropped) if dropped else None
        self.state = StageState.of(self.model, parameters, rates, kept, beside)
        if resume is not None and goes_on:
            self._restore(resume)
        while self.epoch < self.spec.epochs and not self._exhausted():
            started = time.perf_counter()
            try:
                events, waited = self._epoch()
            except torch.linalg.LinAlgError as error:  # what a reader makes of weights that are no numbers
                raise self._diverged(f"no solution at step {self.step} ({error})") from None
            seconds = time.perf_counter() - started
            with self.state.averaged():
                metrics = self._evaluate()
                self._remember(metrics)
            entry = {"epoch": self.epoch, "events_per_s": events / seconds, "wait_share": waited / seconds}
            self.history.append({**entry, "seconds": seconds, "metrics": metrics})
            self.epoch, self.position = self.epoch + 1, 0
            self.hooks.report({**entry, **metrics})
            self.hooks.on_epoch(self._snapshot())
        return self._finish()

    def _first_stage(self) -> None:
        """The static path, on shuffled rows; the sequence path starts from its item factors."""
        if not self.model.has_static:
            return
        if self.spec.rows.epochs == 0:
            self.model.static_share_K.fill_(0.0 if self.model.has_sequence else 1.0)
            return
        data = replace(self.data, catalogue=self.catalogue)
        train_rows(self.model, data, TrainSpec(self.spec, self.objective), self.hooks, self.collectives)
        self.model.hand_over()

    def _epoch(self) -> tuple[int, float]:
        iterator = iter(self.data.train(self.epoch, self.position))
        events, waited, since = 0, 0.0, time.perf_counter()
        while True:
            asked = time.perf_counter()
            batches = next(iterator, None)
            waited += time.perf_counter() - asked
            found = self._step(batches)
            if found is None:
                return events, waited
            losses, due, asked = found
            events += asked
            self.curve.append(losses)
            self.position += 1
            if due:
                share_marks(self.model, self.collectives)
                self.hooks.on_snapshot(self._snapshot())
            if self.step % self.hooks.log_every == 0:
                rate = events / (time.perf_counter() - since)
                self.hooks.report({"step": self.step, "epoch": self.epoch, **losses, "events_per_s": rate})

    def _step(self, batches: Step | None) -> tuple[dict[str, float], bool, int] | None:
        """One optimiser step: (losses, whether a rank asks for a snapshot, targets asked here); None when no rank has
        a batch left."""
        noise = Noise(self.spec.seed, self.step)
        asked = [self._asked(batch.to(self.device), noise) for batch in batches or ()]
        lanes, targets = [batch for batch, _ in asked], [found for _, found in asked]
        found = self._counts(targets, batches is not None)
        if found is None:
            return None
        counts, due = found
        negatives = None
        if retrieval_tasks(self.model.schema):
            negatives = self.sampler.draw(self.spec.seed * 1_000_003 + self.step)
        fresh = self.texts.encode(self.texts.choose(lanes, negatives, noise)) if self.texts else None
        noised = StepNoise(noise, fresh, self.auxiliary, self.matching)
        with self.state.collecting():
            sums = self._backward(list(zip(lanes, targets, strict=True)), counts, negatives, noised)
        if self.texts:
            self.texts.learn(fresh, self.step)
        self._update()
        self._say_used(lanes)
        return self._losses(sums, counts), due, sum(int((batch.part_BT == TRAIN).sum()) for batch in lanes)

    def _backward(
        self,
        lanes: list[tuple[SequenceBatch, Targets]],
        counts: dict[str, Tensor],
        negatives: Negatives | None,
        step: StepNoise,
    ) -> Tensor:
        """Loss sums by term of this rank's lanes, whose gradients add up: the step is that of one large batch."""
        sums = torch.zeros(len(self.terms), device=self.device)
        for batch, target in lanes:
            said = forward(self.model, batch, target, self.catalogue, negatives, step)
            terms = compute(said, target, self.model.schema, self.objective)
            terms.total(counts, self.objective).backward()
            for (task, _), value in terms.sums.items():
                sums[self.terms.index(task)] += value.detach()
        return sums

    def _say_used(self, lanes: list[SequenceBatch]) -> None:
        if self.hooks.on_used and lanes:
            rows = torch.cat([batch.row_BT[batch.part_BT == TRAIN] for batch in lanes])
            self.hooks.on_used(Used("sequences", self.epoch, self.step - 1, rows))

    def _asked(self, batch: SequenceBatch, noise: Noise) -> tuple[SequenceBatch, Targets]:
        """The micro-batch with the train targets that the step asks, and what it asks."""
        key_B = batch.events.key_B
        cut_B = noise.uniform("horizon", key_B) < self.spec.horizon
        horizon_B = random_horizon(batch, noise.uniform("horizon_place", key_B), cut_B)
        if self.spec.targets_per_sequence:
            batch = some_targets(batch, self.spec.targets_per_sequence, noise.uniform("targets", batch.row_BT))
        for buffer, ids in (
            (self.model.trained_users_U, batch.events.user_B),
            (self.model.trained_items_N, batch.events.item_BT[batch.part_BT == TRAIN]),
        ):
            buffer[ids[ids < len(buffer)]] = 1.0
        told = self.objective.distillation
        unseen_BT = noise.uniform("unseen", batch.row_BT) if told else None
        asked = (told.unseen_items, told.best_items) if told else (1, 0)
        return batch, training_targets(batch, horizon_B, unseen_BT, *asked)

    def _counts(self, targets: list[Targets], mine: bool) -> tuple[dict[str, Tensor], bool] | None:
        """Label counts of all ranks, snapshot or not; None when no rank has a batch (one message says it all)."""
        flat = torch.zeros(len(self.terms) + 2, device=self.device)
        flat[-2:] = torch.tensor([float(mine), float(self.hooks.due())])
        for target in targets:
            flat[:-2] += torch.stack(list(label_counts(target, self.model.schema, self.objective).values()))
        self.collectives.all_reduce_sum(flat)
        if float(flat[-2]) == 0:
            return None
        return dict(zip(self.terms, flat[:-2].unbind(), strict=True)), bool(flat[-1] > 0)

    def _update(self) -> None:
        progress = (self.step + 1) / (self.spec.epochs * self.data.steps_per_epoch)
        share = schedule(progress, self.spec.warmup, self.spec.final_learning_rate)
        added = self.encoder.additions if self.encoder else None
        penalty = added.penalty() if added else None
        if penalty is not None:
            (penalty / self.collectives.world).backward()
        self.state.update(share, self.spec.clip, self.collectives)
        self.step += 1
        if added:
            added.after_step(self.step)
        self.state.follow()

    def _losses(self, sums: Tensor, counts: dict[str, Tensor]) -> dict[str, float]:
        self.collectives.all_reduce_sum(sums)
        means = sums / torch.stack(list(counts.values())).clamp_min(1)
        values = dict(zip(self.terms, means.tolist(), strict=True))
        loss = sum(self.weights[task] * value for task, value in values.items())
        if not math.isfinite(loss):
            raise self._diverged(f"loss is {loss} at step {self.step}: {values}")
        return {"loss": loss, **{f"loss/{task}": value for task, value in values.items()}}

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError("learning.learning_rate", self.spec.learning_rate, what)

    def _evaluate(self) -> dict[str, float]:
        share_marks(self.model, self.collectives)
        if self.data.valid is None:
            return {}
        if self.spec.choose_blend and self.spec.rows.epochs and self.model.has_static and self.model.has_sequence:
            choose_share(self.model, self.catalogue, self.data.valid(), self.collectives)
        metrics: dict[str, float] = {}
        protocols: tuple[Protocol, ...] = ("streaming", "snapshot")
        for protocol in protocols:
            ranked = protocol == "streaming"
            found = self._valid_metrics(Wanted(protocol, (VALID,), ranked))
            metrics |= {f"{protocol}/{name}": value for name, value in found.items() if ranked or "next" not in name}
            release()
        return metrics

    def _valid_metrics(self, wanted: Wanted) -> dict[str, float]:
        assert self.data.valid is not None
        nothing = Evaluated.of(empty_scores(self.model.schema, wanted.rank_items))
        said = scored(self.model, self.catalogue, self.data.valid(), wanted)
        mine = Evaluated.join(chain([nothing], map(Evaluated.of, said)))
        # Told to all ranks before one of them raises, or the others would wait for it.
        wrong = torch.tensor([float(not all(judged.finite for judged in mine.events.values()))])
        if float(self.collectives.all_reduce_sum(wrong)) > 0:
            raise self._diverged(f"predictions on valid are no numbers after step {self.step}")
        metrics: dict[str, float] = {}
        for task in self.model.schema.tasks:  # one at a time: the first rank holds what all of them say
            parts = self.collectives.gather_objects(mine.only(task.name))
            metrics |= metrics_of(Evaluated.join(parts), self.model.schema) if parts else {}
        return self.collectives.from_first(metrics)

    def _chosen(self, metrics: dict[str, float]) -> float:
        name = f"{self.spec.choose_protocol}/{self.spec.choose}"
        if name not in metrics:
            raise ValueError(f"learning.choose: no valid metric '{name}'; there are: {', '.join(sorted(metrics))}")
        return -metrics[name] if self.spec.lower_is_better else metrics[name]

    def _remember(self, metrics: dict[str, float]) -> None:
        """Keep the averaged weights when this epoch is the best so far (or nothing can be compared).

        Without the static path's, which this stage leaves as they are.
        """
        if metrics and self.best is not None:
            best, found = self._chosen(self.history[self.best[0]]["metrics"]), self._chosen(metrics)
            if not found > best and (math.isfinite(best) or not math.isfinite(found)):
                return
        still = {id(p) for module in self.model.static_modules() for p in module.parameters()}
        named = self.model.state_dict(keep_vars=True).items()
        state = {name: value.detach().clone() for name, value in named if id(value) not in still}
        catalogue = self.catalogue
        if self.texts and catalogue.vectors_ND is not None:
            catalogue = replace(catalogue, vectors_ND=catalogue.vectors_ND.clone())
        self.best = (self.epoch, state, catalogue)

    def _exhausted(self) -> bool:
        return self.best is not None and self.data.valid is not None and self.epoch - self.best[0] > self.spec.patience

    def _finish(self) -> TrainResult:
        assert self.best is not None
        epoch, state, catalogue = self.best
        self.model.load_state_dict(state, strict=False)
        if self.encoder:
            self.encoder.bf16 = False
            self.encoder.merge()
            self.hooks.on_encode()
            catalogue = replace(encode_catalogue(self.model, catalogue), below_TW=None)
        return TrainResult(self.history[epoch]["metrics"], self.history, self.curve, epoch, catalogue)

    def _snapshot(self) -> Snapshot:
        tensors = self.state.tensors()
        if self.best is not None:
            tensors |= {f"best/{name}": value for name, value in self.best[1].items()}
        if self.texts:
            tensors |= self.texts.tensors()
        if self.encoder and self.encoder.additions:
            added = self.encoder.additions.tensors()
            tensors |= {f"additions/{name}": value for name, value in added.items()}
        place = {"stage": "sequences", "epoch": self.epoch, "position": self.position, "step": self.step}
        best = None if self.best is None else self.best[0]
        meta = {**place, "updates": self.state.average.updates, "best_epoch": best}
        return Snapshot(tensors, {**meta, "history": list(self.history), "curve": list(self.curve)})

    def _restore(self, saved: Snapshot) -> None:
        self.state.put_back(saved)
        if self.texts:
            self.texts.put_back(under(saved.tensors, "texts/"))
        if self.encoder and self.encoder.additions:
            self.encoder.additions.put_back(under(saved.tensors, "additions/"))
        meta = saved.meta
        self.epoch, self.position, self.step = int(meta["epoch"]), int(meta["position"]), int(meta["step"])
        self.history, self.curve = list(meta["history"]), list(meta["curve"])
        if meta["best_epoch"] is not None:
            self.best = (int(meta["best_epoch"]), under(saved.tensors, "best/"), self.catalogue)
