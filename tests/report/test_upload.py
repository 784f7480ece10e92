"""A fitted model goes to the Hub and comes back, through the real client, against a stand-in on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fitting_helpers import rotated
from hub_server import Hub, hub
from huggingface_hub import ModelCard

from st_asym import EmbeddingCache, evaluate, write_card

pytestmark = pytest.mark.slow  # processes of their own that fit, push and load

TOKEN = "hf_" + "SecretOfTheTest" * 2
PUSHED = ["user/plain", "user/whole", "user/memory"]

# A fit on a private encoder of the Hub, with everybody's logs at their most talkative.
FIT = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from sentence_transformers import SentenceTransformer
from st_asym import Settings, fit
folder, data = sys.argv[1], json.load(open(sys.argv[2]))
SentenceTransformer(folder + "/encoder").push_to_hub("user/encoder", private=True)
settings = Settings(epochs=12, batch_size=16, learning_rate=1e-2, init="identity", sides="both")
result = fit("user/encoder", data, output_dir=folder + "/model", cache=folder + "/vectors", settings=settings)
print(result.report)
result.model.push_to_hub("user/memory", private=True)
"""
PUSH = """
import sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1])
model.push_to_hub("user/plain", token=sys.argv[2], private=True)
model.push_to_hub("user/whole", token=sys.argv[2], private=True, local_model_path=sys.argv[1])
"""
ENCODE = """
import hashlib, json, sys
from sentence_transformers import SentenceTransformer
queries, documents = [f"q{i}" for i in range(60)], [f"d{i}" for i in range(60)]
found = {}
for name in sys.argv[2:]:
    model = SentenceTransformer(name, token=sys.argv[1] or None, device="cpu")
    vectors = model.encode_query(queries), model.encode_document(documents)
    found[name] = [hashlib.sha256(side.tobytes()).hexdigest() for side in vectors]
print(json.dumps(found))
"""
STRANGERS = """
import json
from sentence_transformers import SentenceTransformer
found = []
for token in (None, "hf_anotherone"):
    try:
        SentenceTransformer("user/plain", token=token)
        found.append("loaded")
    except OSError:
        found.append("refused")
print(json.dumps(found))
"""


@dataclass
class Place:
    """Folders, the stand-in, and how to run code against it."""

    folder: Path
    hub: Hub
    logs: str = ""
    found: dict[str, list[str]] = field(default_factory=dict)

    def run(self, code: str, *arguments: str, home: str = "home", stock: bool = True, token: str = "") -> str:
        """In a fresh process, where st_asym cannot be imported if it is ``stock``; what it prints."""
        blocked = "import sys; sys.modules['st_asym'] = None\n" if stock else ""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / home), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.run(
            [sys.executable, "-c", blocked + code, *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=environment,
            cwd=self.folder,
        )
        self.logs += process.stdout + process.stderr
        assert process.returncode == 0, process.stderr[-3000:]
        return process.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A private encoder on the Hub, heads fitted to it, evaluated, and pushed in three ways."""
    folder = tmp_path_factory.mktemp("hub")
    encoder, data = rotated(60)
    encoder.save_pretrained(str(folder / "encoder"))
    card = ModelCard("---\nlicense: mit\nlibrary_name: sentence-transformers\ntags:\n- mine\n---\n# Words\n")
    card.save(folder / "encoder" / "README.md")
    pairs = [{"query": query, "document": query.replace("q", "d")} for query in data.queries]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    with hub(TOKEN) as server:
        place = Place(folder, server)
        place.run(FIT, str(folder), str(folder / "pairs.json"), stock=False, token=TOKEN)
        others = {key: f"another {text}" for key, text in data.queries.items()}  # of the same direction, not trained on
        test = replace(data, queries=others, qrels={"test": data.qrels["train"]})
        comparison = evaluate(
            {"encoder": encoder, "heads": folder / "model"},
            {"toy": test},
            cache=EmbeddingCache(folder / "vectors"),
            results=folder / "results",
        )
        write_card(folder / "model", comparison=comparison)
        place.run(PUSH, str(folder / "model"), TOKEN)
        names = [*PUSHED, "user/encoder", str(folder / "model")]
        place.found = json.loads(place.run(ENCODE, TOKEN, *names, home="another"))
        yield place


def files(place: Place, name: str) -> dict[str, bytes]:
    return place.hub.repositories[name].commits[-1][1]


def test_the_model_comes_back_to_the_bit(place: Place) -> None:
    local = place.found[str(place.folder / "model")]
    assert all(place.found[name] == local for name in PUSHED)
    assert all(mine != encoders for mine, encoders in zip(local, place.found["user/encoder"], strict=True))


@pytest.mark.parametrize("name", ["user/plain", "user/whole"])
def test_the_card_comes_along(place: Place, name: str) -> None:
    saved = (place.folder / "model" / "README.md").read_text(encoding="utf-8")
    uploaded = files(place, name)["README.md"].decode()
    expected = saved.replace("sentence_transformers_model_id", name) if name == "user/plain" else saved
    assert uploaded == expected
    downloaded = next(
        (place.folder / "another" / "hub").glob(f"models--{name.replace('/', '--')}/snapshots/*/README.md")
    )
    card = ModelCard.load(downloaded)
    assert card.data.base_model == "user/encoder"
    assert card.data.license == "mit"
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {
        "ndcg_at_10": 1.0,
        "map_at_100": 1.0,
        "mrr_at_10": 1.0,
        "recall_at_100": 1.0,
    }
    assert place.hub.repositories["user/encoder"].head in card.text


def test_a_model_in_memory_uploads_the_card_too(place: Place) -> None:
    card = ModelCard(files(place, "user/memory")["README.md"].decode())
    assert 'SentenceTransformer("user/memory")' in card.text
    assert "**Trained heads are kept" in card.text
    assert card.data.eval_results is None
    assert files(place, "user/memory")["held_out_queries.png"].startswith(b"\x89PNG")


def test_the_whole_folder_has_plot_and_report(place: Place) -> None:
    assert {"held_out_queries.png", "st_asym_report.json"} <= set(files(place, "user/whole"))


def test_a_private_model_is_hidden_from_others(place: Place) -> None:
    assert json.loads(place.run(STRANGERS, home="strangers")) == ["refused", "refused"]
    assert all(repository.private for repository in place.hub.repositories.values())
    assert not list((place.folder / "strangers").rglob("modules.json"))
    read = [known for method, path, known, _ in place.hub.requests if "/resolve/" in path and method == "GET"]
    assert read
    assert all(read)


def test_the_token_is_in_no_file_and_no_log(place: Place) -> None:
    assert any(known for _, _, known, _ in place.hub.requests)
    assert "DEBUG" in place.logs
    assert TOKEN not in place.logs
    written = [path for path in place.folder.rglob("*") if path.is_file()]
    assert {"data.mdb", "st_asym_report.json", "README.md", "modules.json"} <= {path.name for path in written}
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert not [
        name for name in place.hub.repositories for data in files(place, name).values() if TOKEN.encode() in data
    ]
    unknown = [path for _, path, _, status in place.hub.requests if status == 501]
    assert not unknown  # to the stand-in: what else a client may do with a token, this test would not see
