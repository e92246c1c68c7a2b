"""HTML pages from the folder `templates`. A page is self-contained, and has no scripts."""

from typing import Any

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("stillroom.reports", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def render_page(template: str, **values: Any) -> str:
    """Renders a template with the values."""
    return TEMPLATES.get_template(template).render(**values)
