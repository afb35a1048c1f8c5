"""README and docs: links and pictures exist, every command shown is one that the tools understand, examples run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file

import ppx_train
from data_pipelines.arguments import Parser, option_flags
from data_pipelines.make import plan
from data_pipelines.shards.encode import build_shards
from data_pipelines.sound.audio import write_flac
from data_pipelines.verbs import VERBS, overview, verb_parser
from model.config import LMConfig
from model.duplex import DuplexLM
from model.weights.checkpoint import save_native
from ppx_train.cli import chat, export, serve, train, voice
from ppx_train.cli import check as check_command_line
from ppx_train.cli import plan as plan_command
from ppx_train.config.load import layers_of, merge
from ppx_train.help import settings_help
from ppx_train.recipes import GROUPS, group_names, recipe_names
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_corpus
from tests.live_server import live_server
from tests.paths import ROOT
from tests.ppx_train.fixtures import make_codec, make_tokenizer

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMANDS = ("ppx-train", "ppx-data", "ppx-export", "ppx-voice", "ppx-chat", "ppx-serve")
SERVER = "http://127.0.0.1:8998"
"""The address in examples."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path, language: str) -> list[str]:
    """Contents of a page's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def shell_lines(page: Path) -> Iterator[list[str]]:
    """Words of every command in a page's bash blocks."""
    for block in fences(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def parser_of(words: list[str]) -> tuple[Parser, list[str]]:
    """The parser of a command or of its verb, and the words that it reads."""
    own = {"ppx-train": train.parser, "ppx-export": export.parser, "ppx-voice": voice.parser, "ppx-chat": chat.parser}
    own |= {"ppx-serve": serve.parser}
    if words[:2] == ["ppx-train", "plan"]:
        return plan_command.parser(), words[2:]
    if words[:2] == ["ppx-train", "check"]:
        return check_command_line.parser(), words[2:]
    if words[0] in own:
        return own[words[0]](), words[1:]
    if len(words) > 1 and not words[1].isupper() and not words[1].startswith("-"):
        return verb_parser(words[1]), words[2:]
    return overview(ppx_train.__version__), words[1:]


def check_command(words: list[str]) -> None:
    """Fails if one of the ppx tools would refuse these words before it looks at any file."""
    if words[-1] in ("--help", "--version"):
        return
    parser, rest = parser_of(words)
    args = parser.parse_intermixed_args(rest) if words[0] == "ppx-train" else parser.parse_args(rest)
    if words[:2] == ["ppx-train", "plan"]:
        plan_command.planned_run(args.settings)
    elif words[0] == "ppx-train" and args.settings != ["recipes"]:
        merge(layers_of(args.settings))
    if words[:2] == ["ppx-data", "make"]:
        plan(args.pipeline, args.settings)


def make_targets() -> set[str]:
    """The targets that `make help` lists."""
    return set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def write_recipes(folder: Path) -> None:
    """The recipes that pages show in full: YAML blocks whose first line is `# FILE.yaml`."""
    for page in PAGES:
        for block in fences(page, "yaml"):
            if name := re.match(r"# (\w+\.yaml)\n", block):
                (folder / name[1]).write_text(block, "utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_and_pictures_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith(("https://", "http://")):
            continue
        file = (page.parent / path).resolve() if path else page
        if (
            not file.exists()
            or ROOT not in (file, *file.parents)
            or (anchor and file.suffix == ".md" and anchor not in anchors(file))
        ):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_in_the_text_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    named = re.findall(r"`((?:model|data_pipelines|ppx_train|tests|scripts|configs|recipes|docs)/[^`\s]*)`", text)
    assert not [path for path in named if not any(ROOT.glob(path.rstrip("/")))]


def anchors(page: Path) -> set[str]:
    """Anchors that a hub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_code_blocks_are_understood(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipes(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in shell_lines(page):
        if words[0].startswith("ppx-"):
            check_command(words)
        elif words[0] in ("bash", "python") and words[1].endswith((".sh", ".py")):
            assert (ROOT / words[1]).is_file(), words
        elif words[0] == "make":
            assert set(words[1:]) <= make_targets(), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_the_text_name_tools_verbs_and_flags_that_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for command in re.findall(r"`(ppx-[^`]+)`", text):
        words = command.replace("\\|", " ").replace("[", " ").replace("]", " ").split()
        assert words[0] in COMMANDS, command
        parser, _ = parser_of(words)
        flags = {flag for one in (parser, *parser.subcommands.values()) for flag in option_flags(one.options.values())}
        assert set(re.findall(r"(?<!\S)--[\w-]+", command)) <= flags, command
        if recipe := re.search(r"recipe=([a-z_0-9]+)\b", command):
            assert recipe[1] in recipe_names(), command


@pytest.mark.parametrize("page", ["README.md", "docs/guide/recipes.md"])
def test_the_table_of_recipes_lists_them_all(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    table = re.search(r"^\| recipe \|.*?\n\n", text, re.MULTILINE | re.DOTALL)
    assert table
    assert sorted(re.findall(r"^\| `(\w+)` \|", table[0], re.MULTILINE)) == recipe_names()


def test_the_version_is_the_same_wherever_it_stands() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"]
    assert newest and newest[1] == cited == ppx_train.__version__


def test_the_readme_lists_every_verb_of_ppx_data() -> None:
    assert set(re.findall(r"^\| `ppx-data ([\w-]+)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)) == set(
        VERBS
    )


def test_the_tables_of_groups_and_options_are_complete() -> None:
    recipes = (ROOT / "docs/guide/recipes.md").read_text("utf-8")
    for group in GROUPS:
        row = re.search(rf"^\| `{group}` \|(.*)$", recipes, re.MULTILINE)
        assert row, group
        assert set(re.findall(r"`(\w+)`", row[1])) == set(group_names(group))
    inference = (ROOT / "docs/guide/inference.md").read_text("utf-8")
    rows = set(re.findall(r"`(--[\w-]+)`", inference))
    for parser in (chat.parser(), export.parser()):
        assert rows >= set(option_flags(parser.options.values())) - {"--help", "--version"}
    voices = set(re.findall(r"`(--[\w-]+)`", (ROOT / "docs/how-to/voices.md").read_text("utf-8")))
    for parser in voice.parser().subcommands.values():
        assert voices >= set(option_flags(parser.options.values())) - {"--help"}
    serving = set(re.findall(r"`(--[\w-]+)`", (ROOT / "docs/serving.md").read_text("utf-8")))
    assert serving >= set(option_flags(serve.parser().options.values())) - {"--help", "--version"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_named_in_the_text_exist(page: Path) -> None:
    known = set(re.findall(r"^  ([\w.]+) = ", settings_help(), re.MULTILINE))
    known |= {f"model.lm.{name}" for name in LMConfig().to_dict()} | {"data.mix.fisher"}
    known |= {key.rpartition(".")[0] for key in known}
    text = page.read_text("utf-8")
    for key in re.findall(r"`((?:model|data|optim|loss|trainer|logging)\.[a-z_.]+)(?:=[^`]*)?`", text):
        is_module = (ROOT / f"{key.replace('.', '/')}.py").is_file()
        assert key in known or key == "model.safetensors" or is_module, key


def make_quickstart() -> Path:
    """What examples find in the folder quickstart: a model, which is returned, and a caller."""
    tiny = LMConfig(
        dim=32, num_layers=2, num_heads=2, depformer_dim=16, depformer_dim_feedforward=66, depformer_num_heads=2,
        depformer_num_layers=1, text_card=320, card=64, context=1500,
    )  # fmt: skip
    export = Path("quickstart/export")
    save_native(export, DuplexLM(tiny))
    make_codec(export / "mimi.safetensors")
    make_tokenizer(export / "tokenizer.model")
    (export / "voices").mkdir()
    save_file({"codes": torch.randint(64, (8, 20), dtype=torch.int32)}, export / "voices" / "anna.safetensors")
    Path("quickstart/caller").mkdir()
    noise_S = 0.1 * np.random.default_rng(0).standard_normal(24000).astype(np.float32)
    write_flac(Path("quickstart/caller/user.flac"), noise_S, 24000)
    return export


def examples(*, of_clients: bool) -> list[str]:
    """The Python examples of all pages, those that call a server or all others."""
    blocks = [block for page in PAGES for block in fences(page, "python") if (SERVER in block) is of_clients]
    assert blocks
    return blocks


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    build_shards(write_corpus(Path("dialogues")), TinyCodec(), Path("shards"))
    make_quickstart()
    blocks = examples(of_clients=False)
    for block in blocks:
        exec(compile(block, "example", "exec"), {})
    printed = capsys.readouterr().out
    assert "call-1 (16, 50) CC0-1.0" in printed
    assert Path("answer.wav").is_file()


def test_the_examples_of_clients_call_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prometheus_client", reason="the server: pip install 'ppx-train[serve]'")
    pytest.importorskip("sphn", reason="Ogg-Opus: pip install sphn")
    pytest.importorskip("websockets", reason="a client: pip install 'openai[realtime]'")
    monkeypatch.chdir(tmp_path)
    model = make_quickstart().resolve()
    soundfile.write("question.wav", 0.1 * np.sin(np.arange(12000) / 10), 24000)
    lengths = []
    with live_server(model, "--not-realtime") as address:  # On a busy machine a tick may measure long.
        for block in examples(of_clients=True):
            exec(compile(block.replace(SERVER, address), "example", "exec"), {})
            answer, rate = soundfile.read("answer.wav")
            assert rate == 24000 and np.abs(answer).max() > 0
            lengths.append(len(answer))
            Path("answer.wav").unlink()
    assert sorted(lengths) == [12000, 12000, 24000]  # as long as question.wav and the caller
