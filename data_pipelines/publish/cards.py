"""The card of a data set: README.md with the header that the hub and `datasets` read."""

from collections.abc import Mapping
from typing import Any

import yaml

from data_pipelines.publish.licences import hub_licence

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))

_TEXT = """# {title}

Two-channel conversations, {rows} dialogues, {hours:.2f} h, made with ppx-train. The audio is 24 kHz FLAC, one speaker
on each channel. Words have times in seconds; a side with `is_agent` may be trained as the agent, with its `role_prompt`
and the voice prompt in `left_voice` or `right_voice`. `record` holds everything as JSON: events, facts, gates,
provenance.

```python
from datasets import Audio, load_dataset

rows = load_dataset(PATH, "{first}", split="{split}", streaming=True)
rows = rows.cast_column("audio", Audio())  # samples instead of the bytes of a FLAC file
```

| source | split | dialogues | hours |
|---|---|---|---|
{content}

| licence | dialogues | hours |
|---|---|---|
{licences}

Engines that had a part in it: {engines}.
"""


def card(title: str, manifest: Mapping[str, Any], rows: Mapping[str, int], sizes: Mapping[str, int]) -> str:
    """README.md for parquet files named data/SOURCE/SPLIT-*.parquet, with their rows and bytes."""
    sources = sorted({path.split("/")[1] for path in rows})
    configs = [{"config_name": "default", "default": True, "data_files": _data_files(rows, "*")}]
    configs += [{"config_name": source, "data_files": _data_files(rows, source)} for source in sources]
    count = sum(rows.values())
    header = {
        "pretty_name": title,
        "license": hub_licence(manifest["licences"]),
        "language": ["en"],
        "task_categories": ["audio-to-audio", "automatic-speech-recognition", "text-to-speech"],
        "tags": ["full-duplex", "dialogue", "two-channel"],
        "size_categories": [next((name for most, name in _SIZES if count < most), "n>10M")],
        "configs": configs,
        "dataset_size": sum(sizes.values()),
    }
    groups = [
        (source, split, group)
        for split, by_source in manifest["content"].items()
        for source, group in sorted(by_source.items())
    ]
    text = _TEXT.format(
        title=title,
        rows=count,
        hours=sum(group["hours"] for _, _, group in groups),
        first=sources[0],
        split=groups[0][1],
        content="\n".join(
            f"| {a} | {b} | {g['dialogues']} | {g['hours']:.2f} |" for a, b, g in sorted(groups, key=lambda g: g[:2])
        ),
        licences="\n".join(
            f"| {_cell(name)} | {g['dialogues']} | {g['hours']:.2f} |"
            for name, g in sorted(manifest["licences"].items())
        ),
        engines=", ".join(f"{_cell(name)} ({count})" for name, count in sorted(manifest["engines"].items())),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{text}"


def _data_files(rows: Mapping[str, int], source: str) -> list[dict[str, str]]:
    splits = {path.split("/")[2].split("-")[0] for path in rows if source in ("*", path.split("/")[1])}
    return [
        {"split": split, "path": f"data/{source}/{split}-*.parquet"}
        for split in ("train", "heldout")
        if split in splits
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
