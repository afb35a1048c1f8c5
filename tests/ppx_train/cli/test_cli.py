"""The commands as a person meets them: help, versions, lists, one-line errors and exit codes."""

import errno
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from data_pipelines.arguments import Parser
from model.errors import UserError
from ppx_train import __version__, roots
from ppx_train.cli import chat, check, export, plan, serve, voice
from ppx_train.cli.run import run
from ppx_train.recipes import recipe_names
from tests.paths import ROOT
from tests.refusals import refused


def call(command: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """One of the commands in a fresh interpreter."""
    program = f"import sys; sys.argv[0] = 'ppx-{command}'; sys.path[0] = {str(ROOT)!r}; "
    program += f"from ppx_train.cli.{command} import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=1200
    )


COMMANDS = ("train", "data", "export", "voice", "chat", "serve")


@pytest.mark.parametrize("command", COMMANDS)
def test_version_and_help_need_neither_torch_nor_training_libraries(command: str) -> None:
    """Help that takes seconds is not read: only light modules may be imported for it."""
    program = f"import sys; sys.path[0] = {str(ROOT)!r}; sys.argv = ['ppx-{command}', '--OPTION']\n"
    program += f"from ppx_train.cli.{command} import main\n"
    program += "try:\n    main()\nexcept SystemExit as why:\n    assert not why.code\n"
    program += "print([name for name in ('torch', 'lightning', 'numpy', 'huggingface_hub') if name in sys.modules])"
    for option, text in (("version", f"ppx-train {__version__}"), ("help", "usage: ")):
        done = subprocess.run(
            [sys.executable, "-c", program.replace("OPTION", option)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(text) and done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "parser",
    [
        chat.parser(),
        check.parser(),
        export.parser(),
        plan.parser(),
        serve.parser(),
        *voice.parser().subcommands.values(),
    ],
)
def test_every_option_has_a_help_text_with_its_default(parser: Parser) -> None:
    for name, action in parser.options.items():
        assert action.help, name
        says_default = "default" in action.help
        assert action.required or action.nargs == 0 or not action.option_strings or says_default, name


def test_recipes_are_listed_with_a_line_each() -> None:
    result = call("train", "recipes")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line.split()) > 3 for line in lines)


def test_help_names_every_group_and_setting() -> None:
    result = call("train", "--help")
    assert result.returncode == 0
    for text in ("tiny", "personaplex_7b", "optim.lr.depth = 4e-06", "data.max_frames = 2048", "resume=true"):
        assert text in result.stdout
    assert not result.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "code", "named"),
    [
        ("train", ["recipe=quikstart"], "unknown-name", "did you mean 'quickstart'"),
        ("train", [], "missing-option", "recipe=NAME"),
        ("train", ["recipe=quickstart", "--fast"], "unknown-name", "ppx-train: no option --fast"),
        ("train", ["recipe=quickstart", "--prnt"], "unknown-name", "did you mean '--print'?"),
        ("data", ["spaek"], "unknown-name", "did you mean 'speak'?"),
        ("data", [], "missing-option", "VERB"),
        ("data", ["shard", "--dialogues", "a"], "missing-option", "--codec, --out must be given"),
        ("data", ["shard", "--dialogues", "a", "--out", "b", "--codec", "c", "--wokers", "2"], "unknown-name",
         "ppx-data shard: no option --wokers, did you mean '--workers'?"),
        ("export", ["--checkpoint", "nowhere", "--out", "there"], "not-found", "nowhere"),
        ("export", ["checkpoint=a", "out=b"], "old-form", "`ppx-export --checkpoint a --out b`"),
        ("voice", ["convert", "a.pt", "--model", "m"], "missing-option", "--out must be given"),
        ("chat", ["--model", "nowhere"], "missing-option", "give one of --input-wav, --say, --script, --mic"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_two(
    command: str, arguments: list[str], code: str, named: str, tmp_path: Path
) -> None:
    result = call(command, *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith(f"error[{code}]: ") and named in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("train", ["recipe=quickstart", "data.paths=[nowhere]", "model.tokenizer=none.model"], "none.model"),
        ("data", ["check", "nowhere"], "nowhere"),
        ("chat", ["--model", "m", "--input-wav", "a.wav", "--output-wav", "b.wav"], "a.wav: no such audio file"),
    ],
)
def test_a_file_that_is_not_there_is_one_line(command: str, arguments: list[str], named: str, tmp_path: Path) -> None:
    result = call(command, *arguments, cwd=tmp_path)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert result.stderr.startswith("error[") and named in result.stderr
    assert not list(tmp_path.iterdir())


def test_print_stands_anywhere_and_prints_a_recipe(tmp_path: Path) -> None:
    result = call("train", "recipe=quickstart", "--print", "steps=7", "optim.warmup_steps=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "steps: 7  # command line\n" in result.stdout
    (tmp_path / "mine.yaml").write_text(result.stdout)
    again = call("train", "recipe=./mine.yaml", "--print", cwd=tmp_path)
    assert yaml.safe_load(again.stdout) == yaml.safe_load(result.stdout) | {"recipe": "mine"}


LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("variables", LOCALES, ids=lambda variables: " ".join(f"{k}={v}" for k, v in variables.items()))
@pytest.mark.parametrize("command", COMMANDS)
def test_no_locale_breaks_a_message_or_the_help(
    command: str, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = call(command, "--help", cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr and result.stdout.startswith("usage: "), result.stderr
    words = {"train": ["recipe=Zo\u00eb \u4f60"], "data": ["Zo\u00eb"], "export": ["--Zo\u00eb"], "voice": ["Zo\u00eb"],
             "chat": ["--Zo\u00eb"], "serve": ["--Zo\u00eb"]}[command]  # fmt: skip
    result = call(command, *words, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith("error["), result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("variables", LOCALES[2:], ids=["ascii output", "ascii locale"])
def test_files_are_utf_8_whatever_the_locale_is(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mine.yaml").write_text("groups: {model: tiny}\nlogging: {project: \u4f60}\n# Zo\u00eb\n", "utf-8")
    made = call("data", "synth", "service", "--num", "2", "--out", "scripts.jsonl", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    (tmp_path / "scripts.jsonl").read_text("utf-8")
    more = ["data.paths=[a]", "data.mix={a: 1}", "data.batch=1", "data.micro_batch=1", "steps=600", "model.tokenizer=t"]
    printed = call("train", "recipe=mine.yaml", *more, "--print", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert yaml.safe_load(printed.stdout)["logging"]["project"] == "\u4f60"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ppx_train", "recipes"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("codec_small ")


def run_failing(why: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def command(_: Sequence[str]) -> int:
        raise why

    with pytest.raises(SystemExit) as caught:
        run(command)
    assert isinstance(caught.value.code, int)
    return caught.value.code, capsys.readouterr().err


def test_what_foreign_data_calls_itself_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = run_failing(UserError("a\x1b[2J\nerror: all good\x07 \u202e", code="bad-record"), capsys)
    assert (code, message) == (2, "error[bad-record]: a[2J error: all good\n")
    with pytest.raises(SystemExit):
        run(lambda words: print("licence \x1b]0;x\x07MIT\n  next line"))
    assert capsys.readouterr().out == "licence ]0;xMIT\n  next line\n"


def test_a_full_disk_is_one_line_and_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fill(_: Sequence[str]) -> int:
        with open("/dev/full", "w") as full:
            full.write("x" * 100_000)
        return 0

    with pytest.raises(SystemExit) as caught:
        run(fill)
    assert caught.value.code == 1
    assert "no space left on the disk" in capsys.readouterr().err


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: Sequence[str]) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(broken)
    assert run_failing(UserError("fix this", code="exists"), capsys) == (2, "error[exists]: fix this\n")
    assert run_failing(KeyboardInterrupt(), capsys) == (130, "error: interrupted: run the same command again\n")


def test_a_foreign_package_of_the_same_name_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("")
    monkeypatch.setattr(
        roots, "find_spec", lambda name: type("S", (), {"origin": str(tmp_path / name / "__init__.py")})
    )
    with refused("bad-combination", "`model`", tmp_path):
        roots.check_packages()


def test_a_place_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    why = OSError(errno.EROFS, "Read-only file system", "/there/out")
    expected = "error: /there/out: Read-only file system; choose a folder that can be written\n"
    assert run_failing(why, capsys) == (1, expected)


def test_a_lost_process_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = run_failing(RuntimeError("[gloo] Connection closed by peer [127.0.0.1]"), capsys)
    assert code == 1 and message.startswith("error: another process of this run has ended")
