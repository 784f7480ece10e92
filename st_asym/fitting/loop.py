"""One training run of the heads on vectors in memory: dozens of them are rehearsals of the one that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import torch
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn

State = Mapping[str, Tensor]
# Called after each epoch with its number, from 1; training ends where it returns True.
AfterEpoch = Callable[[int], bool]
# Figures of each epoch by name; ``epoch`` itself is one of them.
Log = list[dict[str, float]]


class ShuffledBatches(DefaultBatchSampler):
    """Rows in a new random order in each epoch, the same in the loop and in the stock trainer.

    Args:
        dataset: Whatever has a length.
        batch_size: Rows per batch; the last one of an epoch may have fewer.
        seed: Of the order.
        **_: What the trainer gives its samplers besides.
    """

    def __init__(self, dataset: Sized, batch_size: int, *, seed: int = 0, **_: Any) -> None:
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
    model: nn.Module,
    loss: nn.Module,
    queries: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    after_epoch: AfterEpoch | None = None,
) -> Log:
    """Train heads in place, as ``SentenceTransformerTrainer`` does with the arguments of ``last_training``.

    AdamW without weight decay, a learning rate that falls linearly to zero, no clipping.

    Args:
        model: Takes ``sentence_embedding`` and ``task``; what has ``requires_grad`` trains.
        loss: With ``compute_loss_from_embeddings(embeddings, labels)``, a tensor or a dict of parts.
        queries: Vectors before the heads, shape ``(n, d)``.
        labels: What the loss knows each query by, shape ``(n,)``.
        epochs: Passes over the queries.
        batch_size: Queries per step.
        learning_rate: At the first step.
        seed: Of the order of the queries.
        after_epoch: Called after each epoch.

    Returns:
        The mean loss of each epoch, and of its parts where it has several.

    Raises:
        ValueError: The heads have diverged.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = ShuffledBatches(labels, batch_size, seed=seed)
    steps = len(batches) * epochs
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (steps - step) / steps))
    compute: Any = loss.compute_loss_from_embeddings
    log: Log = []
    for epoch in range(epochs):
        model.train()
        batches.set_epoch(epoch)
        sums: dict[str, float] = {}
        for rows in batches:
            features: dict[str, Any] = {"sentence_embedding": queries[rows], "task": "query"}
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


def heads_state(model: nn.Module) -> State:
    """Copies of all parameters that train, by name."""
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}


def load_heads(model: nn.Module, state: State) -> None:
    """Put the parameters of :func:`heads_state` back, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


def dialled(start: State, end: State, weight: float) -> State:
    """The weights on the straight line from ``start`` (0) to ``end`` (1).

    From the identity to trained heads this is a dial: they keep their shape, 0 is the untouched encoder and 1 what
    training gave, exactly. Averaging the
    weights of a model before and after training keeps more of what it could do before than stopping early does
    (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903).

    Example:
        >>> dialled({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)["w"]
        tensor([0.2500, 0.2500])
    """
    return {name: torch.lerp(start[name], tensor, weight) for name, tensor in end.items()}
