"""The type checker for jaxtyping's import hook: annotated shapes are checked while tests run.

``pytest --jaxtyping-packages=cv_core,shape_checker.checked`` uses it, as the session ``smoke``
does; nothing does at a user's run time. As in PEP 484, an ``int`` will do where a ``float`` is
annotated. It lies outside the packages because the hook imports it before any of them.
"""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
