"""Every relevant document of a query against the corpus, or against the documents of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import get_rank, get_world_size
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from st_asym.cache.encoding import Precision
from st_asym.data.collection import first_few
from st_asym.losses.distributed import gather_rows, one_of_each, total
from st_asym.losses.documents import (
    NOTHING,
    Documents,
    KnownPairs,
    Negatives,
    Relevance,
    Relevant,
    Texts,
    Vectors,
    together,
)
from st_asym.losses.isotropy import unit
from st_asym.losses.sampled import HARD_NEGATIVES, HardNegatives, Sample

# Documents that go through the head at once: a processor is fastest where they stay in its cache.
_CPU_CHUNK, _GPU_CHUNK = 1024, 16_384
# What the graph of one step may take before its chunks are computed again in the backward pass.
_GRAPH_BYTES = 1 << 30
_CITATION = """
@misc{oord2019representationlearningcontrastivepredictive,
    title={Representation Learning with Contrastive Predictive Coding},
    author={Aaron van den Oord and Yazhe Li and Oriol Vinyals},
    year={2019},
    eprint={1807.03748},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
@inproceedings{khosla2020supervised,
    title={Supervised Contrastive Learning},
    author={Prannay Khosla and Piotr Teterwak and Chen Wang and Aaron Sarna and Yonglong Tian and Phillip Isola and
        Aaron Maschinot and Ce Liu and Dilip Krishnan},
    booktitle={Advances in Neural Information Processing Systems},
    year={2020},
    eprint={2004.11362},
    archivePrefix={arXiv}
}
"""


class CorpusContrastiveLoss(nn.Module):
    r"""Contrast every relevant document of a query with all documents of the corpus that are not relevant to it.

    For query i with relevant documents P_i, grades g and cosine similarities s at temperature t:

        loss_i = sum_{p in P_i} w_ip * -log( exp(s_ip / t) / (exp(s_ip / t) + sum_{n not in P_i} a_in exp(s_in / t)) )

    with w_ip = g_ip / sum_p g_ip, and the mean over the queries of the batch. a_in is 1 for documents that are relevant
    to some query or were judged not relevant to this one, and ``unlabelled_weight`` for all others. Nobody asked for
    those yet, as for new documents: counted in full, every query pushes them away and none pulls them, and the heads
    learn to tell "asked for before" from the rest.

    It is InfoNCE (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748) with the sum over positives outside the
    logarithm, as in Supervised Contrastive Learning (Khosla et al. 2020, https://arxiv.org/abs/2004.11362), but no
    relevant document is a negative of its query. A query without negatives has a loss of 0.

    The corpus comes as vectors before the heads, and goes through the document head as it is now: no encoder runs, and
    the gradient reaches both heads.

    A corpus of more than ``max_documents`` is sampled. Each step draws ``sampled_documents``, one from each of as many
    equal stretches, of the relevant and of the unlabelled ones in proportion to what they count. Each counts as often
    as its stretch has documents (Horvitz and Thompson 1952), so that the sum over negatives is estimated without bias;
    its logarithm is, on average, a little too low. The ``hard_negatives`` most similar negatives that were found so far
    for each query are counted exactly, as they dominate the sum and a sample rarely meets them. They are renewed from
    each sample and, as in ANCE (Xiong et al. 2020, https://arxiv.org/abs/2007.00808), every ``refresh_steps`` steps
    from a scan of the next ``max_documents`` documents. A resumed run finds them anew. In evaluation, where there is no
    gradient, the sample is always the same.

    Under several processes each has its own queries, of any number, and the mean of their losses and gradients is what
    one process gives for the whole batch. Samples and hard negatives are shared.

    Args:
        model: The model to train, with a frozen encoder: an :func:`st_asym.asymmetric_model`, or a
            :class:`st_asym.CachedSentenceTransformer` of one.
        corpus: Document id to text, with the model's prompt for documents; or a pair of ids and the encoder's vectors,
            an array of shape ``(n, d)``. Above ``max_documents`` texts need a ``CachedSentenceTransformer``, and are
            looked up in each step; an array stays where it is, which may be a ``numpy.memmap``.
        relevant: Query id to document id to grade, or to the ids of its relevant documents. Documents with a grade of
            zero or less were judged not relevant: they count in full for that query.
        ignored: Query id to the ids of documents that may be relevant, such as judgments that were held out: they are
            no negatives of that query. The loss reads no texts to find them: :func:`st_asym.data.copies` names the
            copies of relevant documents, and a query that is itself a document needs its own id here.
        unlabelled_weight: What a document that is relevant to no query counts as a negative, from 0 to 1: 1 where the
            corpus is closed and every document was there to be asked for, 0 to leave such documents out.
        negatives: ``"corpus"``; ``"batch"`` for the documents that are relevant to the queries of the batch, each once,
            in place of the corpus, which is the cheapest step there is; or ``"both"`` for the mean of the two losses.
        temperature: Divides the similarities.
        precision: ``"bf16"`` runs the document head and the similarities in bfloat16 where the processor has it, which
            takes a third of the time for the same result on held-out queries. Sums and the loss are float32 anyway.
        max_documents: The largest corpus that is compared in full, and how many documents a scan covers.
        sampled_documents: Documents that are drawn in each step from a larger corpus; at least one of either kind.
        hard_negatives: Hard negatives of each query in a larger corpus, 0 for none.
        refresh_steps: Steps from one scan to the next.
        chunk_size: Documents that go through the head at once, computed again in the backward pass, with the same
            gradient. None does so where the graph of a step would take more than about a gigabyte.

    Raises:
        TypeError: ``corpus`` or the documents of a query are of the wrong kind.
        ValueError: A setting out of range, an encoder that trains, a relevant document that is not in the corpus, an id
            that occurs twice, a grade or vector that is not finite, or no query with a relevant document. In training:
            no labels, labels out of range or of queries without a relevant document, or vectors that are not finite.

    Inputs:
        +------------------------------------------------+------------------------------------------------+
        | Inputs                                         | Labels                                         |
        +================================================+================================================+
        | query                                          | position of the query in ``relevant``          |
        +------------------------------------------------+------------------------------------------------+
        | query, document (and further hard negatives)   | the same, or -1 for a pair without a corpus,   |
        |                                                | which is contrasted with those of its batch    |
        +------------------------------------------------+------------------------------------------------+

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> from st_asym import CorpusContrastiveLoss, asymmetric_model
        >>> from st_asym.data import RetrievalData
        >>> data = RetrievalData(
        ...     queries={"q1": "head", "q2": "encoder"},
        ...     corpus={"d1": "frozen head", "d2": "frozen encoder", "d3": "frozen", "d4": "head encoder"},
        ...     qrels={"train": {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}}},
        ... )
        >>> model = asymmetric_model(SentenceTransformer(modules=[BoW(["frozen", "encoder", "head"])]))
        >>> loss = CorpusContrastiveLoss(model, data.corpus, data.qrels["train"], temperature=1.0)
        >>> rows = data.labelled_queries("train")  # the trainer's data set: columns query and label
        >>> queries = {**model.preprocess(rows["query"]), "task": "query"}
        >>> {name: round(part.item(), 3) for name, part in loss([queries], torch.tensor(rows["label"])).items()}
        {'contrastive': 0.655}
    """

    def __init__(
        self,
        model: SentenceTransformer,
        corpus: Texts | Vectors,
        relevant: Relevant,
        *,
        unlabelled_weight: float = 0.1,
        negatives: Literal["corpus", "batch", "both"] = "corpus",
        ignored: Mapping[str, Iterable[str]] | None = None,
        temperature: float = 0.05,
        precision: Precision = "fp32",
        max_documents: int = 100_000,
        sampled_documents: int = 8192,
        hard_negatives: int = 16,
        refresh_steps: int = 50,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.unlabelled_weight = unlabelled_weight
        self.negatives = negatives
        self.temperature = temperature
        self.precision = precision
        self.max_documents = max_documents
        self.sampled_documents = sampled_documents
        self.hard_negatives = hard_negatives
        self.refresh_steps = refresh_steps
        self.chunk_size = chunk_size
        self._check_settings()
        self._corpus = Documents(model, corpus, keep=max_documents, precision=precision)
        self._relevance = Relevance(relevant, self._corpus.ids, ignored)
        self._in_batch: Any = MultipleNegativesRankingLoss(model, scale=1.0 / temperature)
        self._everything: Negatives | None = None
        self._sample: Sample | None = None
        self._hard: HardNegatives | None = None
        labelled = self._relevance.labelled
        counting = labelled.nonzero().flatten() if unlabelled_weight == 0 else None
        if negatives != "batch" and len(self._corpus) <= max_documents:
            those = slice(None) if counting is None else counting
            self._everything = Negatives(counting, self._relevance.weights(those, unlabelled_weight))
        elif negatives != "batch":
            self._sample = Sample(labelled, unlabelled_weight, sampled_documents)
            if hard_negatives:
                scans = {"size": hard_negatives, "refresh_steps": refresh_steps, "scanned": max_documents}
                self._hard = HardNegatives(self._relevance, self._corpus, counting, **scans)

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``{"contrastive": loss}``, of columns and labels as in the table above.

        Columns other than the queries are embedded only where some row has the label -1.
        """
        columns = list(sentence_features)
        # Asked of all processes: each must run the model equally often.
        if labels is not None and not total(int((labels < 0).sum())):
            columns = columns[:1]
        return self.compute_loss_from_embeddings([self.model(c)["sentence_embedding"] for c in columns], labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """:meth:`forward` from vectors: of each column a tensor of shape ``(batch, dimension)``, the queries first."""
        positions = self._checked_labels(labels, len(embeddings[0]))
        judged = positions >= 0
        rows, pairs = total(len(positions)), total(int((~judged).sum()))
        value = embeddings[0].new_zeros((), dtype=torch.float32)
        if rows > pairs:  # the processes step together, also one that has pairs alone
            queries, labels = embeddings[0][judged.to(embeddings[0].device)], positions[judged]
            with torch.autocast(queries.device.type, enabled=False):
                value = value + self._judged_loss(unit(queries), labels) * get_world_size() / rows
        if pairs:
            value = value + self._pair_loss(embeddings, ~judged) * (pairs / rows)
        if not torch.isfinite(value):
            raise ValueError(self._trouble(embeddings))
        return {"contrastive": value}

    def sample_documents(self, count: int) -> Tensor:
        """Documents of the corpus through the head as it is now, for a term such as that of :class:`IsotropyLoss`.

        Args:
            count: How many for each process; fewer where the corpus has fewer.

        Returns:
            Unit vectors of shape ``(count, dimension)``, with gradient, drawn anew from torch's generator; where
            gradients are off, always the same. Together, the processes hold what one would draw for all.
        """
        count = min(count, len(self._corpus) // get_world_size())
        drawn, _ = one_of_each(len(self._corpus), count * get_world_size())
        return self._corpus.project(self._corpus.take(drawn[get_rank() * count : (get_rank() + 1) * count]))

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as the trainer writes them into the model card."""
        config: dict[str, Any] = {"negatives": self.negatives}
        if self.negatives != "batch":
            config["unlabelled_weight"] = self.unlabelled_weight
        config |= {"temperature": self.temperature, "documents": len(self._corpus), "queries": len(self._relevance)}
        if self._sample is not None:
            names = ("max_documents", "sampled_documents", "hard_negatives", "refresh_steps")
            config |= {name: getattr(self, name) for name in names}
        return config

    @property
    def citation(self) -> str:
        """BibTeX of the papers that the loss is from."""
        return _CITATION if self._hard is None else _CITATION + HARD_NEGATIVES

    def _check_settings(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number above 0, got {self.temperature}.")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {self.precision!r}.")
        if self.negatives not in ("corpus", "batch", "both"):
            raise ValueError(f"negatives must be 'corpus', 'batch' or 'both', got {self.negatives!r}.")
        if not 0.0 <= self.unlabelled_weight <= 1.0:
            raise ValueError(f"unlabelled_weight must be from 0 to 1, got {self.unlabelled_weight}.")
        for name in ("max_documents", "sampled_documents", "hard_negatives", "refresh_steps", "chunk_size"):
            size, least = getattr(self, name), 0 if name == "hard_negatives" else 1
            if size is not None and size < least:
                raise ValueError(f"{name} must be at least {least}, got {size}.")

    def _checked_labels(self, labels: Tensor | None, rows: int) -> Tensor:
        if labels is None or labels.is_floating_point() or labels.shape != (rows,):
            found = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ValueError(
                f"CorpusContrastiveLoss needs an integer label per row, the position of its query in `relevant`, for "
                f"{rows} rows; it got {found}. RetrievalData.labelled_queries makes such a data set."
            )
        labels = labels.detach().cpu().long()
        wrong = labels[(labels < -1) | (labels >= len(self._relevance))].tolist()
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {rows} labels are no position in `relevant`, which has {len(self._relevance)} "
                f"queries, nor -1: {first_few(wrong, 3)}."
            )
        return labels

    def _judged_loss(self, queries: Tensor, labels: Tensor) -> Tensor:
        """Sum over the queries, unit vectors, each against its negatives."""
        self._corpus.check_frozen()
        hard = self._hard if torch.is_grad_enabled() else None
        if hard is not None:
            hard.step()
        queries = queries / self.temperature
        pairs = self._relevance.of(labels)
        if self._hard is not None:
            kept = self._hard.of(labels, self.unlabelled_weight)
            pairs = KnownPairs(*(torch.cat(parts) for parts in zip(pairs, kept, strict=True)))
        negatives, pairs = together(self._shared_negatives(labels), pairs)
        pairs = KnownPairs(*(part.to(queries.device) for part in pairs))
        sums, logits, similar, places = self._compare(queries, negatives, pairs, best=hard.size if hard else 0)
        if hard is not None and negatives.positions is not None:
            hard.update(labels, queries, negatives.positions[places.cpu()], similar)
        # The share of a positive among itself and the negatives, exp(logit) / (exp(logit) + exp(sum)).
        return -(logsigmoid(logits - sums[:, pairs.rows]) @ pairs.shares.to(logits)).mean()

    def _shared_negatives(self, labels: Tensor) -> list[Negatives]:
        """What all queries of the batch are compared with: the corpus, or a sample of it, and the batch's documents."""
        corpus = self._everything if self._sample is None else self._sample.draw()
        found = [] if corpus is None else [corpus]
        if self.negatives != "corpus":
            known = self._relevance.of(gather_rows(labels))
            positions = torch.unique(known.columns[known.shares > 0])
            found.append(Negatives(positions, torch.zeros(len(positions), dtype=torch.float64)))
        return found

    def _compare(
        self, queries: Tensor, negatives: Negatives, pairs: KnownPairs, *, best: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compare queries, unit vectors over the temperature, with documents, a chunk of documents at a time.

        The weights of ``negatives`` hold for all queries, and those of ``pairs`` override them for their own query.
        Hard negatives are of the first kind alone.

        Returns:
            For each query the log-sum-exp of its negatives of each kind, shape ``(kinds, n)``; the logits of the pairs,
            shape ``(pairs,)``; and for each query the largest logits of possible hard negatives, of each chunk at most
            ``best``, and their places among the negatives, both of shape ``(n, candidates)``.
        """
        corpus = self._corpus
        # Documents through a head that does not train are computed once.
        done = corpus.outputs() if negatives.positions is None and not corpus.trains else None
        inputs = corpus.take(negatives.positions) if done is None else done

        def compare_chunk(start: int, documents: Tensor, weights: Tensor, *pairs_of_chunk: Tensor) -> Any:
            pairs = KnownPairs(*pairs_of_chunk)
            own = pairs.rows, pairs.columns - start
            vectors = corpus.project(documents) if done is None else documents
            with corpus.autocast(queries):
                products = queries @ vectors.to(queries.dtype).T
            products = products.to(queries.dtype)
            logits = products[own]
            similar, places = products.new_empty(len(queries), 0), pairs.rows.new_empty(len(queries), 0)
            if best:
                candidates = products.detach().masked_fill(weights[0] <= NOTHING / 2, NOTHING)
                candidates[own] = logits.detach().masked_fill(~pairs.hard, NOTHING)
                similar, places = candidates.topk(min(best, len(documents)), dim=1)
            counted = products + weights[:, None]
            weighed = logits + pairs.weights.to(logits)
            for kind in range(len(weights)):
                which = ~pairs.hard if kind else slice(None)
                counted[kind, own[0][which], own[1][which]] = weighed[which]
            return counted.logsumexp(dim=2), logits, similar, places + start

        size = self.chunk_size or (_CPU_CHUNK if queries.device.type == "cpu" else _GPU_CHUNK)
        starts = range(0, len(inputs), size)
        counts = (pairs.columns // size).bincount(minlength=len(starts)).tolist()
        shared = torch.split(inputs, size), torch.split(negatives.weights.to(queries), size, dim=1)
        run: Callable[..., Any] = compare_chunk
        kinds = len(negatives.weights)
        graph = len(inputs) * (corpus.activations + (2 + kinds) * len(queries)) * queries.element_size()
        if self.chunk_size is not None or graph > _GRAPH_BYTES:
            run = partial(checkpoint, compare_chunk, use_reentrant=False)
        chunks = zip(starts, *shared, *(torch.split(part, counts) for part in pairs), strict=True)
        sums, logits, similar, places = zip(*(run(*chunk) for chunk in chunks), strict=True)
        return torch.stack(sums, 1).logsumexp(1), torch.cat(logits), torch.cat(similar, 1), torch.cat(places, 1)

    def _pair_loss(self, embeddings: list[Tensor], pairs: Tensor) -> Tensor:
        """Mean over rows without a corpus, against the documents of all such rows of the batch."""
        if len(embeddings) < 2:
            raise ValueError(
                f"{int(pairs.sum())} of {len(pairs)} rows have the label -1, for pairs without a corpus, but there is "
                "no document column to contrast them in."
            )
        columns = [gather_rows(column[pairs.to(column.device)]) for column in embeddings]
        value: Tensor = self._in_batch.compute_loss_from_embeddings(columns, None)
        world = get_world_size()
        # Every process has the same value, and its own rows' part of the gradient, which averaging would divide.
        return value * world - value.detach() * (world - 1)

    def _trouble(self, embeddings: list[Tensor]) -> str:
        for place, column in enumerate(embeddings):
            bad = (~torch.isfinite(column).all(dim=1)).nonzero().flatten().tolist()
            if bad:
                return (
                    f"{len(bad)} of {len(column)} vectors of column {place} are not finite, the first in row {bad[0]} "
                    "of the batch: a text without a sound vector, or heads that have diverged."
                )
        return "The document head gives vectors that are not finite: it has diverged. Lower the learning rate."
