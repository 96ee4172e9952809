"""Images on their way to the backbone take no more than their places, and small ones go first."""

import asyncio

from headkit.export.serving.admission import Admission


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_images_and_pixels_have_a_limit_and_the_smallest_goes_first() -> None:
    async def run() -> None:
        admission, entered = Admission(images=3, pixels=100), list[int]()

        async def enter(pixels: int) -> None:
            await admission.enter(pixels)
            entered.append(pixels)

        tasks = [asyncio.ensure_future(enter(pixels)) for pixels in (90, 80, 5, 70, 4, 500)]
        await settle()
        assert entered == [90, 5, 4]  # 80 does not fit; after 4 all images have their places
        admission.decoded(90)
        await settle()
        assert entered == [90, 5, 4]
        admission.leave()
        await settle()
        assert entered == [90, 5, 4, 70]
        for pixels in (5, 4, 70):
            admission.decoded(pixels)
            admission.leave()
        await settle()
        assert entered == [90, 5, 4, 70, 80]
        admission.decoded(80)
        admission.leave()
        await settle()
        assert entered[-1] == 500  # it is alone
        assert all(task.done() for task in tasks)
        admission.decoded(500)
        admission.leave()
        assert (admission._images, admission._pixels) == (0, 0)

    asyncio.run(run())


def test_requests_that_are_cancelled_keep_no_place() -> None:
    async def run() -> None:
        admission = Admission(images=1, pixels=100)
        await admission.enter(10)
        tasks = [asyncio.ensure_future(admission.enter(10)) for _ in range(5)]
        await settle()
        admission.decoded(10)
        admission.leave()  # lets the first one in, and in the same moment it is cancelled
        for task in tasks[:4]:
            task.cancel()
        await settle()
        assert [task.cancelled() for task in tasks] == [True] * 4 + [False]
        assert (admission._images, admission._pixels) == (1, 10)

    asyncio.run(run())
