"""`stillroom doctor`."""

import typer

from stillroom.cli.app import AsJson, print_findings


def doctor(as_json: AsJson = False) -> None:
    """Check this machine and the cluster.

    Versions, GPUs, the quickstart's models, storage and the Ray cluster.

    Example: stillroom doctor
    """
    from stillroom.preflight.machine import examine_machine

    findings = list(examine_machine())
    print_findings(findings, as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
