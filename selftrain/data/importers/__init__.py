"""Published data sets to manifests: one file each, and the registry that the command line reads."""

from __future__ import annotations

from pathlib import Path

from selftrain.data.importers.base import ImportedDataset, Importer, import_dataset
from selftrain.data.importers.harmeme import HARMEME
from selftrain.data.importers.hateful_memes import HATEFUL_MEMES
from selftrain.data.importers.hsol import HSOL
from selftrain.data.importers.mami import MAMI
from selftrain.data.importers.sentiment140 import SENTIMENT140
from selftrain.data.importers.tweeteval import TWEETEVAL
from selftrain.errors import ManifestError

__all__ = ["IMPORTERS", "ImportedDataset", "Importer", "import_named"]

IMPORTERS = {one.name: one for one in (HSOL, SENTIMENT140, HARMEME, HATEFUL_MEMES, MAMI, *TWEETEVAL)}


def import_named(
    name: str, source: Path, out: Path, *, allow_missing_images: bool = False, decode_entities: bool = False
) -> ImportedDataset:
    """Import the data set called `name`; see `importers.base.import_dataset`.

    Raises:
        ManifestError: No importer of that name, or as `import_dataset`.
    """
    if name not in IMPORTERS:
        raise ManifestError(f"no importer is called {name!r}; expected one of {sorted(IMPORTERS)}")
    return import_dataset(
        IMPORTERS[name], Path(source), Path(out),
        allow_missing_images=allow_missing_images, decode_entities=decode_entities,
    )  # fmt: skip
