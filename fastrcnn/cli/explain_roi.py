"""fastrcnn explain-roi: a picture and a table of what RoI pooling does to one RoI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastrcnn.config.compose import compose
from fastrcnn.config.schema import ExplainRoiConfig
from fastrcnn.errors import UserError

if TYPE_CHECKING:
    from fastrcnn.report.explain_roi import Question


EXAMPLES = [
    "fastrcnn explain-roi example=8x8",
    "fastrcnn explain-roi grid=38x63 roi=[100,40,460,300]",
    "fastrcnn explain-roi image=photo.jpg roi=[100,40,460,300] output_size=[7,7]",
]

# fmt: off
MAP_8X8 = [
    [0.88, 0.44, 0.14, 0.16, 0.37, 0.77, 0.96, 0.27], [0.19, 0.45, 0.57, 0.16, 0.63, 0.29, 0.71, 0.70],
    [0.66, 0.26, 0.82, 0.64, 0.54, 0.73, 0.59, 0.26], [0.85, 0.34, 0.76, 0.84, 0.29, 0.75, 0.62, 0.25],
    [0.32, 0.74, 0.21, 0.39, 0.34, 0.03, 0.33, 0.48], [0.20, 0.14, 0.16, 0.13, 0.73, 0.65, 0.96, 0.32],
    [0.19, 0.69, 0.09, 0.86, 0.88, 0.07, 0.01, 0.48], [0.83, 0.24, 0.97, 0.04, 0.24, 0.35, 0.50, 0.91],
]
# fmt: on


def main(arguments: list[str]) -> int:
    """Prints the table, writes the pictures."""
    return run(compose("explain-roi", arguments))


def run(config: ExplainRoiConfig) -> int:
    """As `main`, for a configuration. Raises UserError for a mistake in it."""
    question, name = question_of(config)
    from fastrcnn.report.explain_roi import write_explanation

    text, paths = write_explanation(question, Path(config.output).expanduser(), name)
    print(text)
    print("\nwritten: " + ", ".join(str(p) for p in paths))
    return 0


def question_of(config: ExplainRoiConfig) -> tuple[Question, str]:
    """What is asked, and a name for it."""
    import numpy as np

    from fastrcnn.report.explain_roi import Question

    asked = [k for k in ("example", "grid", "image") if getattr(config, k)]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: one of them is enough.")
    if not asked or asked == ["example"]:
        examples = {
            "8x8": Question(np.array(MAP_8X8, np.float32), (0, 3, 7, 8), 1, (2, 2)),
            "16x16": Question(numbered(16, 16), (296, 192, 496, 337), 32, (3, 3)),
        }
        name = config.example or "8x8"
        return examples[name], name
    if len(config.roi) != 4:
        raise UserError("which RoI? roi=[x1,y1,x2,y2], in pixels of the image.")
    if config.stride < 1:
        raise UserError(f"stride={config.stride}: a cell is at least one pixel wide.")
    if len(config.output_size) != 2 or min(config.output_size) < 1:
        raise UserError(f"output_size={config.output_size}: two numbers, rows and columns of bins.")
    grid, name = (grid_of_image if asked == ["image"] else read_grid)(config)
    if grid.ndim != 2 or not grid.size:
        raise UserError(f"{asked[0]}: has no cell at stride={config.stride}.")
    x1, y1, x2, y2 = config.roi
    return Question(grid, (x1, y1, x2, y2), config.stride, (config.output_size[0], config.output_size[1])), name


def numbered(height: int, width: int):  # type: ignore[no-untyped-def]  # numpy is imported late
    import numpy as np

    return np.arange(height * width, dtype=np.float32).reshape(height, width)


def read_grid(config: ExplainRoiConfig):  # type: ignore[no-untyped-def]
    import numpy as np

    text = config.grid or ""
    height, by, width = text.partition("x")
    if by and height.isdigit() and width.isdigit():
        return numbered(int(height), int(width)), text
    try:
        return np.loadtxt(Path(text).expanduser(), dtype=np.float32, ndmin=2), Path(text).stem
    except OSError:
        raise UserError(f"grid={text}: neither HEIGHTxWIDTH nor a file that can be read.") from None
    except ValueError as error:
        raise UserError(f"grid={text}: not a table of numbers, separated by spaces: {error}") from None


def grid_of_image(config: ExplainRoiConfig):  # type: ignore[no-untyped-def]
    """The mean brightness, 0 to 1, of each stride x stride block of pixels."""
    import numpy as np
    from PIL import Image

    from fastrcnn.data.images import read_image

    path, stride = Path(config.image or "").expanduser(), config.stride
    try:
        pixels = np.asarray(Image.fromarray(read_image(path)).convert("L"), dtype=np.float32) / 255
    except UserError as error:
        raise UserError(f"image={error}") from None
    height, width = pixels.shape[0] // stride, pixels.shape[1] // stride
    blocks = pixels[: height * stride, : width * stride].reshape(height, stride, width, stride)
    return blocks.mean(axis=(1, 3)), path.stem
