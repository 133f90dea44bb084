"""The command `fastrcnn explain-roi`: a drawing and a table of RoI pooling for one RoI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import ExplainRoiConfig
from fastrcnn.errors import UserError
from fastrcnn.files import refuse_unusable

if TYPE_CHECKING:
    from fastrcnn.report.explain_roi import Question


EXAMPLES = [
    "fastrcnn explain-roi example=8x8",
    "fastrcnn explain-roi grid=38x63 roi=[100,40,460,300]",
    "fastrcnn explain-roi image=photo.jpg roi=[100,40,460,300] output_size=[7,7]",
]


def main(arguments: list[str]) -> int:
    """Print a table and write drawings of how RoI pooling divides an RoI into bins."""
    return run(compose("explain-roi", arguments))


def run(config: ExplainRoiConfig) -> int:
    """Run the command with a configuration. Raises UserError if a value is invalid or the folder is not writable."""
    folder = Path(config.output).expanduser()
    refuse_unusable(folder, f"output={folder}")
    question, name = question_of(config)
    from fastrcnn.report.roi_drawing import write_explanation

    text, paths = write_explanation(question, folder, name)
    print(text)
    print("\nWrote " + ", ".join(str(p) for p in paths))
    return 0


def question_of(config: ExplainRoiConfig) -> tuple[Question, str]:
    """Return the RoI, the feature map and a name for the output files. Raises UserError for an invalid value."""
    from fastrcnn.report.explain_roi import EXAMPLES, Question, grid_of_image, read_grid

    asked = [k for k in ("example", "grid", "image") if getattr(config, k)]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: set only one of these keys.")
    if not asked or config.example:
        name: str = config.example or "8x8"
        return EXAMPLES[name], name
    if len(config.roi) != 4:
        raise UserError("Specify the RoI as roi=[x1,y1,x2,y2], in pixels.")
    if config.stride < 1:
        raise UserError(f"stride={config.stride}: must be at least 1 pixel.")
    if len(config.output_size) != 2 or min(config.output_size) < 1:
        raise UserError(f"output_size={config.output_size}: must be two positive numbers (rows and columns of bins).")
    if config.image:
        path = Path(config.image).expanduser()
        try:
            grid, name = grid_of_image(path, config.stride), path.stem
        except UserError as error:
            raise UserError(f"image={error}") from None
    else:
        grid, name = read_grid(str(config.grid))
    if grid.ndim != 2 or not grid.size:
        raise UserError(f"{asked[0]}: the map has no cells (stride={config.stride}). Use a larger {asked[0]}.")
    x1, y1, x2, y2 = config.roi
    return Question(grid, (x1, y1, x2, y2), config.stride, (config.output_size[0], config.output_size[1])), name
