"""The numbers that tokens and pictures of the embedded model share."""

from __future__ import annotations

IMAGE_SIZE, PATCH_SIZE = 96, 8
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
