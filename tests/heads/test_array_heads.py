"""Heads applied to arrays give the model's vectors, with numpy alone, however many come at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from torch import nn

from st_asym import AsymmetricProjection, Heads, asymmetric_model, attach_heads, save_heads
from st_asym.heads.array_heads import Layer

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "none": nn.Identity}
DIMENSION = 12


def vectors(count: int = 5, dimension: int = DIMENSION, seed: int = 0) -> Any:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def shaken(router: Router) -> Router:
    for parameter in router.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return router


def by_torch(router: Router, x: Any, side: str) -> Any:
    with torch.no_grad():
        features = router({"sentence_embedding": torch.from_numpy(np.array(x))}, task=side)
        return Normalize()(features)["sentence_embedding"].numpy()


def saved(tmp_path: Path, router: Router) -> Path:
    folder = tmp_path / "heads"
    folder.mkdir()
    router.save(str(folder))
    return folder


def random_layers(dimension: int, activation: str = "ReLU", seed: int = 0) -> tuple[Layer, ...]:
    random = np.random.default_rng(seed)
    first, second = random.standard_normal((2 * dimension, dimension)), random.standard_normal((7, 2 * dimension))
    return (
        Layer(first.astype(np.float32), random.standard_normal(2 * dimension).astype(np.float32), activation),
        Layer(second.astype(np.float32), np.full(7, 0.1, np.float32)),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_kind_of_dense_is_that_of_the_library(tmp_path: Path, activation: str, bias: bool) -> None:
    made: dict[str, Any] = {"bias": bias, "activation_function": ACTIVATIONS[activation]()}
    layers = [
        Dense(DIMENSION, 20, use_residual=True, **made),
        Dense(20, 20, use_residual=True, **made),
        Dense(20, DIMENSION, **made),
    ]
    router = shaken(Router.for_query_document(layers, [])).eval()
    heads = Heads.load(saved(tmp_path, router))
    x = vectors()
    np.testing.assert_allclose(heads.query(x), by_torch(router, x, "query"), atol=1e-6)
    np.testing.assert_allclose(heads.document(x), x, atol=1e-7)


@pytest.mark.parametrize(
    "options", [{}, {"document": False}, {"shared": True}, {"hidden_features": None, "out_features": 8}], ids=str
)
def test_they_are_the_model_and_come_back_to_it(
    tmp_path: Path, make_encoder: Callable[..., SentenceTransformer], options: Any
) -> None:
    model = asymmetric_model(make_encoder(prompts={"query": "query: "}), **options)
    shaken(model[-2])
    texts = ["red head", "the small text", "vector"]
    heads = Heads.load(save_heads(model.eval(), tmp_path / "heads"))
    queries = make_encoder().encode(["query: " + text for text in texts])
    np.testing.assert_allclose(heads.query(queries), model.encode_query(texts), atol=1e-6)
    np.testing.assert_allclose(heads.document(make_encoder().encode(texts)), model.encode_document(texts), atol=1e-6)
    again = attach_heads(make_encoder(), heads.save(tmp_path / "again"))
    assert np.array_equal(again.encode_query(texts), model.encode_query(texts))
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(
        path.name for path in (tmp_path / "heads").iterdir()
    )


@settings(max_examples=25, deadline=None)
@given(
    dimension=st.sampled_from([1, 3, 16, 100]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    activation=st.sampled_from(["ReLU", "GELU", "SiLU", "Tanh"]),
    data=st.data(),
)
def test_the_same_bits_in_any_portions(dimension: int, dtype: Any, activation: str, data: st.DataObject) -> None:
    heads = Heads(dimension, random_layers(dimension, activation), random_layers(dimension, seed=1))
    x = np.random.default_rng(3).standard_normal((1500, dimension)).astype(dtype)
    x[x == 0] = 1
    whole = heads.query(x)
    start, size = data.draw(st.integers(0, 1499)), data.draw(st.integers(1, 64))
    part = heads.query(x[start : start + size])
    assert whole.dtype == part.dtype == dtype
    assert np.array_equal(part, whole[start : start + size])
    assert np.array_equal(heads.query(x[start]), whole[start])
    lengths = np.linalg.norm(whole.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=3e-3 if dtype is np.float16 else 1e-6)


def test_small_weights_beside_large_ones_count(tmp_path: Path) -> None:
    router = AsymmetricProjection(384).eval()
    for parameter in router.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    heads, x = Heads.load(saved(tmp_path, router)), vectors(3000, 384)
    np.testing.assert_allclose(heads.query(x), by_torch(router, x, "query"), rtol=0, atol=4e-7)
    assert np.array_equal(heads.query(np.asfortranarray(x)), heads.query(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    router = shaken(AsymmetricProjection(DIMENSION)).to(dtype).eval()
    heads = Heads.load(saved(tmp_path, router))
    x = vectors()
    np.testing.assert_allclose(heads.document(x), by_torch(router.float(), x, "document"), atol=1e-6)


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (np.ones((2, 11), np.float32), ValueError, r"12 dimensions, .* not \(2, 11\): they are of another encoder"),
        (np.ones((2, 3, 12), np.float32), ValueError, "not"),
        (np.ones((2, 12), np.int8), TypeError, "not int8"),
        (np.array([["a"] * 12]), TypeError, "float16, float32 or float64"),
        (np.stack([np.ones(12), np.full(12, np.nan)]), ValueError, r"Vector 1 is not finite"),
        (np.stack([np.ones(12), np.zeros(12)]), ValueError, r"Vector 1 is zero"),
    ],
)
def test_what_is_no_vector_is_refused(x: Any, kind: type[Exception], message: str) -> None:
    heads = Heads(DIMENSION, random_layers(DIMENSION), random_layers(DIMENSION))
    with pytest.raises(kind, match=message):
        heads.query(x)


def test_what_fit_vectors_takes_is_taken() -> None:
    heads, x = Heads(DIMENSION, random_layers(DIMENSION), normalises=True), vectors()
    assert np.array_equal(heads.query(x.astype(">f4")), heads.query(x))
    half = torch.from_numpy(x).bfloat16().requires_grad_()
    assert np.array_equal(heads.query(half), heads.query(half.detach().float().numpy()))
    np.testing.assert_allclose(heads.query(x * np.float32(1e-14)), heads.query(x), atol=1e-6)
    with pytest.raises(ValueError, match="Vector 0 is zero"):
        heads.query(0 * x)


def test_a_row_far_on_is_named_and_no_rows_are_no_error() -> None:
    heads = Heads(DIMENSION, random_layers(DIMENSION), random_layers(DIMENSION))
    x = vectors(3000)
    x[2500, 3] = np.inf
    with pytest.raises(ValueError, match="Vector 2,500 is not finite"):
        heads.query(x)
    assert heads.query(x[:0]).shape == (0, 7)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_tensor(path: Path) -> None:
    save_file({**load_file(path), "more": np.ones(3, np.float32)}, path)


def poison(path: Path) -> None:
    save_file({name: np.full_like(value, np.nan) for name, value in load_file(path).items()}, path)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(3 << 20))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("router_config.json", lambda p: p.write_text("{"), "is not JSON"),
        ("router_config.json", lambda p: p.write_text("[" * 100_000), "is not JSON"),
        ("router_config.json", lambda p: p.write_text("[1]"), "no JSON object"),
        ("router_config.json", lambda p: p.write_text(f'{{"types": {"9" * 5000}}}'), "is not JSON"),
        ("router_config.json", lambda p: p.write_bytes(bytes(2 << 20)), "is longer than"),
        ("router_config.json", lambda p: edit(p, structure={"query": ["../../x"], "document": []}), "no folder in it"),
        ("router_config.json", lambda p: edit(p, structure={"query": [], "document": []}), "has no layers"),
        ("router_config.json", lambda p: edit(p, structure={"text": []}), "no routes for query and document"),
        ("router_config.json", lambda p: edit(p, types={"query_0_Dense": "os.system"}), "heads consist of Dense"),
        ("query_0_Dense/config.json", lambda p: edit(p, activation_function="torch.nn.ELU"), "numpy knows"),
        ("query_0_Dense/config.json", lambda p: edit(p, activation_function="torch.nn.Softplus"), "none of those of t"),
        ("query_0_Dense/config.json", lambda p: edit(p, activation_function="evil.ReLU"), "none of those of torch.nn"),
        ("query_0_Dense/config.json", lambda p: edit(p, in_features=10**9), "dimensions"),
        ("query_0_Dense/config.json", lambda p: edit(p, out_features="24"), "dimensions"),
        ("query_0_Dense/config.json", lambda p: edit(p, out_features=23), "has other tensors"),
        ("query_0_Dense/config.json", lambda p: edit(p, module_input_name=["x"]), "something else than"),
        ("query_0_Dense/config.json", lambda p: p.unlink(), "is missing"),
        ("query_0_Dense/model.safetensors", add_tensor, "has other tensors"),
        ("query_0_Dense/model.safetensors", poison, "not finite"),
        ("query_0_Dense/model.safetensors", grow, "file not fully covered"),
        ("query_0_Dense/model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-4]), "no whole safetensors"),
        ("query_0_Dense/model.safetensors", lambda p: p.write_bytes(b"\xff" * 64), "no whole safetensors"),
    ],
)
def test_damaged_and_hostile_folders(tmp_path: Path, file: str, change: Callable[[Path], object], message: str) -> None:
    folder = saved(tmp_path, AsymmetricProjection(DIMENSION))
    change(folder / file)
    with pytest.raises(ValueError, match=message) as error:
        Heads.load(folder)
    assert file.partition("/")[0] in str(error.value)


def test_a_changed_file_is_known_by_its_digest(tmp_path: Path) -> None:
    folder = Heads(DIMENSION, random_layers(DIMENSION), random_layers(DIMENSION)).save(tmp_path / "heads")
    path = folder / "query_0_Dense" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors: is not what was saved, by the digest in st_asym.json"):
        Heads.load(folder)
    with pytest.raises(FileNotFoundError, match="holds no heads"):
        Heads.load(tmp_path)
    with pytest.raises(FileExistsError, match="name another folder"):
        Heads(DIMENSION, random_layers(DIMENSION), random_layers(DIMENSION)).save(tmp_path)
    with pytest.raises(ValueError, match="nothing to save"):
        Heads(DIMENSION).save(tmp_path / "none")


def test_no_torch_is_imported(tmp_path: Path) -> None:
    folder = saved(tmp_path, AsymmetricProjection(DIMENSION))
    code = (
        "import sys, time, numpy as np\n"
        "start = time.process_time()\n"
        "from st_asym import Heads\n"
        "taken = time.process_time() - start\n"
        f"heads = Heads.load({str(folder)!r})\n"
        "found = heads.query(np.eye(12)), heads.document(np.eye(12))\n"
        "print('torch' in sys.modules, 'sentence_transformers' in sys.modules, taken)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert output[:2] == ["False", "False"]
    assert float(output[2]) < 0.1


@pytest.mark.parametrize("activation", ["ReLU", "GELU", "SiLU", "Tanh", "Identity"])
@pytest.mark.parametrize("normalises", [True, False])
def test_the_graph_gives_the_same_in_batches_of_any_size(tmp_path: Path, activation: str, normalises: bool) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    residual = Layer(np.eye(DIMENSION, dtype=np.float32), None, activation, residual=True)
    heads = Heads(DIMENSION, (residual, *random_layers(DIMENSION, activation)), (), normalises)
    for side in ("query", "document"):
        session = runtime.InferenceSession(heads.to_onnx(tmp_path / f"{side}.onnx", side))  # type: ignore[arg-type]
        for count in (1, 3):
            x = vectors(count) * (3 if normalises else 1)
            (found,) = session.run(["sentence_embedding"], {"embedding": x})
            np.testing.assert_allclose(found, getattr(heads, side)(x), atol=1e-5)
    with pytest.raises(ValueError, match="side must be"):
        heads.to_onnx(tmp_path / "x.onnx", "both")  # type: ignore[arg-type]


def test_sides_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    narrower = Router.for_query_document([Dense(DIMENSION, 7)], [])
    with pytest.raises(ValueError, match="vectors of different dimensions"):
        Heads.load(saved(tmp_path, narrower))
    other = Router.for_query_document([Dense(DIMENSION, 7)], [Dense(9, 7)])
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="the document head takes vectors of 9 dimensions, and the other takes 12"):
        Heads.load(saved(tmp_path / "other", other))


def test_what_lies_beside_heads_is_not_looked_at(tmp_path: Path) -> None:
    folder = Heads(DIMENSION, random_layers(DIMENSION), random_layers(DIMENSION)).save(tmp_path / "heads")
    before = Heads.load(folder).query(vectors())
    (folder / "search.py").write_text("1")
    (folder / "more").symlink_to(tmp_path)
    (folder / "router_config.json").rename(tmp_path / "stored")
    (folder / "router_config.json").symlink_to(tmp_path / "stored")
    assert np.array_equal(Heads.load(folder).query(vectors()), before)
    edit(tmp_path / "stored", parameters={"default_route": "query"})
    with pytest.raises(ValueError, match=r"router_config.json: is not what was saved, by the digest in st_asym.json"):
        Heads.load(folder)
