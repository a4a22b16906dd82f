"""Ask a database of vulnerabilities about everything that is installed.

``make audit`` runs pip-audit, in an environment of its own, over ``.venv``. It exits with 1 for
known vulnerabilities and with 2 where no database answers.
"""

import json
import subprocess
import sys

NO_DATABASE = 2
_REMEDY = "audit on a machine that reaches one, or choose with ARGS='--vulnerability-service osv'"


def main() -> None:
    """Audit the installed packages of a Python, with further arguments for pip-audit."""
    python, *arguments = sys.argv[1:]
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([python, "-c", where], text=True).strip()
    command = [sys.executable, "-m", "pip_audit", "--path", packages, "--skip-editable"]
    command += ["--format", "json", "--progress-spinner", "off", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    text, code = report(ran.stdout, ran.stderr)
    print(text)
    sys.exit(code)


def report(found: str, errors: str) -> tuple[str, int]:
    """What to print, and the exit status.

    Args:
        found: pip-audit's report in JSON, or nothing where it failed.
        errors: What it said on its way.
    """
    if not found.strip():
        last = (errors.strip() or "pip-audit said nothing").splitlines()[-1]
        return f"error: nothing was audited: {last}\n{_REMEDY}", NO_DATABASE
    packages = json.loads(found)["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        return f"error: nothing was audited: no database knows the packages\n{_REMEDY}", NO_DATABASE
    lines = [
        f"{package['name']} {package['version']}: {', '.join([v['id'], *v['aliases']])}; "
        f"mended in {', '.join(v['fix_versions']) or 'no version yet'}"
        for package in audited
        for v in package["vulns"]
    ]
    unknown = len(packages) - len(audited)
    summary = f"{len(audited)} packages audited, {unknown} unknown there, {len(lines)} findings"
    return "\n".join([*lines, summary]), int(bool(lines))


if __name__ == "__main__":
    main()
