"""SYNTHIA-RAND-CITYSCAPES: single rendered pictures of a city, 1280x760, with the classes of Cityscapes.

Source: the SYNTHIA data set, 9,400 pictures. Labels: 16-bit PNG with 3 channels, the class id in the first (red) one
and an instance id in the second. The ids are not those of SYNTHIA-Seq.
"""

from stcl.data.datasets.stills import NumberedStills


class SynthiaRand(NumberedStills):
    """The whole data set."""

    name = "synthia_rand"
    pictures, labels = ("RGB",), ("GT", "LABELS")
    layout = "<root>/RGB/<number>.png with <root>/GT/LABELS/<number>.png"
    native_size = (1280, 760)
    citation = "Ros et al., The SYNTHIA Dataset, CVPR 2016"
    label_channel = 0
