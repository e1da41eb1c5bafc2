"""Stage export: the items' vectors for other systems, as a matrix and as a faiss index.

Shapes: I items, H width of the LLM.
"""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from torch.nn.functional import normalize

from recloom.data_shards.artifacts import MANIFEST, atomic_write_bytes, write_manifest
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.embedding import read_vectors, write_vectors
from recloom.trainer.systems.laser.epochs import ITEMS
from recloom.trainer.systems.laser.methods import asked_methods
from recloom.trainer.systems.laser.rank import final_folder
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.task import load_task

INDEX, KEYS = "items.faiss", "items.parquet"


def run_export(run: Run[LaserConfig]) -> None:
    """A folder a method: row n of the matrix and of the index is row n of the table of keys and titles."""
    items = load_task(run).tables.items.select(["item", "item_key", "title"])
    for method in asked_methods(run.config):
        folder = run.path(f"export/{method.key}")
        vectors_IH = read_vectors(final_folder(run, method) / ITEMS)
        (folder / MANIFEST).unlink(missing_ok=True)
        write_vectors(folder, vectors_IH)
        write_keys(folder / KEYS, items)
        write_index(folder / INDEX, vectors_IH)
        write_manifest(folder, method=method.name, metric="cosine")


def write_keys(path: Path, items: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(items, buffer)
    atomic_write_bytes(path, buffer.getvalue())


def write_index(path: Path, vectors_IH: Tensor) -> None:
    """Inner products of normalised vectors are the cosines of equation 3: normalise queries too."""
    import faiss

    index = faiss.IndexFlatIP(vectors_IH.shape[1])
    index.add(normalize(vectors_IH.float(), dim=1).numpy())
    atomic_write_bytes(path, faiss.serialize_index(index).tobytes())
