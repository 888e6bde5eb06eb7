"""Write what is generated: ``python -m docs.source``, or ``make reference``."""

from docs.source.pages import HOME, generated

HOME.mkdir(exist_ok=True)
for name, text in generated().items():
    (HOME / name).write_text(text, encoding="utf-8")
