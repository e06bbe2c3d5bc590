"""Write exact pins of everything that builds the book and passes the tests.

Run in an environment where `python -m pip install -e '.[book,test,tensorboard]'` has been done:

    python .ci/freeze.py > requirements.txt

Only what those extras need, directly or not, is listed, so a stray package of the environment stays out.
What is needed on Linux alone (the CUDA libraries of torch) carries a marker, so that the file also installs
on macOS and Windows.
"""

from __future__ import annotations

from importlib.metadata import Distribution, distribution

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "focal-tutorial"
EXTRAS = ("book", "test", "tensorboard")
HERE: dict[str, str] = {}  # no change to this machine's markers
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
MACOS = {
    "sys_platform": "darwin",
    "platform_system": "Darwin",
    "os_name": "posix",
    "platform_machine": "arm64",
}
WINDOWS = {
    "sys_platform": "win32",
    "platform_system": "Windows",
    "os_name": "nt",
    "platform_machine": "AMD64",
}


def closure(platform: dict[str, str], extras: tuple[str, ...] = EXTRAS) -> dict[str, Distribution]:
    """Every distribution that the project with `extras` needs on `platform`, as far as it is installed here."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(PROJECT, extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = distribution(name)
        except ModuleNotFoundError:  # a package of the other platform (colorama, appnope): left to pip
            continue
        for line in found[name].requires or []:
            need = Requirement(line)
            environment: dict[str, str] = {**default_environment(), **platform, "extra": extra}  # type: ignore[dict-item]
            if need.marker is None or need.marker.evaluate(environment):
                todo += [(canonicalize_name(need.name), e) for e in ("", *need.extras)]
    del found[PROJECT]
    return found


def main() -> None:
    linux, elsewhere = closure(LINUX), closure(MACOS) | closure(WINDOWS)
    print("# Exact versions of everything that builds the book and passes the tests (Python 3.11).")
    print("# Generated, do not edit:  python .ci/freeze.py > requirements.txt   (how and when: CONTRIBUTING.md)")
    for name, dist in sorted(linux.items()):
        marker = "" if name in elsewhere else ' ; sys_platform == "linux"'
        print(f"{name}=={dist.version.partition('+')[0]}{marker}")
    print("-e .")


if __name__ == "__main__":
    main()
