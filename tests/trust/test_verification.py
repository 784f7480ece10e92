"""A saved model is checked unloaded: whole, finite, stock, on its own encoder, or an error that says why."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import FINE, Fuzz
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from st_asym import (
    Settings,
    VerificationError,
    asymmetric_model,
    attach_heads,
    fit,
    save_heads,
    save_provenance,
    verify,
)
from st_asym.cli import app
from st_asym.trust.folder import parsed

Change = Callable[[Path], Any]


def trained(encoder: SentenceTransformer, **options: Any) -> SentenceTransformer:
    model = asymmetric_model(encoder, **options)
    for parameter in model[-2].parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def bare(tmp_path: Path, tiny_encoder: SentenceTransformer) -> Path:
    """A saved model that does not say what made it."""
    trained(tiny_encoder).save_pretrained(str(tmp_path / "bare"))
    return tmp_path / "bare"


@pytest.fixture
def sealed(tmp_path: Path, tiny_encoder: SentenceTransformer) -> Path:
    """A saved model that does."""
    model = trained(tiny_encoder)
    model.save_pretrained(str(tmp_path / "sealed"))
    save_provenance(tmp_path / "sealed", model, settings={"epochs": 3}, seed=1)
    return tmp_path / "sealed"


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def tensors(path: Path, **changed: torch.Tensor) -> None:
    save_file({**load_file(path), **changed}, path)


def safetensors(path: Path, *places: tuple[int, int], rest: int) -> None:
    """A file of tensors of one value each, where they are said to be, and so many bytes behind the header."""
    entries = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": place} for name, place in zip("ab", places, strict=True)
    }
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(rest))


def swap_heads(folder: Path) -> None:
    for query in sorted((folder / "3_Router").glob("query_*")):
        document = query.with_name(query.name.replace("query", "document"))
        query.rename(folder / "aside")
        document.rename(query)
        (folder / "aside").rename(document)


def swap_structure(folder: Path) -> None:
    def swap(router: Any) -> None:
        structure = router["structure"]
        router["structure"] = {"query": structure["document"], "document": structure["query"]}

    edit(folder / "3_Router" / "router_config.json", swap)


QUERY = "3_Router/query_0_Dense"


def test_a_saved_model_passes_and_says_what_it_is(bare: Path, sealed: Path) -> None:
    found = verify(sealed)
    assert (found.kind, found.dimension, found.heads) == ("model", 16, {"query": (16, 16), "document": (16, 16)})
    assert found.modules == ("Transformer", "Pooling", "Normalize", "Router", "Normalize")
    assert found.provenance is not None
    assert found.provenance.seed == 1
    assert found.notes == ()
    assert "All digests fit" in str(found)
    assert verify(bare).provenance is None
    assert "exchanged weights of the two heads cannot be told" in str(verify(bare))


@pytest.mark.parametrize(
    "options", [{"document": False}, {"shared": True}, {"hidden_features": None}, {"out_features": 8}], ids=str
)
def test_every_shape_of_heads_passes(tmp_path: Path, tiny_encoder: SentenceTransformer, options: Any) -> None:
    model = trained(tiny_encoder, **options)
    model.save_pretrained(str(tmp_path / "model"))
    save_provenance(tmp_path / "model", model)
    assert verify(tmp_path / "model").dimension == options.get("out_features", 16)


@pytest.mark.parametrize("ending", ["pooling", "normalize", "dense"])
def test_an_encoder_passes(tmp_path: Path, make_encoder: Callable[..., SentenceTransformer], ending: str) -> None:
    make_encoder(ending).save_pretrained(str(tmp_path / "encoder"))
    found = verify(tmp_path / "encoder")
    assert (found.kind, found.dimension) == ("encoder", 12 if ending == "dense" else 16)


@pytest.mark.parametrize("system", ["iso_pred", "respred"])
def test_the_finished_models_of_the_systems_pass(
    tmp_path: Path, tiny_encoder: SentenceTransformer, system: str
) -> None:
    from experiment.systems import get_system

    kind = get_system(system)
    kind.finish(kind.build(tiny_encoder)).save_pretrained(str(tmp_path / "model"))
    assert verify(tmp_path / "model").kind == "model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: tensors(f / QUERY / "model.safetensors", **{"linear.bias": torch.full((32,), torch.nan)}), "finite"),
        (lambda f: tensors(f / "model.safetensors", more=torch.tensor([torch.inf]).bfloat16()), "'more' .* not finite"),
        (lambda f: tensors(f / QUERY / "model.safetensors", **{"linear.bias": torch.zeros(3)}), r"\(3,\).* asks for"),
        (lambda f: tensors(f / QUERY / "model.safetensors", more=torch.zeros(3)), "shapes"),
        (lambda f: (f / QUERY / "model.safetensors").unlink(), "is missing"),
        (lambda f: (f / QUERY / "pytorch_model.bin").write_bytes(pickle.dumps(1)), "may hold a pickle"),
        (lambda f: (f / "training_args.bin").write_bytes(b"1"), "is the trainer's, and a pickle.* remove it"),
        (lambda f: (f / "modeling.py").write_text("1"), "is code"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "loads another model"),
        (lambda f: (f / "notes.yaml").write_text("1"), "no kind of file"),
        (lambda f: (f / "more.json").symlink_to(f / "config.json"), "is a link to"),
        (lambda f: edit(f / "modules.json", lambda m: m[1].update(path="../other")), "leads out of the folder"),
        (lambda f: edit(f / "modules.json", lambda m: m[1].update(path="/etc")), "leads out of the folder"),
        (lambda f: edit(f / "modules.json", lambda m: m[4].update(type="os.system")), "no stock module"),
        (lambda f: edit(f / "modules.json", lambda m: m[:-1]), "model with heads is"),
        (lambda f: edit(f / "modules.json", lambda m: m[3:]), "model with heads is"),
        (
            lambda f: edit(f / "modules.json", lambda m: [*m[:3], {**m[3], "name": "x"}, *m[3:]]),
            "model with heads is",
        ),
        (
            lambda f: edit(
                f / "3_Router" / "router_config.json", lambda r: r["parameters"].update(route_mappings={1: 2})
            ),
            "other ways than by their names",
        ),
        (
            lambda f: edit(f / "config_sentence_transformers.json", lambda c: c.update(truncate_dim=0)),
            "truncates vectors to 0",
        ),
        (
            lambda f: edit(f / "config_sentence_transformers.json", lambda c: c.update(default_prompt_name="x")),
            "default prompt that is not among",
        ),
        (lambda f: edit(f / "tokenizer_config.json", lambda c: c.update(vocab_file="~")), "leads out"),
        (lambda f: (f / QUERY / "st_asym_x.json").write_text("{"), "not JSON that can be trusted"),
        (lambda f: safetensors(f / "model.safetensors", (0, 4), (8, 12), rest=12), "invalid offset for tensor `b`"),
        (lambda f: safetensors(f / "model.safetensors", (0, 4), (0, 4), rest=4), "invalid offset for tensor"),
        (lambda f: safetensors(f / "model.safetensors", (0, 4), (4, 8), rest=12), "file not fully covered"),
        (lambda f: edit(f / "config.json", lambda c: c.update(auto_map={"AutoModel": "x.Y"})), "code of its own"),
        (lambda f: edit(f / "tokenizer_config.json", lambda c: c.update(vocab_file="/etc/passwd")), "leads out"),
        (lambda f: edit(f / "config.json", lambda c: c.update(hidden_size=32)), "what comes before it gives 32"),
        (lambda f: edit(f / QUERY / "config.json", lambda c: c.update(activation_function="os.system")), "activation"),
        (
            lambda f: edit(f / "config_sentence_transformers.json", lambda c: c.update(similarity_fn_name="dot")),
            "cosin",
        ),
        (lambda f: edit(f / "config_sentence_transformers.json", lambda c: c.update(model_type="CrossEncoder")), "own"),
        (swap_structure, "routes are swapped"),
        (lambda f: (f / "modules.json").write_text("[" * 100_000), "nested too deeply"),
        (lambda f: (f / "config.json").write_bytes(b" " * (3 << 20)), "bytes long"),
        (lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 63)), "ends within its header"),
    ],
)
def test_what_is_wrong_is_named_without_a_record(bare: Path, change: Change, message: str) -> None:
    change(bare)
    with pytest.raises(VerificationError, match=message) as error:
        verify(bare)
    assert len(error.value.findings) <= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_heads, "queries and documents are swapped"),
        (
            lambda f: tensors(f / "model.safetensors", **{"embeddings.word_embeddings.weight": torch.zeros(17, 16)}),
            "trained on another encoder",
        ),
        (
            lambda f: tensors(f / QUERY / "model.safetensors", **{"linear.bias": torch.ones(32)}),
            "another query head than there is",
        ),
        (lambda f: edit(f / "tokenizer.json", lambda t: t.update(normalizer=None)), "tokenizer.json: is not what was"),
        (lambda f: (f / "added_tokens.json").write_text('{"head": 3}'), "was not there"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "is missing"),
        (lambda f: edit(f / "st_asym.json", lambda p: p.update(files={"a": "b"})), "is damaged"),
        (lambda f: edit(f / "st_asym.json", lambda p: p.update(trained={"key": "no"})), r"is damaged \(trained\)"),
        (lambda f: edit(f / "st_asym.json", lambda p: p.update(format=2)), "not in format 1"),
        (lambda f: edit(f / "st_asym.json", lambda p: p["encoder"].update(dimension=32)), "another encoder's"),
    ],
)
def test_any_change_is_seen_with_a_record(sealed: Path, change: Change, message: str) -> None:
    change(sealed)
    with pytest.raises(VerificationError, match=message):
        verify(sealed)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_what_is_not_finite_is_seen_in_every_type(
    tmp_path: Path, bare: Path, tiny_encoder: SentenceTransformer, dtype: torch.dtype, value: float
) -> None:
    heads = save_heads(trained(tiny_encoder), tmp_path / "heads")
    largest = torch.full((32,), 65504.0, dtype=dtype)
    for file in (bare / QUERY / "model.safetensors", heads / "query_0_Dense" / "model.safetensors"):
        (heads / "st_asym.json").unlink(missing_ok=True)
        folder = heads if heads in file.parents else bare
        tensors(file, **{"linear.bias": largest})
        verify(folder)
        tensors(file, **{"linear.bias": torch.cat([largest[1:], torch.tensor([value], dtype=dtype)])})
        with pytest.raises(VerificationError, match=r"'linear\.bias' has values that are not finite"):
            verify(folder)


def test_an_encoder_in_several_files_passes_if_all_are_there(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    folder, network = tmp_path / "model", tiny_encoder.transformers_model
    trained(tiny_encoder).save_pretrained(str(folder))
    (folder / "model.safetensors").unlink()
    assert network is not None
    network.save_pretrained(folder, max_shard_size="4KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert verify(folder).heads == {"query": (16, 16), "document": (16, 16)}
    shards[0].unlink()
    with pytest.raises(VerificationError, match=r"index\.json: names 'model-00001.* no safetensors file beside it"):
        verify(folder)


def test_documents_may_change(sealed: Path) -> None:
    (sealed / "README.md").write_text("another card")
    (sealed / "gain.png").write_bytes(b"a picture")
    (sealed / "st_asym_report.json").write_text("{}")
    (sealed / ".cache").mkdir()
    (sealed / ".cache" / "left.bin").write_bytes(b"by a download")
    verify(sealed)


def test_an_evaluation_in_the_folder_is_no_part_of_the_model(sealed: Path) -> None:
    results = sealed / "evaluation" / "results"
    results.mkdir(parents=True)
    (results / "scores.json").write_text("{}")
    (sealed / "evaluation" / "log.txt").write_text("what was done")
    (sealed / "evaluation" / "asked.json").write_text("{}")
    verify(sealed)
    (sealed / "results").mkdir()
    (sealed / "results" / "scores.json").write_text("{}")  # anywhere else it is
    with pytest.raises(VerificationError, match="was not there when"):
        verify(sealed)


def test_all_findings_come_at_once(bare: Path) -> None:
    (bare / "a.py").write_text("1")
    (bare / "b.bin").write_text("1")
    (bare / "modules.json").write_text("{}")
    with pytest.raises(VerificationError) as error:
        verify(bare)
    assert len(error.value.findings) == 3
    assert "3 findings" in str(error.value)


def test_a_snapshot_of_the_hub_cache_has_links_to_its_blobs(tmp_path: Path, bare: Path) -> None:
    home = tmp_path / "models--someone--model"
    snapshot, blobs = home / "snapshots" / ("a" * 40), home / "blobs"
    shutil.copytree(bare, snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in snapshot.rglob("*") if p.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert verify(snapshot).kind == "model"
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(bare / "config.json")
    with pytest.raises(VerificationError, match="is a link to"):
        verify(snapshot)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        verify(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        verify(tmp_path / "file")
    with pytest.raises(VerificationError, match=r"modules\.json: is missing"):
        verify(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        "[NaN]",
        "[Infinity]",
        "[1e999]",
        "[" + "1" * 30 + "]",
        "[" * 70 + "1" + "]" * 70,
        "{",
        "\xff",
    ],
)
def test_json_that_parsers_disagree_on_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parsed(text.encode("latin-1"))


def test_a_tokenizer_that_cuts_nothing_off_passes(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    tiny_encoder.tokenizer.model_max_length = int(1e30)  # as transformers has it where there is no limit
    model = trained(tiny_encoder)
    model.save_pretrained(str(tmp_path / "model"))
    save_provenance(tmp_path / "model", model)
    assert verify(tmp_path / "model").kind == "model"
    attached = attach_heads(tiny_encoder, save_heads(model, tmp_path / "heads"))
    assert (attached.encode_query("red head") == model.encode_query("red head")).all()
    with pytest.raises(ValueError, match="a number of 31 digits"):
        parsed(str(int(1e30) + 1).encode())


def test_the_command_lists_findings_and_its_exit_code_tells(bare: Path, sealed: Path) -> None:
    good = CliRunner().invoke(app, ["verify", str(sealed)])
    assert good.exit_code == 0, good.output
    assert "whole, finite and stock" in good.output
    (bare / "a.py").write_text("1")
    bad = CliRunner().invoke(app, ["verify", str(bare)])
    assert bad.exit_code == 1
    assert "a.py: is code" in bad.output
    assert CliRunner().invoke(app, ["verify", str(bare / "nothing")]).exit_code == 2


def test_what_fit_saves_passes(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    pairs = [("red head", "big red head"), ("small text", "the small text"), ("query", "answers query")]
    options = {
        "settings": Settings(epochs=1, temperature=0.05),
        "cache": tmp_path / "vectors",
        "show_progress_bar": False,
    }
    fit(tiny_encoder, pairs, output_dir=tmp_path / "model", seed=3, **options)  # type: ignore[arg-type]
    provenance = verify(tmp_path / "model").provenance
    assert provenance is not None
    assert (provenance.seed, provenance.settings["temperature"]) == (3, 0.05)
    assert provenance.data["list"]["corpus"]["documents"] == 3
    assert str(tmp_path) not in (tmp_path / "model" / "st_asym.json").read_text()
    assert provenance.trained["queries"] == 3


@pytest.mark.parametrize("cases", [range(40), pytest.param(range(40, 200), marks=pytest.mark.slow)], ids=str)
def test_a_slice_of_the_fuzzing(tmp_path: Path, cases: range) -> None:
    rows = Fuzz(tmp_path).run(cases, seed=1)
    assert len(rows) == len(cases)
    assert [row for row in rows if row["outcome"] not in FINE] == []


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("config.json", {"transformers_weights": "w.safetensors.index.json"}, "names its weights"),
        ("config.json", {"attribute_map": {"transformers_weights": "x"}, "x": "a/b"}, "gives entries other names"),
        ("config.json", {"text_config": {"attn_implementation": {"": "any/kernel"}}}, "attn_implementation is code on"),
        ("config.json", {"_experts_implementation": "any/kernel@v1"}, "_experts_implementation is code on the Hub"),
        ("generation_config.json", {"allow_all_kernels": True}, "runs code of anybody"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["a", "../x/tokenizer.4.json"]}, "tokenizer_files leads"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.json.md"]}, "leads out of the model's own"),
        ("more.json", {"weight_map": {"a": "notes.txt"}}, "names 'notes.txt', which is no safetensors file"),
        ("model.safetensors.index.x.json", {"weight_map": {"a": "runs/a.bin"}}, "names 'runs/a.bin', which is no"),
        ("sentence_bert_config.json", {"model_kwargs": {"weights_only": False}}, r"has model_kwargs\.weights_only"),
        ("sentence_bert_config.json", {"model_args": {"variant": "x"}}, r"has model_args\.variant"),
        ("sentence_bert_config.json", {"model_kwargs": {"dtype": "a/b"}}, r"has model_kwargs\.dtype"),
        ("sentence_bert_config.json", {"config_args": {"_configuration_file": "NOTES.md"}}, "has config_args"),
        ("sentence_bert_config.json", {"processor_kwargs": []}, "has processor_kwargs"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "other"}, "has tokenizer_name_or_path"),
        ("sentence_bert_config.json", {"transformer_task": ["retrieval"]}, "has transformer_task"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "save_pretrained"}}},
            "has modality_conf",
        ),
        ("sentence_xlm-roberta_config.json", {"cache_dir": "other"}, "has cache_dir"),
    ],
)
def test_loading_is_not_led_to_files_that_are_not_checked(
    bare: Path, name: str, entries: dict[str, Any], message: str
) -> None:
    path = bare / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **entries}))
    with pytest.raises(VerificationError, match=message):
        verify(bare)


def test_heads_alone_have_no_modules(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    heads = save_heads(trained(tiny_encoder), tmp_path / "heads")
    (heads / "modules.json").write_text('[{"name": "0", "path": "", "type": "other.Module"}]')
    with pytest.raises(VerificationError, match=r"modules\.json: makes a model of what st_asym\.json calls heads"):
        verify(heads)


@pytest.mark.parametrize(
    "entries",
    [
        {"model_kwargs": {"dtype": "float16", "attn_implementation": "sdpa", "add_pooling_layer": False}},
        {"model_args": {"torch_dtype": "auto"}, "tokenizer_args": {"model_max_length": 8}, "config_args": {}},
        {"max_seq_length": None, "do_lower_case": True, "processing_kwargs": {"text": {"max_length": 6}}},
    ],
    ids=str,
)
def test_settings_that_lead_nowhere_pass(bare: Path, entries: dict[str, Any]) -> None:
    edit(bare / "sentence_bert_config.json", lambda settings: settings.update(entries))
    verify(bare)
    SentenceTransformer(str(bare), device="cpu").encode_query("red head")


def test_a_type_that_cannot_be_checked_is_not_called_damaged(bare: Path) -> None:
    path = bare / QUERY / "model.safetensors"
    tensors(path, **{"linear.bias": load_file(path)["linear.bias"].to(torch.float8_e4m3fn)})
    with pytest.raises(
        VerificationError, match=r"'linear.bias' is of type F8_E4M3, .* Save the model in float32"
    ) as error:
        verify(bare)
    assert "no whole" not in str(error.value)
