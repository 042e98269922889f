"""Convolutions over the grid."""

from torch import nn

from vlm.connector import Connector
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Grid, Shape

from .grids import from_maps, grid_of, to_maps


class Conv(Connector):
    """A convolution over the grid; with `stride: 2`, four times fewer tokens (Vary arXiv 2312.06109, GOT-OCR2).

    Args:
        kernel: side in cells.
        stride: step in cells.
        padding: zeros around the grid; half the kernel if absent, so that stride 1 keeps the grid.
        bias: whether there is one.
        depthwise: each channel by itself.
        residual: the input is added (with `depthwise`, MobileVLM V2's position encoding, arXiv 2402.03766).
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        depthwise: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.padding = kernel // 2 if padding is None else padding
        problems = positive(kernel=kernel, stride=stride)
        if not 0 <= self.padding <= kernel:
            problems.append(Problem("padding", f"`{padding}`; allowed: 0 to the kernel's {kernel}"))
        if max(kernel, stride) > 1024:
            problems.append(Problem("kernel", f"`{kernel}` with stride {stride}; allowed: 1 to 1024 each"))
        if depthwise and out_width % in_width:
            problems.append(Problem("depthwise", f"needs an output width that {in_width} divides; it is {out_width}"))
        if residual and (stride, 2 * self.padding + 1, out_width) != (1, kernel, in_width):
            problems.append(Problem("residual", "needs input and output of one shape: stride 1, own padding and width"))
        if problems:
            raise ConfigError(problems)
        self.out_width = out_width
        self.residual = residual
        groups = in_width if depthwise else 1
        self.conv = nn.Conv2d(in_width, out_width, kernel, stride, self.padding, groups=groups, bias=bias)

    def forward(self, features: Features) -> Features:
        """[N, H * W, in_width] -> [N, h * w, out_width]."""
        maps = to_maps(features)
        found = self.conv(maps)
        return from_maps(found + maps if self.residual else found, features)

    def shape(self, shape: Shape) -> Shape:
        grid = self._grid(grid_of(shape))
        return Shape(grid[0] * grid[1], self.out_width, grid)

    def _grid(self, grid: Grid) -> Grid:
        rows, columns = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in grid)
        if rows < 1 or columns < 1:
            around = f"{grid[0]} x {grid[1]} with padding {self.padding}"
            raise ConfigError(Problem("kernel", f"`{self.kernel}` is more than a side of the grid {around}"))
        return rows, columns
