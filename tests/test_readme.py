"""Every command, link and code block of README.md and docs/: verbs exist, flags parse, configs load; nothing is executed."""

import importlib
import pathlib
import re
import shlex

import pytest

from segjax import cli
from segjax.errors import ConfigError
from segjax.verbs import build, config_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SEPARATORS = (";", "&&", "||", "|", "&")
SHELL_WORDS = ("for", "done", "export", "source")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [body for kind, body in FENCE.findall(text) if kind == language]


def commands(script: str) -> list[list[str]]:
    """The simple commands of a shell text as words: without leading assignments, `do` and comments, every $variable as 0."""
    found: list[list[str]] = [[]]
    for line in re.sub(r"\$\w+", "0", script.replace("\\\n", " ")).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        for word in lexer:
            if word in SEPARATORS:
                found.append([])
            elif found[-1] or (word != "do" and not re.match(r"[A-Z_]+=", word)):
                found[-1].append(word)
        found.append([])
    return [words for words in found if words]


def whole_commands(page: pathlib.Path) -> list[list[str]]:
    return [words for body in blocks(page.read_text(), "bash") for words in commands(body)]


def quoted_commands(page: pathlib.Path) -> list[list[str]]:
    """What running text quotes between backticks: often the first words of a command only."""
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))
    return [words for span in spans for words in commands(span) if words[0] in ("segjax", "bash", "python") and len(words) > 1]


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """A folder with the README's python blocks under the names in their first lines, as a reader would save them."""
    for body in blocks((ROOT / "README.md").read_text(), "python"):
        name = re.match(r"# (\w+\.py)\n", body)
        assert name, f"a python block without its file name: {body[:60]!r}"
        (tmp_path / name[1]).write_text(body)
    monkeypatch.syspath_prepend(str(ROOT / "configs"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


def check(words: list[str], fork: pathlib.Path, *, whole: bool = True) -> None:
    """AssertionError or ConfigError for a command that would not begin to work. whole=False: required flags may be missing."""
    if words[:3] == ["python", "-m", "segjax"]:
        words = words[2:]
    if words[0] == "segjax":
        _check_verb(words[1], words[2:], fork, whole)
    elif words[0] in ("bash", "python"):
        _check_script(words[1], words[2:], fork)
    elif words[0] == "pip":
        extras = re.findall(r"\[(\w+)\]", " ".join(words))
        assert all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras), f"no extra {extras}"
    else:
        assert words[0] in SHELL_WORDS, f"{words[0]}: not a command that these pages should need"


def _check_verb(verb: str, flags: list[str], fork: pathlib.Path, whole: bool) -> None:
    if verb in ("VERB", "--help", "--version"):
        return
    assert verb in cli.verbs(), f"no verb {verb!r}"
    if flags == ["--help"]:
        return
    flags = [_in_fork(flag, fork) for flag in flags]
    try:
        cli._parse(verb, importlib.import_module(f"segjax.verbs.{verb.replace('-', '_')}"), flags)
    except ConfigError as error:
        if whole or "arguments are required" not in str(error):
            raise


def _in_fork(flag: str, fork: pathlib.Path) -> str:
    """--config=FILE with the folder of the reader's own files where the repository has no such FILE."""
    own = re.match(r"--config=(?:configs/)?([^:/]+)", flag)
    return f"--config={fork / own[1]}" if own and (fork / own[1]).exists() else flag


def _check_script(name: str, flags: list[str], fork: pathlib.Path) -> None:
    path = ROOT / name
    assert path.is_file(), f"no script {name}"
    if path.name == "quickstart.sh":
        _check_verb("run", ["--config=configs/quickstart.py", "--workdir=x", *flags], fork, whole=True)
    elif path.suffix == ".py":
        known = re.findall(r'add_argument\("(--[\w-]+)"', path.read_text())
        assert all(flag.split("=")[0] in known for flag in flags if flag.startswith("--")), f"{name} {flags}: it has {known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_parses(page, fork):
    wrong = []
    for whole, found in ((True, whole_commands(page)), (False, quoted_commands(page))):
        for words in found:
            try:
                check(words, fork, whole=whole)
            except (AssertionError, ConfigError) as error:
                wrong.append(f"{shlex.join(words)}: {error}")
    assert wrong == []


def test_the_readme_shows_every_verb():
    assert {words[1] for words in whole_commands(ROOT / "README.md") if words[0] == "segjax"} == set(cli.verbs())


@pytest.mark.parametrize(
    "line",
    (
        "segjax trian --config=configs/quickstart.py",
        "segjax doctor --fast",
        "segjax report",
        "segjax run --config=configs/quickstart.py --workdir=x --config.no_such_key=1",
        "bash scripts/nothing.sh",
        "bash scripts/quickstart.sh --config.no_such_key=1",
        "python scripts/bench_loader.py --no-such=1",
        "pip install segjax[nothing]",
    ),
)
def test_the_check_finds_mistakes(line, fork):
    with pytest.raises((AssertionError, ConfigError)):
        check(commands(line)[0], fork)


def test_shell_is_read_as_meant():
    text = "for s in 0 1; do A=b segjax run --x=$s; done\nB=c bash scripts/test.sh tests \\\n  -x   # why\n"
    expected = ["for s in 0 1", "segjax run --x=0", "done", "bash scripts/test.sh tests -x"]
    assert [" ".join(words) for words in commands(text)] == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_within_the_repository_exist(page):
    text = FENCE.sub("", page.read_text())
    headings = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, f"no heading for {target}"
        elif "://" not in target:
            assert (page.parent / target.split("#")[0]).exists(), f"{target} does not exist"


def test_the_readmes_own_configs_build(fork):
    """The examples to copy: every stage resolves to a network and a method that take their keywords."""
    for name in ("my_day_night.py", "minent_day_dusk.py"):
        config = config_file.load(str(fork / name))
        for stage in build.stage_names(config):
            assert len(build.stage(config, stage).method) == 3
