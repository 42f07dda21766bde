"""Cityscapes: single labelled pictures of city driving, 2048x1024.

Source: Cityscapes packages leftImg8bit and gtFine: 2,975 train and 500 val pictures. Labels are 8-bit PNG of Cityscapes
label ids. With the frames before each picture it is the data set `cityscapes_seq`.
"""

from stcl.data.datasets.cities import Cities


class Cityscapes(Cities):
    """Root holds ``leftImg8bit``, and ``gtFine`` where labels are wanted."""

    name = "cityscapes"
    layout = (
        "<root>/leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png with "
        "<root>/gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png"
    )
    package = "leftImg8bit"
    step = 0
