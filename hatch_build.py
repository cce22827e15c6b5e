"""The description of the package: what the README says to those who have no checkout."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# Of a checkout: the picture and its table, what to run there, and where things lie.
LEFT_OUT = ("Two commands", "Examples", "Where to look", "How fast, on a GPU", "Citing")
FROM_PICTURE = re.compile(r"^!\[.*", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\((?!http|#)[^)]*\)")
COMMENT = re.compile(r"<!--.*?-->\n?")
INSTALL = "```\npip install ndgpa\n```\n\n"


class Description(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": alone(text)}


def alone(readme: str) -> str:
    """Leave out what only a checkout has; of links into it, keep the words."""
    start, *sections = re.split(r"^(?=## )", readme, flags=re.MULTILINE)
    kept = [text for text in sections if text.split("\n")[0][3:] not in LEFT_OUT]
    text = "".join([FROM_PICTURE.sub("", start), INSTALL, *kept])
    return LINK.sub(r"\1", COMMENT.sub("", text))
