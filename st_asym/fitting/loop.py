"""Training heads: many times on vectors in memory, as a rehearsal, and once by the stock trainer, to be kept.

Both give the same weights: the loop of :func:`train_heads` does what ``SentenceTransformerTrainer`` does with the
arguments of :func:`refit`, without what a trainer costs besides.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Router
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_asym.cache import CachedSentenceTransformer, EmbeddingCache
from st_asym.cache.encoding import Precision
from st_asym.data import Qrels, RetrievalData
from st_asym.data.files import LOGS_FOLDER
from st_asym.fitting.candidates import Candidate, behind_vectors
from st_asym.fitting.closed_form import pair_covariance
from st_asym.fitting.gate import Choice
from st_asym.fitting.vectors import Vectors
from st_asym.heads.model import behind_encoder
from st_asym.trainer.columns import column_prompts, router_mapping
from st_asym.trainer.monitor import NO_LOSSES

# Figures of each epoch by name; ``epoch`` itself is one of them.
Log = list[dict[str, float]]


class ShuffledBatches(DefaultBatchSampler):
    """Rows in a new random order in each epoch, the same in the loop and in the stock trainer."""

    def __init__(self, dataset: Sized, batch_size: int, *, seed: int, **_: Any) -> None:
        self._rows = range(len(dataset))
        rows: Any = self._rows
        super().__init__(rows, batch_size, drop_last=False, seed=seed)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch that ``set_epoch`` has named, 0 at first."""
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(len(self._rows), generator=generator).tolist()
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


def train_heads(
    candidate: Candidate,
    model: nn.Module,
    vectors: Vectors,
    qrels: Qrels,
    *,
    withheld: Qrels | None = None,
    after_epoch: Callable[[int], bool] | None = None,
) -> Log:
    """Train the parameters that require a gradient in place: AdamW, a rate that falls linearly to zero, no clipping.

    ``model`` takes ``sentence_embedding`` and ``task``; ``qrels`` are of the queries that are trained on, ``withheld``
    documents by query that are neither relevant to it nor not. The seed of ``vectors`` is that of the order of queries
    and of what the loss draws; the caller's generator stays as it is. ``after_epoch`` is called with the number of each
    epoch, from 1, and ends training by True. The mean loss of each epoch comes back, with its parts where it has some.
    """
    settings, queries, labels = candidate.settings, list(qrels), torch.arange(len(qrels))
    epochs, seed = settings.epochs or 1, vectors.seed
    compute: Any = candidate.loss(model, vectors, qrels, withheld or {}).compute_loss_from_embeddings
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = ShuffledBatches(labels, settings.batch_size, seed=seed)
    steps = len(batches) * epochs
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate_for(len(queries)), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (steps - step) / steps))
    log: Log = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a loss may draw its negatives
        for epoch in range(epochs):
            model.train()
            batches.set_epoch(epoch)
            sums: dict[str, float] = {}
            for rows in batches:
                own = vectors.of_queries([queries[row] for row in rows])
                features: dict[str, Any] = {"sentence_embedding": own, "task": "query"}
                value = compute([model(features)["sentence_embedding"]], labels[rows])
                parts = value if isinstance(value, dict) else {"loss": value}
                total = torch.stack(list(parts.values())).sum()
                torch.autograd.backward(total)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                for name, part in {**parts, "loss": total}.items():
                    sums[name] = sums.get(name, 0.0) + float(part.detach())
            shown = sums if len(sums) > 2 else {"loss": sums["loss"]}
            log.append({"epoch": epoch + 1, **{name: round(value / len(batches), 6) for name, value in shown.items()}})
            if after_epoch is not None and after_epoch(epoch + 1):
                break
    model.eval()
    return log


def weights_of(heads: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in heads.named_parameters()}


@torch.no_grad()
def set_dial(heads: nn.Module, identity: nn.Module, trained: Mapping[str, Tensor], dial: float) -> None:
    """Put heads on the straight line from the identity (0) to their trained weights (1), exactly at its ends.

    Averaging the weights of a model before and after training keeps more of what it could do before than stopping early
    does (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903).

    Example:
        >>> identity, heads = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(identity.weight), nn.init.ones_(heads.weight)
        >>> set_dial(heads, identity, weights_of(heads), 0.25)
        >>> heads.weight.item()
        0.25
    """
    start = dict(identity.named_parameters())
    for name, parameter in heads.named_parameters():
        parameter.copy_(torch.lerp(start[name].to(trained[name].device), trained[name], dial))


def refit(
    encoder: SentenceTransformer,
    candidate: Candidate,
    choice: Choice,
    vectors: Vectors,
    data: RetrievalData,
    cache: EmbeddingCache,
    *,
    precision: Precision = "fp32",
    callbacks: Sequence[TrainerCallback] = (),
    report_to: str | Sequence[str] = "none",
    logs: Path | None = None,
) -> tuple[SentenceTransformer, Log]:
    """Make the heads that were chosen on all training queries, by the stock trainer, as a user would write it.

    ``vectors`` and ``data`` are one collection, as vectors and as texts; ``precision`` is that of the vectors in
    ``cache``; ``callbacks`` and ``report_to`` are for the trainer, whose logs of TensorBoard go to ``logs``. The model
    is of stock modules, in evaluation mode, with the encoder's own modules; the mean losses of each epoch come with it.
    """
    train = data.qrels["train"]
    covariance = pair_covariance(vectors.queries, vectors.documents, *vectors.pairs(train))
    width = encoder.get_embedding_dimension() or vectors.dimension
    heads: Router = candidate.heads(vectors.dimension, width, covariance)
    model = behind_encoder(encoder, heads)
    if not candidate.trains:
        return model.eval(), []
    dtype = next(heads.parameters()).dtype
    heads.float()  # in half precision an optimizer's steps are lost, whatever the encoder is in
    cached = CachedSentenceTransformer(model, cache, precision=precision)
    rows = data.labelled_queries("train")
    mapping = router_mapping(rows)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=candidate.settings.epochs or 1,
            per_device_train_batch_size=candidate.settings.batch_size,
            learning_rate=candidate.settings.learning_rate_for(len(rows)),
            lr_scheduler_type="linear",
            batch_sampler=ShuffledBatches,
            router_mapping=mapping,
            prompts=column_prompts(cached, mapping) or None,
            optim="adamw_torch_fused",
            max_grad_norm=0.0,
            logging_strategy="epoch",
            save_strategy="no",
            report_to=report_to if isinstance(report_to, str) else list(report_to),
            disable_tqdm=True,
            seed=vectors.seed,
            use_cpu=cached.device.type == "cpu",
            ddp_find_unused_parameters=False,
        )
        arguments.mixed_precision = "no"  # whatever the environment says: what is kept is what was rehearsed
        trainer = _Trainer(
            model=cached,
            args=arguments,
            train_dataset=rows,
            loss=candidate.loss(cached, vectors, train, {}),
            callbacks=[*callbacks, _Until(choice.epoch)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if logs is not None and (written := Path(folder) / LOGS_FOLDER).is_dir():
            shutil.copytree(written, logs)
    log = [_losses(entry) for entry in trainer.state.log_history if "loss" in entry]
    if choice.dial != 1.0:
        set_dial(heads, candidate.identity(vectors.dimension, width), weights_of(heads), choice.dial)
    model = cached.stock_model()
    heads.to(dtype)
    return model.eval(), log


def train_on_vectors(candidate: Candidate, choice: Choice, vectors: Vectors, train: Qrels) -> tuple[Router, Log]:
    """The heads that :func:`refit` makes, by the loop: there are no texts, and no trainer.

    ``train`` are the queries that are trained on, with their judgments.
    """
    covariance = pair_covariance(vectors.queries, vectors.documents, *vectors.pairs(train))
    heads = candidate.heads(vectors.dimension, vectors.dimension, covariance)
    if not candidate.trains:
        return heads, []
    model = behind_vectors(heads)
    log = train_heads(candidate, model, vectors, train, after_epoch=lambda epoch: epoch >= choice.epoch)
    if choice.dial != 1.0:
        set_dial(heads, candidate.identity(vectors.dimension, vectors.dimension), weights_of(heads), choice.dial)
    return heads, log


def _losses(entry: dict[str, float]) -> dict[str, float]:
    parts = {name: value for name, value in entry.items() if name not in NO_LOSSES}
    shown = parts if len(parts) > 2 else {"loss": parts["loss"]}
    return {"epoch": round(entry["epoch"]), **shown}


class _Trainer(SentenceTransformerTrainer):
    """The stock trainer, which writes no model card: :func:`st_asym.fit` writes one that says more."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave it out, and with it the statistics and examples of the training data."""


class _Until(TrainerCallback):
    """Ends training after an epoch."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the library's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """End it."""
        if round(state.epoch or 0) >= self._epoch:
            control.should_training_stop = True
