"""Halve the pixels of the largest images and video frames; larger ones are scaled down."""

from oomguard.strategy import (
    NEW_RECIPE,
    TRAINING,
    Job,
    Kind,
    Phase,
    Plan,
    Remedy,
    Strategy,
    replace,
)

#: Vision towers were trained on images of at least this size.
LEAST_IMAGE = 224 * 224
#: Frames come in numbers, and show less each.
LEAST_FRAME = 112 * 112


def change(_job: Job, plan: Plan) -> Plan | str:
    """Halve both areas, down to 224 x 224 for an image and 112 x 112 for a frame."""
    changed = replace(
        plan,
        image_pixels=_halved(plan.image_pixels, LEAST_IMAGE),
        video_pixels=_halved(plan.video_pixels, LEAST_FRAME),
    )
    if changed != plan:
        return changed
    if plan.image_pixels is None and plan.video_pixels is None:
        return "the job has no images, or the framework has no limit for them"
    return "they are small already"


def _halved(pixels: int | None, least: int) -> int | None:
    return pixels if pixels is None or pixels <= least else max(least, pixels // 2)


STRATEGY = Strategy(
    summary="halve the pixels of the largest images and video frames",
    fidelity=NEW_RECIPE,
    remedies=frozenset(
        {
            Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.BATCH}),
            Remedy(kind=Kind.HOST_OOM, phases=frozenset({Phase.BATCH})),
        }
    ),
    change=change,
    otherwise="the job has no images, or they are small already",
    repeat=True,
)
