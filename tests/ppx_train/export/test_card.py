"""What the model card says, from the facts alone: no weights are needed for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from ppx_train.config.load import load
from ppx_train.export.card import DataFacts, SourceFacts, model_card
from ppx_train.export.layouts import Provenance
from ppx_train.export.lineage import PUBLIC_MODELS, Start, hub_ancestor, ingredients_of, sentences, stated_licence
from ppx_train.inference.sidecar import HubLicence, Ingredient
from ppx_train.voices.voice_file import VoiceFile

NVIDIA = "nvidia/personaplex-7b-v1"
NOTHING = DataFacts(sources=(), licences={}, missing=())
DATA = DataFacts(
    sources=(SourceFacts(split="train", name="service", dialogues=1200, hours=12.345),),
    licences={"CC0-1.0": 2.0, "MIT": 10.345},
    missing=("gone",),
)
VOICE = VoiceFile(id="anna", label="Anna", licence="CC-BY-4.0", consent="she agreed", codes_QP=torch.zeros(8, 3))


def provenance(init: str = "scratch", **changes: Any) -> Provenance:
    run = load(["recipe=quickstart", f"model.init={init}"])
    start = Start(name=init, revision=None if init == "scratch" else "abc123")
    made = Provenance(
        run=run, step=1234, config_sha256="f" * 64, layout="kyutai", base=None, engine=None, commit=None, request="",
        licence=stated_licence(init), start=start, ingredients=ingredients_of(run, start, {}, ()),
    )  # fmt: skip
    return replace(made, **changes)


def card_of(made: Provenance, data: DataFacts = NOTHING, voices: tuple[VoiceFile, ...] = ()) -> ModelCard:
    text = model_card(
        name="org/talker", provenance=made, dtype="bfloat16", parameters=1234567, data=data, figures={}, voices=voices
    )
    return ModelCard(text)


def test_a_model_of_nothing_known_says_so() -> None:
    card = card_of(provenance())
    facts = card.data.to_dict()
    assert (facts["license"], facts["license_name"], facts["library_name"]) == ("other", "see-training-data", "moshi")
    assert "base_model" not in facts and facts["language"] == "en"
    for part in (
        "# talker\n", "1,234,567 parameters in bfloat16; trained with recipe `quickstart`, step 1,234.",
        "None included: give a wav of the speaker.", "No held-out figures were logged.",
        "| trained with | not recorded |", "Not recorded: neither start weights nor training data were known",
    ):  # fmt: skip
        assert part in card.text, part
    assert "derived from" not in card.text


def test_a_model_of_public_weights_has_their_licence_and_name() -> None:
    card = card_of(provenance(NVIDIA))
    facts, licence = card.data.to_dict(), PUBLIC_MODELS[NVIDIA]
    assert (facts["license"], facts["license_name"], facts["license_link"]) == ("other", licence.name, licence.link)
    assert (facts["base_model"], facts["base_model_relation"]) == (NVIDIA, "finetune")
    assert f"- start weights `{NVIDIA}` under nvidia-open-model-license\n" in card.text
    assert f"| start weights | {NVIDIA}, revision abc123 |" in card.text
    assert "Trained from scratch" not in card.text and "Check that your use is allowed by each." in card.text


def test_data_voices_and_what_is_missing_are_named() -> None:
    card = card_of(provenance(), DATA, (VOICE,))
    for part in (
        "| train | service | 1,200 | 12.35 |",
        "Licences: CC0-1.0 (2.00 h); MIT (10.35 h).",
        "Not available at export time, so not described here: gone.",
        "| anna | Anna | CC-BY-4.0 | she agreed |",
        "--voice-prompt anna \\\n",
        "Trained from scratch on 12.3 h",
    ):
        assert part in card.text, part


def test_foreign_names_add_no_heading_row_or_tag_to_the_card() -> None:
    evil = "MIT |\n\n# Free\n<img src=x> [a](https://b) `c`"
    source = SourceFacts(split="train", name=evil, dialogues=1, hours=1.0)
    data = replace(DATA, sources=[source], licences={evil: 1.0}, missing=(evil,))
    voice = replace(VOICE, label=evil, licence=evil, consent=evil)
    ingredient = Ingredient(part="training data", name=evil, licence=evil)
    plain, bad = card_of(provenance(), DATA, (VOICE,)), card_of(provenance(ingredients=(ingredient,)), data, (voice,))

    def signs(card: ModelCard) -> list[str]:
        tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
        inline = [child.type for token in tokens for child in token.children or ()]
        return [token.tag for token in tokens if token.tag in ("h1", "h2", "table")] + [
            kind for kind in inline if kind in ("image", "link_open", "html_inline")
        ]

    assert signs(plain) == signs(bad)


def test_the_card_says_whether_people_were_masked() -> None:
    assert "not masked: 3 dialogues are recorded" in card_of(provenance(), replace(DATA, recorded=3)).text
    assert "masked in 2 dialogues (3 are recorded" in card_of(provenance(), replace(DATA, recorded=3, masked=2)).text


@pytest.mark.parametrize("data", [NOTHING, DATA, replace(DATA, missing=()), replace(NOTHING, missing=("gone",))])
def test_every_heading_and_table_stands_apart(data: DataFacts) -> None:
    lines = card_of(provenance(), data, (VOICE,)).text.splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        assert not line.startswith("#") or (before, after) == ("", ""), line
        assert not line.startswith("| ---") and not (line.startswith("|") and before and before[0] != "|"), line
        assert (before, line) != ("", "")


def test_the_public_model_is_found_behind_local_start_weights() -> None:
    start = Ingredient(part="start weights", name=NVIDIA, licence="nvidia-open-model-license")
    local = Ingredient(part="start weights", name="my-model", ingredients=(start,))
    voices = Ingredient(part="voices", licence="CC0-1.0")
    assert hub_ancestor((voices, local)) == NVIDIA and hub_ancestor((voices,)) is None
    facts = card_of(provenance(ingredients=(local, voices), licence=HubLicence(id="mit"))).data.to_dict()
    assert (facts["base_model"], facts["license"]) == (NVIDIA, "mit") and "license_name" not in facts
    assert list(sentences((local, voices))) == [
        f"start weights `my-model` under its own licence, itself derived from start weights `{NVIDIA}` under "
        "nvidia-open-model-license",
        "voices under CC0-1.0",
    ]


def test_public_codec_and_tokenizer_are_ingredients_and_shipped_ones_are_not(tmp_path: Path) -> None:
    run = load(["recipe=quickstart", f"model.codec={NVIDIA}", "model.tokenizer=kyutai/moshiko-pytorch-bf16"])
    found = ingredients_of(run, Start(name="scratch", revision=None), {"MIT": 1.5}, (VOICE,))
    assert [(one.part, one.name, one.licence, one.hours) for one in found] == [
        ("codec", NVIDIA, "nvidia-open-model-license", None),
        ("tokenizer", "kyutai/moshiko-pytorch-bf16", "cc-by-4.0", None),
        ("training data", None, "MIT", 1.5),
        ("voices", None, "CC-BY-4.0", None),
    ]
    own = ingredients_of(load(["recipe=quickstart"]), Start(name=str(tmp_path), revision=None), {}, ())
    assert own == (Ingredient(part="start weights", name=tmp_path.name),)
