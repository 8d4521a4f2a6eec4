"""A small vision transformer: patches of an image, the encoder over their grid, one answer per image."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from tsla.mixers import Mixer
from tsla.models.classifier import Classified, SequenceClassifier
from tsla.models.encoder import Encoder
from tsla.ops.checks import check_mask


class VisionTransformer(nn.Module):
    """One of `num_classes` for each image, whose square patches are the tokens (arXiv 2010.11929).

    >>> model = VisionTransformer(image_size=(32, 32), patch_size=4, channels=3, num_classes=10, dim=128, depth=2)
    >>> logits = model(torch.randn(2, 3, 32, 32))

    Args:
        image_size: height and width in pixels.
        patch_size: side of a patch, which divides both.
        channels: numbers of a pixel.
        levels: if given, pixels may also come as ids of grey levels, 1 the darkest; they are spread over -1 to 1.
        num_classes: width of the logits.
        dim, depth, heads, mixer, causal, norm, feed_forward, feed_forward_mult, dropout, gradient_checkpointing: of
            the `Encoder`; a causal one goes from patch to patch, row by row.
        positions: ``"sinusoidal"`` of row and column, ``"learned"``, ``"rotary"`` (row by row), or ``"none"``.
        short_conv: side of a depthwise convolution over neighbouring patches before each mixer; 0 = none.
        conv_residual: what it finds goes on beside the mixer, too, see `Block`.
        pool: ``"mean"`` over patches or ``"attention"``, a learned weighting.

    Raises:
        ValueError: options that do not fit together.
    """

    def __init__(
        self, *, image_size: tuple[int, int], patch_size: int, channels: int = 1, levels: int | None = None,
        num_classes: int, dim: int, depth: int, heads: int | None = None, mixer: Callable[[int], Mixer] | None = None,
        causal: bool = False, positions: str = "sinusoidal", short_conv: int = 0, conv_residual: bool = False,
        norm: str = "layer", feed_forward: str = "gelu", feed_forward_mult: float = 4.0, pool: str = "mean",
        dropout: float = 0.0, gradient_checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        height, width = image_size
        if patch_size < 1 or min(image_size) < 1 or height % patch_size or width % patch_size:
            raise ValueError(f"patch_size ({patch_size}) must divide the image, {height} x {width} pixels")
        if channels < 1:
            raise ValueError(f"channels ({channels}) must be at least 1")
        if levels is not None and (levels < 2 or channels != 1):
            raise ValueError(f"levels ({levels}) must be at least 2, of one channel, got {channels}")
        self.image_size, self.patch_size, self.channels, self.levels = (height, width), patch_size, channels, levels
        encoder = Encoder(
            input_dim=channels * patch_size**2, dim=dim, depth=depth, heads=heads, mixer=mixer, causal=causal,
            positions=positions, grid=(height // patch_size, width // patch_size), norm=norm,
            feed_forward=feed_forward, feed_forward_mult=feed_forward_mult, short_conv=short_conv,
            conv_residual=conv_residual, dropout=dropout, gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip
        self.classifier = SequenceClassifier(encoder, num_classes=num_classes, pool=pool, dropout=dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ``(b, num_classes)`` of images, or of rows of pixels, row by row of the image.

        Args:
            x: images ``(b, channels, height, width)``, rows ``(b, height * width, channels)``, or, with `levels`,
                ids ``(b, height * width)``.
            mask: ``(b, height, width)`` of images, else ``(b, height * width)``; bool, True = real pixel. The others
                count as zeros, and a patch without any real pixel does not count at all.

        Raises:
            ValueError: x or mask of another shape or type.
        """
        return self.run(x, mask).logits

    def run(self, x: Tensor, mask: Tensor | None = None) -> Classified:
        """Logits, and the loss that mixers add."""
        return self.classifier.run(*self.patches(x, mask))

    def patches(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The tokens ``(b, patches, patch_size^2 * channels)``, row by row within and without; and which are real."""
        pixels = self._rows(x)
        sizes = {"h": self.image_size[0] // self.patch_size, "p": self.patch_size, "q": self.patch_size}
        if mask is not None:
            check_mask(mask, (x.shape[0], *self.image_size) if x.dim() == 4 else tuple(x.shape[:2]), of="pixel")
            mask = mask.flatten(1)
            pixels = pixels.masked_fill(~mask[..., None], 0.0)
            mask = rearrange(mask, "b (h p w q) -> b (h w) (p q)", **sizes).any(-1)
        return rearrange(pixels, "b (h p w q) c -> b (h w) (p q c)", **sizes), mask

    def _rows(self, x: Tensor) -> Tensor:
        """Pixels ``(b, height * width, channels)`` of any input there is."""
        count = self.image_size[0] * self.image_size[1]
        shape, floating = tuple(x.shape[1:]), x.is_floating_point()
        if floating and shape == (self.channels, *self.image_size):
            return rearrange(x, "b c y x -> b (y x) c")
        if floating and shape == (count, self.channels):
            return x
        integers = not floating and not x.is_complex() and x.dtype != torch.bool
        if integers and shape == (count,) and self.levels is not None:
            x, dtype = x.long(), next(self.classifier.head.parameters()).dtype
            # Elsewhere than on the CPU a look at them would wait for all the device has to do.
            known = x.numel() and x.device.type == "cpu" and not torch.compiler.is_compiling()
            if known and not 0 <= int(x.min()) <= int(x.max()) <= self.levels:
                raise ValueError(f"ids ({int(x.min())} to {int(x.max())}) must be 1 to {self.levels}, or 0 for padding")
            return ((x - 1).to(dtype) * (2 / (self.levels - 1)) - 1)[..., None]
        ids = "" if self.levels is None else f", or ids (batch, {count})"
        raise ValueError(
            f"input must be images (batch, {self.channels}, {self.image_size[0]}, {self.image_size[1]}) or rows "
            f"(batch, {count}, {self.channels}) of floating-point numbers{ids}; got {x.dtype} of shape {tuple(x.shape)}"
        )
