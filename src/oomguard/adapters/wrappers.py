"""Programs that start another one: taken off a command to read it, and put back to launch it."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from oomguard.errors import FrameworkError, Where

PYTHONPATH = "PYTHONPATH"
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A program, with its subcommand, that runs the command after its options.

    `bare` options take no value and `valued` ones do; `refused` ones change what the job sees of
    oomguard. `own_python` says that it chooses the Python of the command.
    """

    words: tuple[str, ...]
    bare: frozenset[str] = frozenset()
    valued: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    own_python: bool = False


def _options(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONDA = {
    "bare": _options("--no-capture-output --live-stream -v --verbose --debug-wrapper-scripts"),
    "valued": _options("-n --name -p --prefix"),
    "refused": _options("--cwd"),
}
#: Sources: the manuals of coreutils 9, GNU time 1.9, uv 0.9, poetry 2, conda 25, pixi 0.50.
WRAPPERS = (
    Wrapper(
        words=("env",),
        valued=_options("-u --unset"),
        refused=_options("-i --ignore-environment - -S --split-string -C --chdir"),
    ),
    Wrapper(words=("nohup",)),
    Wrapper(words=("nice",), valued=_options("-n --adjustment")),
    Wrapper(words=("stdbuf",), valued=_options("-i --input -o --output -e --error")),
    Wrapper(
        words=("time",),
        bare=_options("-p --portability -v --verbose -a --append -q --quiet"),
        valued=_options("-f --format -o --output"),
    ),
    Wrapper(
        words=("uv", "run"),
        bare=_options(
            "--frozen --locked --no-sync --isolated --active --offline --no-project --no-dev "
            "--all-extras --all-groups --exact --no-config --no-env-file -q --quiet -v --verbose"
        ),
        valued=_options(
            "--with --with-editable --with-requirements --extra --group --only-group --no-group "
            "--package --project -p --python --env-file --index --default-index --index-url"
        ),
        refused=_options("--directory -m --module -s --script"),
        own_python=True,
    ),
    Wrapper(words=("poetry", "run"), own_python=True),
    *(
        Wrapper(words=(name, "run"), own_python=True, **_CONDA)
        for name in ("conda", "mamba", "micromamba")
    ),
    Wrapper(
        words=("pixi", "run"),
        bare=_options("--frozen --locked --no-install --as-is -q --quiet -v --verbose"),
        valued=_options("-e --environment --manifest-path"),
        refused=_options("--clean-env"),
        own_python=True,
    ),
)
#: They start processes on other machines or under other services, which oomguard cannot follow.
_AWAY = frozenset({"srun", "sbatch", "salloc", "mpirun", "mpiexec", "ssh", "docker", "sudo"})
#: The monitor is found by it.
_OURS = frozenset({PYTHONPATH})
_SHELLS = frozenset({"bash", "sh", "dash", "zsh"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwrapped:
    """A command without its wrappers: `wrapper` and `argv` in a row are the whole command.

    `env` is what the wrappers set, None for a variable that they remove. `own_python` says that
    one of them chooses the Python.
    """

    wrapper: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    env: Mapping[str, str | None] = field(default_factory=dict)
    own_python: bool = False

    @property
    def for_job(self) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Return the words to put back and the variables to set in the job's own environment.

        A PYTHONPATH that `env` sets would hide oomguard's, so it is set together with that.
        """
        path = self.env.get(PYTHONPATH)
        if path is None:
            return self.wrapper, {}
        return tuple(w for w in self.wrapper if w != f"{PYTHONPATH}={path}"), {PYTHONPATH: path}


def unwrap(argv: tuple[str, ...]) -> Unwrapped:
    """Return a command without its wrappers.

    Raises:
        FrameworkError: for a wrapper, or an option of one, that oomguard cannot put back.
    """
    at, own_python = 0, False
    env: dict[str, str | None] = {}
    while at < len(argv):
        rest = argv[at:]
        program = posixpath.basename(rest[0])
        if program in _AWAY:
            raise _inside(argv, at, rest[:1], f"what {program} starts cannot be followed")
        wrapper = next((w for w in WRAPPERS if (program, *rest[1 : len(w.words)]) == w.words), None)
        if wrapper is None:
            break
        at = _past_options(wrapper, argv, at, env)
        own_python = own_python or wrapper.own_python
    if at and at >= len(argv):
        raise FrameworkError(
            "there is no command after the wrapper",
            where=Where(key=" ".join(argv[:2])),
            next_step=f"Use: oomguard launch -- {shlex.join(argv)} python train.py ...",
        )
    return Unwrapped(wrapper=argv[:at], argv=argv[at:], env=env, own_python=own_python)


def _past_options(
    wrapper: Wrapper, argv: tuple[str, ...], at: int, env: dict[str, str | None]
) -> int:
    """Return where the command of a wrapper begins, and note what it sets."""
    is_env, start = wrapper.words == ("env",), at
    at += len(wrapper.words)
    while at < len(argv):
        word = argv[at]
        assigned = _ASSIGNMENT.fullmatch(word) if is_env else None
        name, equals, value = word.partition("=")
        if assigned:
            env[assigned[1]] = assigned[2]
        elif word == "--":
            return at + 1
        elif not word.startswith("-"):
            return at
        elif name in wrapper.refused:
            raise _inside(argv, start, (*wrapper.words, word), f"{word} cannot be kept")
        elif name in wrapper.valued and not equals:
            at += 1
            value = "".join(argv[at : at + 1])
        elif not _is_known(wrapper, name, equals):
            raise _inside(argv, start, (*wrapper.words, word), f"{word} is unknown")
        if is_env and name in wrapper.valued:
            env[value] = None
            if value in _OURS:
                raise _inside(argv, start, (*wrapper.words, word), f"oomguard needs {value}")
        at += 1
    return at


def _is_known(wrapper: Wrapper, name: str, equals: str) -> bool:
    """Return whether an option takes no further word: bare, with its value attached, or -10."""
    attached = any(len(o) == 2 and name.startswith(o) for o in wrapper.valued)  # noqa: PLR2004 # -oL
    number = wrapper.words == ("nice",) and name[1:].isdecimal()
    return name in wrapper.bare or bool(equals and name in wrapper.valued) or attached or number


def _inside(argv: tuple[str, ...], start: int, words: tuple[str, ...], why: str) -> FrameworkError:
    before = shlex.join(argv[: start + 1])
    return FrameworkError(
        f"the command cannot be taken out of its wrapper: {why}",
        where=Where(key=" ".join(words)),
        next_step=f"Start oomguard inside it: {before} ... oomguard launch -- COMMAND",
    )


#: What a shell would do with a word: only plain words and quotes are read here.
_SHELL_WORK = re.compile(r"[$`|&;<>(){}*?~\[\]!]")
_IGNORED = re.compile(r"set(\s+[-+][a-zA-Z]+(\s+pipefail)?)+|:|true")


def unwrap_script(argv: tuple[str, ...], read: Callable[[str], str]) -> Unwrapped | None:
    """Return the one command of a shell script that else only sets variables.

    None if `argv` is not such a script. `read` returns the text of a file.

    Raises:
        FrameworkError: if the script does anything else.
    """
    shell = bool(argv) and posixpath.basename(argv[0]) in _SHELLS
    if not shell or len(argv) < 2 or argv[1].startswith("-"):  # noqa: PLR2004
        return None
    name = argv[1]
    if argv[2:]:
        raise _of_script(name, None, "it takes arguments")
    env: dict[str, str | None] = {}
    command: tuple[str, ...] = ()
    for number, line in _lines(read(name)):
        if command:
            raise _of_script(name, number, "it goes on after its command")
        words = _words(name, number, line)
        exported = words[:1] == ["export"]
        assigned = [_ASSIGNMENT.fullmatch(word) for word in words[exported:]]
        leading = next((n for n, found in enumerate(assigned) if found is None), len(assigned))
        if exported and leading < len(assigned):
            raise _of_script(name, number, "it exports what it does not set")
        if leading == len(assigned) and not exported:
            raise _of_script(name, number, "it sets a variable that it does not export")
        env |= {found[1]: found[2] for found in assigned[:leading] if found is not None}
        command = tuple(words[exported + leading :])
        command = command[1:] if command[:1] == ("exec",) else command
    if not command:
        raise _of_script(name, None, "it starts no command")
    inner = unwrap(command)
    settings = tuple(f"{key}={value}" for key, value in env.items())
    wrapper = ("env", *settings, *inner.wrapper) if settings else inner.wrapper
    return Unwrapped(
        wrapper=wrapper, argv=inner.argv, env={**env, **inner.env}, own_python=inner.own_python
    )


def _lines(text: str) -> list[tuple[int, str]]:
    """Return the lines that do something, each with its number; continued lines in one."""
    found: list[tuple[int, str]] = []
    whole = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.endswith("\\"):
            whole += line[:-1] + " "
            continue
        stripped, whole = (whole + line).strip(), ""
        if stripped and not stripped.startswith("#") and not _IGNORED.fullmatch(stripped):
            found.append((number, stripped))
    return [*found, *([(len(text.splitlines()), whole.strip())] if whole.strip() else [])]


def _words(name: str, number: int, line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise _of_script(name, number, str(error).lower()) from error
    if _SHELL_WORK.search(re.sub(r"'[^']*'", "", line)):
        raise _of_script(name, number, "it needs a shell")
    if words and words[0] in {"cd", "source", ".", "eval", "if", "for", "while", "wait"}:
        raise _of_script(name, number, f"{words[0]} is more than setting variables")
    return words


def _of_script(name: str, line: int | None, why: str) -> FrameworkError:
    return FrameworkError(
        f"the script is more than exports and one command: {why}",
        where=Where(file=name, line=line),
        next_step="Start oomguard in it, before its training command: oomguard launch -- COMMAND",
    )
