"""The network of the fixture `make_classifier`, for tests that build it in another way."""

from art_entropic.backends.architecture import Conv, Dense, Flatten

ARCHITECTURE = (
    Conv(3, 3, padding=1, activation="relu"),
    Conv(4, 3, stride=2, padding=1, activation="silu"),
    Flatten(),
    Dense(8),
    Dense(3, None),
)
