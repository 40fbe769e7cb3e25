import io
import pickle

import numpy as np
import pytest
import torch
from cv_core.data.readers.pictures import Decoded, decode_image, decode_mask
from cv_core.data.root import CorruptData
from PIL import Image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encode(array, form="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form, **options)
    return stream.getvalue()


def test_colour_and_grey():
    image = decode_image(encode(COLOUR))
    np.testing.assert_array_equal(image.numpy(), COLOUR.transpose(2, 0, 1) / np.float32(255))
    assert image.dtype == torch.float32
    grey = decode_image(encode(COLOUR[..., 0]))
    np.testing.assert_array_equal(grey[0].numpy(), COLOUR[..., 0] / np.float32(255))
    three = decode_image(encode(COLOUR[..., 0]), channels="rgb")
    assert torch.equal(three, grey.expand(3, -1, -1))


def test_sixteen_bits_keep_their_depth():
    deep = RNG.integers(0, 65536, (4, 5)).astype(np.uint16)
    np.testing.assert_allclose(decode_image(encode(deep))[0].numpy(), deep / 65535, rtol=1e-6)
    assert decode_image(encode(deep), channels="rgb").shape == (3, 4, 5)


def test_bilevel_picture():
    assert decode_image(encode(np.eye(4, dtype=bool)))[0].tolist() == np.eye(4).tolist()
    assert decode_mask(encode(np.eye(4, dtype=bool))).tolist() == np.eye(4).tolist()


def test_palette_keeps_colours_as_image_and_indices_as_mask():
    stream = io.BytesIO()
    picture = Image.fromarray(np.array([[0, 2], [1, 2]], dtype=np.uint8), mode=None)
    picture = picture.convert("P")
    picture.putdata([0, 2, 1, 2])
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(stream, "PNG")
    assert decode_mask(stream.getvalue()).tolist() == [[0, 2], [1, 2]]
    assert decode_image(stream.getvalue())[1].tolist() == [[0, 1], [0, 1]]


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture is to be turned by 90 degrees clockwise
    image = decode_image(encode(COLOUR, exif=exif))
    assert torch.equal(image, decode_image(encode(COLOUR)).rot90(-1, (1, 2)))


@pytest.mark.parametrize("content", [b"", b"no picture", encode(COLOUR)[:60]])
def test_broken_pictures_are_refused_by_name(content, tmp_path):
    with pytest.raises(CorruptData, match="holiday"):
        decode_image(content, name="holiday")
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(CorruptData, match=r"broken\.png"):
        decode_image(tmp_path / "broken.png")


def test_coloured_masks_are_refused():
    with pytest.raises(CorruptData, match="one channel"):
        decode_mask(encode(COLOUR))


def _double(item):
    return 2 * item


def test_decoded_is_a_sequence():
    samples = Decoded([1, 2, 3, 4], _double)
    assert list(samples) == [2, 4, 6, 8]
    assert samples[-1] == 8
    assert list(samples[1:3]) == [4, 6]
    assert list(samples.select(np.array([3, 0]))) == [8, 2]
    with pytest.raises(IndexError):
        samples[4]
    sent = pickle.loads(pickle.dumps(Decoded([b"ab", b"c"], len)))  # noqa: S301 - made here
    assert list(sent) == [2, 1]
