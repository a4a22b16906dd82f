"""What comes from outside is known by its hash: packages, and the actions of the workflows."""

import json
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support import ROOT

sys.path.insert(0, str(ROOT / "ci"))
import audit  # noqa: E402
import lock  # noqa: E402

# A package in one version, for some platforms or all, and its hashes.
PINNED = re.compile(
    r"^([\w.-]+)==([^\s;]+)(?: ;[^\\]*)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)
LOCKS = {path.stem: path for path in lock.LOCKS.glob("*.txt")}
HASH = "sha256:" + "0" * 64


def versions(text: str) -> dict[str, set[str]]:
    """Versions by package; the text is a lock without its comments."""
    found: dict[str, set[str]] = {}
    while text:
        entry = PINNED.match(text)
        assert entry, f"without version or hash: {text[:80]}"
        found.setdefault(canonicalize_name(entry[1]), set()).add(entry[2])
        text = text[entry.end() :]
    return found


def locked(name: str) -> dict[str, set[str]]:
    """Versions by package of a lock."""
    return versions(re.sub(r"^#.*\n", "", LOCKS[name].read_text(), flags=re.MULTILINE))


def test_a_line_without_hash_is_noticed():
    assert versions(f"a==1 ; os_name == 'nt' \\\n    --hash={HASH}\n") == {"a": {"1"}}
    with pytest.raises(AssertionError, match="without version or hash: a==1"):
        versions("a==1\n")


@pytest.mark.parametrize("name", sorted(LOCKS.keys() - {"oldest"}))
def test_locks_have_the_versions_of_the_constraints(name):
    tested: dict[str, set[str]] = {}
    for line in (ROOT / "ci" / "constraints.txt").read_text().splitlines():
        if entry := re.match(r"([\w.-]+)==([^\s;]+)", line):
            tested.setdefault(canonicalize_name(entry[1]), set()).add(entry[2])
    for package, found in locked(name).items():
        assert found <= tested.get(package, found), package


@pytest.mark.parametrize("name", lock.CONTENTS)
def test_locks_have_what_is_asked_for(name):
    have = locked(name)
    if name != "tools":
        # What only some platforms install with it is not there on the others.
        everywhere = set(map(canonicalize_name, lock.packages(LOCKS["install"])))
        have |= {p: found for p, found in locked("install").items() if p in everywhere}
    for requirement in map(Requirement, lock.requirements(name)):
        found = have[canonicalize_name(requirement.name)]
        assert all(version in requirement.specifier for version in found), requirement


def test_every_extra_is_in_a_lock():
    """Those of GPUs are chosen by the user, for the CUDA at hand; `make` installs no demo."""
    project = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())["project"]
    extras = {extra for wanted, _ in lock.CONTENTS.values() for extra in wanted}
    assert set(project["optional-dependencies"]) - extras == {"cuda12", "cuda13", "demo"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name
)
def test_actions_are_named_by_commit(path):
    used = re.findall(r"uses: *(.*)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", action), action


def audited(*packages: dict) -> tuple[str, int]:
    return audit.report(json.dumps({"dependencies": packages}), "")


FINE = {"name": "fine", "version": "1", "vulns": []}
SKIPPED = {"name": "own", "skip_reason": "not found"}


def test_audit_without_a_database_says_so():
    trace = 'Traceback (most recent call last):\n  File "x.py"\nrequests.ConnectionError: no route'
    for text, code in (audit.report("", trace), audited(SKIPPED)):
        assert code == audit.NO_DATABASE
        assert text.startswith("error: nothing was audited: ")
        assert "Traceback" not in text


def test_audit_names_what_it_found():
    assert audited(FINE, SKIPPED) == ("1 packages audited, 1 unknown there, 0 findings", 0)
    bad = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}
    text, code = audited(FINE, {"name": "worn", "version": "1", "vulns": [bad]})
    assert code == 1
    assert text.startswith("worn 1: PYSEC-1, CVE-1; mended in 2\n")
