"""Study 5 at its smallest: what the tests of study, searches and tables share."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from xai_lib.config import runtime
from xai_lib.studies.deletion import study as study_of

SMALL = replace(study_of.settings("smoke"), roc=2)


@cache
def trained() -> tuple[study_of.Ready, Path]:
    """Networks of an epoch, and the folder they were written to; the classifier calls every image a mass."""
    folder = Path(mkdtemp(prefix="deletion"))
    ready = study_of.prepare(SMALL, 0, runtime("cpu"), folder, progress=False)
    ready.classifier.head.bias.data += 10.0
    return ready, folder
