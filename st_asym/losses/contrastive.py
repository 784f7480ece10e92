"""Every relevant document of a query against the whole corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import get_world_size
from torch import Tensor, nn

from st_asym.cache.filling import Precision, has_bfloat16
from st_asym.isotropy import unit
from st_asym.losses.comparison import Run, at_once, compare, sum_over_positives, twice
from st_asym.losses.corpus import Corpus, Texts, Vectors
from st_asym.losses.hard_negatives import HardNegatives, hardest
from st_asym.losses.processes import gather_rows, total
from st_asym.losses.relevance import Relevance, Relevant

# Documents that go through the head at once: a processor is fastest where they stay in its cache.
_CPU_CHUNK, _GPU_CHUNK = 1024, 16_384
# What the graph of one step may take before its chunks are computed again in the backward pass.
_GRAPH_BYTES = 1 << 30
# Without a gradient, chunks may be larger.
_SCAN_CHUNK = 4096

_Candidates = list[tuple[Tensor, Tensor]]
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
_HARD_CITATION = """
@misc{xiong2020approximate,
    title={Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval},
    author={Lee Xiong and Chenyan Xiong and Ye Li and Kwok-Fung Tang and Jialin Liu and Paul Bennett and Junaid Ahmed
        and Arnold Overwijk},
    year={2020},
    eprint={2007.00808},
    archivePrefix={arXiv},
    primaryClass={cs.IR}
}
"""


class CorpusContrastiveLoss(nn.Module):
    r"""Contrast every relevant document of a query with all documents of the corpus that are not relevant to it.

    For query i with relevant documents P_i, grades g and cosine similarities s at temperature t:

        loss_i = sum_{p in P_i} w_ip * -log( exp(s_ip / t) / (exp(s_ip / t) + sum_{n not in P_i} exp(s_in / t)) )

    with w_ip = g_ip / sum_p g_ip, and the mean over the queries of the batch. It is InfoNCE (van den Oord et al. 2018,
    https://arxiv.org/abs/1807.03748) with the sum over positives outside the logarithm, as in Supervised Contrastive
    Learning (Khosla et al. 2020, https://arxiv.org/abs/2004.11362), but with the other positives left out of the
    denominator, so that a relevant document is never a negative. A query to which every document is relevant has no
    negatives: its loss is 0.

    The corpus comes as vectors before the heads, made once, and goes through the document head as it is now: no encoder
    runs, and the gradient reaches both heads. Where the document side does not train, it is computed once.

    Memory: the graph of a step is kept up to about a gigabyte; beyond that, or with ``chunk_size``, chunks of documents
    are computed again in the backward pass, with the same gradient. A corpus of more than ``max_documents`` is not
    compared in full: each step takes its positives, the ``hard_negatives`` hardest known negatives of each query, and a
    fresh sample of ``sampled_documents``, one from each of as many equal stretches of the corpus. A sampled document
    counts as often as its stretch has documents (the weights of Horvitz and Thompson 1952), less those that the query
    has among its positives and hard negatives, so that the sum over negatives is estimated without bias; its logarithm
    is then, on average, a little too low. Hard negatives are counted exactly as they dominate the sum and a sample
    rarely meets them. They are renewed, as in ANCE (Xiong et al. 2020, https://arxiv.org/abs/2007.00808), from each
    sample, and every ``refresh_steps`` steps by a scan of the next ``max_documents`` documents for the queries seen
    since the last one.

    Under several processes each has its own queries, and the mean of the losses and of the gradients over processes is
    what one process gives for the whole batch, also where they hold unequal numbers of rows. The first draws the sample
    for all, from torch's generator, and hard negatives are shared, so the number of processes changes neither. A
    resumed run finds its hard negatives anew.

    Args:
        model: The model to train, with a frozen encoder: an :func:`st_asym.asymmetric_model`, or a
            :class:`st_asym.CachedSentenceTransformer` of one.
        corpus: Document id to text, with the model's prompt for documents; or a pair of ids and the encoder's vectors,
            an array of shape ``(n, d)``. Above ``max_documents`` texts need a ``CachedSentenceTransformer``, and are
            looked up in each step; an array stays where it is, which may be a ``numpy.memmap`` of any size.
        relevant: Query id to document id to grade, or to the ids of its relevant documents. Documents with a grade of
            zero or less are negatives like all others.
        ignored: Query id to the ids of documents that are not known to be relevant, nor that they are not, such as
            judgments that were held out: they are left out of the negatives of that query.
        temperature: Divides the similarities.
        precision: ``"bf16"`` runs the document head and the similarities in bfloat16 where the processor has it, which
            takes a third of the time for the same result on held-out queries. Sums and the loss are float32 anyway.
        max_documents: The largest corpus that is compared in full, and how many documents a scan covers.
        sampled_documents: Documents that are drawn in each step from a larger corpus.
        hard_negatives: Hard negatives of each query in a larger corpus.
        refresh_steps: Steps from one scan to the next.
        chunk_size: Documents that go through the head at once, computed again in the backward pass. None keeps the
            graph while it is small.

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
        ...     corpus={"d1": "frozen head", "d2": "frozen encoder", "d3": "frozen"},
        ...     qrels={"train": {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}}},
        ... )
        >>> model = asymmetric_model(SentenceTransformer(modules=[BoW(["frozen", "encoder", "head"])]))
        >>> loss = CorpusContrastiveLoss(model, data.corpus, data.qrels["train"], temperature=1.0)
        >>> rows = data.labelled_queries("train")  # the trainer's data set: columns query and label
        >>> queries = {**model.preprocess(rows["query"]), "task": "query"}
        >>> {name: round(part.item(), 3) for name, part in loss([queries], torch.tensor(rows["label"])).items()}
        {'contrastive': 0.592}
    """

    def __init__(
        self,
        model: SentenceTransformer,
        corpus: Texts | Vectors,
        relevant: Relevant,
        *,
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
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number above 0, got {temperature}.")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}.")
        sizes = {
            "max_documents": max_documents,
            "sampled_documents": sampled_documents,
            "hard_negatives": hard_negatives,
            "refresh_steps": refresh_steps,
            "chunk_size": chunk_size,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        self.model = model
        self.temperature = temperature
        self.precision = precision
        self.max_documents = max_documents
        self.sampled_documents = sampled_documents
        self.hard_negatives = hard_negatives
        self.refresh_steps = refresh_steps
        self.chunk_size = chunk_size
        self._corpus = Corpus(model, corpus, keep=max_documents)
        self._relevance = Relevance(relevant, self._corpus.ids, ignored)
        self._in_batch: Any = MultipleNegativesRankingLoss(model, scale=1.0 / temperature)
        self._hard = HardNegatives(self._relevance, hard_negatives) if len(self._corpus) > max_documents else None
        self._steps = self._scanned = 0

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Embed the queries, and the other columns where rows without a corpus need them.

        Args:
            sentence_features: One dict of model inputs per column, the queries first.
            labels: Positions of the queries in ``relevant``, -1 for rows without a corpus.

        Returns:
            ``{"contrastive": loss}``.
        """
        columns = list(sentence_features)
        # Asked of all processes: each must run the model equally often.
        if labels is not None and not total(int((labels < 0).sum()), labels.device):
            columns = columns[:1]
        return self.compute_loss_from_embeddings([self.model(c)["sentence_embedding"] for c in columns], labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The same from vectors that were computed before.

        Args:
            embeddings: One tensor of shape ``(batch, dimension)`` per column, the queries first.
            labels: As for :meth:`forward`.

        Returns:
            The parts, as :meth:`forward` returns them.
        """
        positions = self._checked_labels(labels, len(embeddings[0]))
        device = embeddings[0].device
        judged = positions >= 0
        rows = total(len(positions), device)
        pairs = total(int((~judged).sum()), device)
        with torch.autocast(device.type, enabled=False):
            queries = unit(embeddings[0])
        value = queries.new_zeros(())
        if rows > pairs:
            # Its processes step together, also one that has pairs alone.
            compare = self._against_all if self._hard is None else self._against_sample
            value = value + get_world_size() * compare(queries[judged.to(device)], positions[judged]) / rows
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
            Unit vectors of shape ``(count, dimension)``, with gradient, drawn anew from torch's generator. Together,
            the processes hold what one would draw for all.
        """
        world = get_world_size()
        count = min(count, len(self._corpus) // world)
        documents, _ = self._draw(count * world)
        rank = torch.distributed.get_rank() if world > 1 else 0
        return self._project(self._corpus.take(documents[rank * count : (rank + 1) * count]))

    def known_hard_negatives(self, labels: Tensor) -> Tensor:
        """The hardest negatives that were found so far in a corpus that is sampled.

        Args:
            labels: Positions of queries in ``relevant``, shape ``(n,)``.

        Returns:
            Positions of documents in the corpus, the hardest first, shape ``(n, hard_negatives)``, -1 where there are
            none; ``(n, 0)`` for a corpus that is compared in full.
        """
        return torch.empty(len(labels), 0, dtype=torch.int64) if self._hard is None else self._hard.of(labels.cpu())

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as the trainer writes them into the model card."""
        config = {"temperature": self.temperature, "documents": len(self._corpus), "queries": len(self._relevance)}
        if self._hard is not None:
            names = ("max_documents", "sampled_documents", "hard_negatives", "refresh_steps")
            config |= {name: getattr(self, name) for name in names}
        return config

    @property
    def citation(self) -> str:
        """BibTeX of the papers that the loss is from."""
        return _CITATION if self._hard is None else _CITATION + _HARD_CITATION

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
                f"queries, nor -1: {', '.join(map(str, wrong[:3]))}{', ...' if len(wrong) > 3 else ''}."
            )
        return labels

    def _against_all(self, queries: Tensor, labels: Tensor) -> Tensor:
        """Sum over the queries, each against the whole corpus."""
        corpus = self._corpus
        corpus.check_frozen()
        rows, columns, weights = self._relevance.of(labels)
        documents, project = (corpus.take, self._project) if corpus.trains else (corpus.outputs().__getitem__, None)
        found = compare(
            queries / self.temperature,
            documents,
            *self._plan(len(corpus), queries),
            rows,
            columns,
            project=project,
            reduced=self._reduced(queries),
        )
        return sum_over_positives(found.sums, found.pairs, rows, weights)

    def _against_sample(self, queries: Tensor, labels: Tensor) -> Tensor:
        """Sum over the queries, each against its hard negatives and a sample that stands for the rest."""
        corpus, known = self._corpus, self._hard
        assert known is not None  # noqa: S101 - large corpora have them
        corpus.check_frozen()
        learns = torch.is_grad_enabled()
        if learns:
            self._steps += 1
            if self._steps % self.refresh_steps == 0:
                self._scan(known)
        rows, columns, weights = self._relevance.of(labels)
        hard = known.of(labels)
        there = hard >= 0
        distinct, places = torch.unique(torch.cat([columns, hard.clamp(min=0).flatten()]), return_inverse=True)
        before = corpus.take(distinct)
        stretches, run = self._plan(len(distinct), queries)
        vectors = torch.cat([run(self._project, before[start:stop]) for start, stop in stretches])
        with torch.autocast(queries.device.type, enabled=False):
            scaled, places = queries / self.temperature, places.to(queries.device)
            positives = (scaled[rows.to(queries.device)] * vectors[places[: len(rows)]]).sum(dim=1)
            logits = torch.einsum("qd,qhd->qh", scaled, vectors[places[len(rows) :].view(hard.shape)])
            logits = logits.masked_fill(~there.to(logits.device), torch.finfo(logits.dtype).min)

        sample, stands_for = self._draw(self.sampled_documents)
        # What a query has already must not count again where it is drawn.
        own_rows, own = torch.cat([rows, there.nonzero()[:, 0]]), torch.cat([columns, hard[there]])
        drawn = torch.searchsorted(sample, own).clamp(max=len(sample) - 1)
        again = sample[drawn] == own
        rest = compare(
            queries / self.temperature,
            corpus.take(sample).__getitem__,
            *self._plan(len(sample), queries),
            own_rows[again],
            drawn[again],
            project=self._project,
            stands_for=stands_for,
            best=known.size,
            reduced=self._reduced(queries),
        )
        if learns:
            sampled = sample.to(queries.device)[rest.places]
            self._learn_hard(known, labels, queries, [(hard.to(sampled), logits.detach()), (sampled, rest.logits)])
        negatives = torch.cat([rest.sums[:, None], logits], dim=1).logsumexp(dim=1)
        return sum_over_positives(negatives, positives, rows, weights)

    def _project(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, torch.bfloat16, enabled=self._reduced(vectors)):
            return self._corpus.project(vectors)

    def _reduced(self, vectors: Tensor) -> bool:
        """Whether matrix products are computed in bfloat16."""
        return self.precision == "bf16" and vectors.dtype == torch.float32 and has_bfloat16(vectors.device)

    def _plan(self, documents: int, queries: Tensor) -> tuple[list[tuple[int, int]], Run]:
        """Chunks of documents, and what calls a function of one: now, or again in the backward pass."""
        size = self.chunk_size or (_CPU_CHUNK if queries.device.type == "cpu" else _GPU_CHUNK)
        stretches = [(start, min(start + size, documents)) for start in range(0, documents, size)]
        graph = documents * (self._corpus.activations + 3 * len(queries)) * queries.element_size()
        return stretches, at_once if self.chunk_size is None and graph <= _GRAPH_BYTES else twice

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        """One document from each of ``count`` equal stretches of the corpus, and how many documents it stands for.

        The same on every process. The draws come from torch's CPU generator, whose state the trainer saves with each
        checkpoint.
        """
        count = min(count, len(self._corpus))
        draws = torch.rand(count, dtype=torch.float64)
        if get_world_size() > 1:
            shared = draws.to(self._corpus.device)
            torch.distributed.broadcast(shared, src=0)
            draws = shared.cpu()
        bounds = torch.arange(count + 1) * len(self._corpus) // max(count, 1)
        sizes = bounds.diff()
        return bounds[:-1] + (draws * sizes).long(), sizes

    def _learn_hard(self, known: HardNegatives, labels: Tensor, queries: Tensor, candidates: _Candidates) -> None:
        """Keep the hardest of this step's candidates, of the queries of all processes."""
        documents, logits = (torch.cat(tensors, dim=1) for tensors in zip(*candidates, strict=True))
        logits = logits.masked_fill(logits <= torch.finfo(logits.dtype).min / 2, -torch.inf)
        documents, similarities = hardest(documents, logits * self.temperature, known.size)
        own = (labels.to(queries.device), queries.detach(), documents, similarities)
        known.update(*(gather_rows(tensor).cpu() for tensor in own))

    @torch.no_grad()
    def _scan(self, known: HardNegatives) -> None:
        """Look through the next stretch of the corpus, each process through its share."""
        rank, world = (torch.distributed.get_rank(), get_world_size()) if get_world_size() > 1 else (0, 1)
        known.scan(self._scan_chunks(rank, world))
        self._scanned = (self._scanned + self.max_documents) % len(self._corpus)

    def _scan_chunks(self, rank: int, world: int) -> Iterator[tuple[int, Tensor]]:
        end = self._scanned + self.max_documents
        stretches = [(self._scanned, min(end, len(self._corpus))), (0, max(0, end - len(self._corpus)))]
        for begin, stop in stretches:
            for start in range(begin + rank * _SCAN_CHUNK, stop, world * _SCAN_CHUNK):
                vectors = self._corpus.take(slice(start, min(start + _SCAN_CHUNK, stop)))
                yield start, self._project(vectors)

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
