"""Small encoders for the tests of the cache, and processes to run in beside them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
VOCABULARY += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


def save_tiny_bert(path: Path, seed: int = 0) -> Path:
    """A random two-layer BERT with a small WordPiece tokenizer, as transformers saves it."""
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    ).save_pretrained(path)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(path)
    return path


def tiny_bert(path: Path) -> SentenceTransformer:
    """A sentence encoder of 32 dimensions around the model in ``path``."""
    transformer = Transformer(str(path))
    return SentenceTransformer(modules=[transformer, Pooling(32), Normalize()], device="cpu")


def python(code: str, *, nobody: bool = False) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, as a user who may write nothing if asked."""
    # What is imported must be so before: the interpreter may lie where only root can read.
    load = "import os, lmdb, numpy, st_asym.cache, tempfile; lmdb.open(tempfile.mkdtemp()).close()\n"
    drop = f"{load}os.setgid(65534); os.setuid(65534)\n"
    prefix = drop if nobody and os.getuid() == 0 else ""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
    }
    return subprocess.run(
        [sys.executable, "-c", prefix + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
