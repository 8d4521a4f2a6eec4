"""Images, volumes and series with their channels first, mixed by any mixer."""

from torch import Tensor, nn

from tsla.mixers.base import Mixed, Mixer
from tsla.ops.checks import check_mask


class ChannelFirst(nn.Module):
    """A mixer over ``(b, channels, *space)``: the places of any number of axes, row by row, are its tokens.

    >>> layer = ChannelFirst(TaylorAttention(dim=64, heads=4))
    >>> y = layer(torch.randn(2, 64, 32, 32))  # (2, 64, 32, 32)

    A causal mixer sees what comes earlier in that order: all rows above, and the row itself up to the place.

    Args:
        mixer: its `dim` is the number of channels; built with ``output_projection=False`` it gives `width` of them.
    """

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def mix(self, x: Tensor, *, mask: Tensor | None = None, side: Tensor | None = None) -> Mixed:
        """Mix the places; the loss and the second stream of the mixer come back as it gives them.

        Args:
            x: ``(b, channels, *space)``, at least one axis of space.
            mask: ``(b, *space)`` bool, True = real place.
            side: the stream that the layer before returned, in the mixer's own shape.

        Returns:
            output ``(b, channels, *space)``; side; aux.

        Raises:
            ValueError: x or mask of another shape or type.
        """
        dim = self.mixer.dim
        if x.dim() < 3 or x.shape[1] != dim:
            raise ValueError(f"x must have shape (batch, {dim}, *space), got {tuple(x.shape)}")
        batch, space = x.shape[0], x.shape[2:]
        check_mask(mask, (batch, *space), of="place")
        tokens = None if mask is None else mask.flatten(1)
        mixed = self.mixer.mix(x.flatten(2).transpose(1, 2), mask=tokens, side=side)
        return mixed._replace(output=mixed.output.transpose(1, 2).unflatten(2, space))

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """``mix(...).output`` of a mixer that gives nothing else.

        Raises:
            ValueError: as in `mix`; or the mixer gives a loss or a second stream, which would be lost here.
        """
        output, side, aux = self.mix(x, mask=mask)
        for name, more in (("a loss (aux)", aux), ("a second stream (side)", side)):
            if more is not None:
                raise ValueError(f"{type(self.mixer).__name__} gives {name} beside its output: call mix instead")
        return output
