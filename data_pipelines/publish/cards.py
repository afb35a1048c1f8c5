"""The card of a data set: README.md with the header that the hub and `datasets` read."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from data_pipelines.publish.licences import hub_licence
from data_pipelines.records.schema import SPLITS
from data_pipelines.shards.manifest import Manifest, masking_sentence
from model.text_safety import markdown

TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md.j2"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))


def card(title: str, manifest: Manifest, rows: Mapping[str, int], sizes: Mapping[str, int]) -> str:
    """README.md for the parquet files data/SOURCE/SPLIT-*.parquet, by path their numbers of rows and of bytes.

    Source: the hub's dataset card, https://huggingface.co/docs/hub/datasets-cards.
    """
    sources = sorted({path.split("/")[1] for path in rows})
    count = sum(rows.values())
    default = {"config_name": "default", "default": True, "data_files": _data_files(rows, "*")}
    data = DatasetCardData(
        pretty_name=title,
        license=hub_licence(manifest.licences),
        language=["en"],
        task_categories=["audio-to-audio", "automatic-speech-recognition", "text-to-speech"],
        tags=["full-duplex", "dialogue", "two-channel"],
        size_categories=[next((name for most, name in _SIZES if count < most), "n>10M")],
        configs=[default, *({"config_name": name, "data_files": _data_files(rows, name)} for name in sources)],
        dataset_size=sum(sizes.values()),
    )
    groups = [(source, split) for source in sources for split in SPLITS if source in manifest.content.get(split, {})]
    made = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        num_dialogues=count,
        hours=sum(counts.hours for by_source in manifest.content.values() for counts in by_source.values()),
        groups=[(source, split, manifest.content[split][source]) for source, split in groups],
        licences=sorted(manifest.licences.items()),
        engines=sorted(manifest.engines.items()),
        masking=masking_sentence(manifest.recorded, manifest.masked),
        md=markdown,
    )
    return f"{made.content}\n"


def _data_files(rows: Mapping[str, int], source: str) -> list[dict[str, str]]:
    splits = {path.split("/")[2].split("-")[0] for path in rows if source in ("*", path.split("/")[1])}
    return [{"split": split, "path": f"data/{source}/{split}-*.parquet"} for split in SPLITS if split in splits]
