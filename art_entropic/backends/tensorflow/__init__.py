"""TensorFlow, with Keras 3."""

from art_entropic.backends.tensorflow.quiet import import_quietly

import_quietly()
