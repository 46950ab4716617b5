"""Hook of mkdocs: files of the repository that pages link to, such as ``../LICENSE``, are copied into the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

LINK = re.compile(r"\]\((\.\./[^)#\s]+)")


class RepositoryFile(File):
    """A file outside of the documentation's folder, in the site as it is in the repository."""

    def is_documentation_page(self) -> bool:
        return False


def on_files(files: Files, config: Any) -> Files:
    docs = Path(config.docs_dir)
    links = {link for page in docs.glob("*.md") for link in LINK.findall(page.read_text())}
    for link in sorted(link for link in links if (docs / link).is_file()):
        file = RepositoryFile(link, config.docs_dir, config.site_dir, False, inclusion=InclusionLevel.INCLUDED)
        file.dest_uri = link.replace("../", "repository/", 1)
        files.append(file)
    return files
