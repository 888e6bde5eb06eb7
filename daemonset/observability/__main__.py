"""Write what is generated: ``python -m daemonset.observability``, or ``make dashboards``."""

from daemonset.observability.files import HOME, generated

for name, text in generated().items():
    path = HOME / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
