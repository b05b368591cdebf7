# SPDX-License-Identifier: Apache-2.0
"""Takes the handbook's pictures: ``PYTHONPATH=. .venv/bin/python docs/screenshots.py [FOLDER]``.

It runs some of the example DAGs on a real Airflow, against the simulator and SeaweedFS, and takes the pictures
with Chromium. It writes ``docs/images/``: a run's page, a mapped task, the XCom of both operators, the gallery, the spend,
a review, and the images themselves. (``tests/browser`` takes the connection form's picture, with ``SCREENSHOTS=1``.)
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from playwright.sync_api import sync_playwright

from airflow_provider_getimg.testing.server import SimulatorProcess
from devstack import Airflow, SeaweedFS, StackError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mypy_boto3_s3.client import S3Client
    from playwright.sync_api import Page

REPOSITORY = Path(__file__).parents[1]
PICTURES = REPOSITORY / "docs" / "images"
BUCKET = "my-bucket"
DAILY, MAPPED = "getimg_daily_image", "getimg_mapped_prompts"
BATCH, VIDEO, REVIEW = "getimg_nightly_batch", "getimg_product_video", "getimg_review_before_publish"
SUBJECTS = ["a lighthouse", "a red fox", "a night train"]
WIDTH = 1400
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TIMEOUT_MS = 30_000
# Of the strip of images, in pixels.
HEIGHT, GAP = 240, 12
# A screenshot of a UI needs no more.
COLOURS = 256


def take_all(folder: Path) -> None:
    """Run the DAGs, and write all pictures into ``folder``.

    :raises devstack.StackError: There is no browser, a server did not start, or a run failed.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="getimg-screenshots-")))
        simulator = stack.enter_context(SimulatorProcess(latency=0.5))
        seaweedfs = stack.enter_context(SeaweedFS())
        seaweedfs.create_bucket(BUCKET)
        airflow = stack.enter_context(
            Airflow(
                home / "airflow",
                [REPOSITORY / "dags"],
                env={
                    "AIRFLOW_CONN_GETIMG_DEFAULT": simulator.connection(),
                    "AIRFLOW_CONN_AWS_DEFAULT": seaweedfs.aws_connection(),
                    "AIRFLOW_VAR_GETIMG_BUCKET": BUCKET,
                    "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
                },
            )
        )
        airflow.create_pool("getimg", 4)
        daily = airflow.run_dag(DAILY)
        mapped = airflow.run_dag(MAPPED, {"subjects": SUBJECTS})
        airflow.run_dag(BATCH)
        airflow.run_dag(VIDEO)
        airflow.wait_for_dag(REVIEW)
        airflow.unpause(REVIEW)
        review = airflow.trigger(REVIEW)
        task = f"/dags/{REVIEW}/dagRuns/{review}/taskInstances/review"
        if not airflow.poll(lambda: airflow.request("GET", task)["state"] == "awaiting_input", 120):
            raise StackError(f"The run {review} of {REVIEW} does not wait for a person.")
        rows = airflow.xcom(DAILY, daily, "save_to_s3") + airflow.xcom(MAPPED, mapped, "save_to_s3")
        _strip(_images(seaweedfs.client(), rows), folder / "images.png")
        page = stack.enter_context(_browser())
        _take_ui(page, airflow.url, daily, mapped, review, folder)


def _images(client: S3Client, rows: Sequence[dict[str, Any]]) -> list[Image.Image]:
    contents = [client.get_object(Bucket=row["bucket"], Key=row["key"])["Body"].read() for row in rows]
    return [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]


def _strip(images: Sequence[Image.Image], target: Path) -> None:
    """Put images side by side, all at the same height."""
    scaled = [
        image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)
        for image in images
    ]
    width = sum(image.width for image in scaled) + GAP * (len(scaled) - 1)
    strip = Image.new("RGB", (width, HEIGHT), "white")
    left = 0
    for image in scaled:
        strip.paste(image, (left, 0))
        left += image.width + GAP
    strip.save(target, optimize=True)


@contextmanager
def _browser() -> Iterator[Page]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise StackError(f"There is no browser: none of {', '.join(BROWSERS)} is installed.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, headless=True, args=ARGUMENTS)
        page = browser.new_page(
            locale="en-US",
            timezone_id="UTC",
            color_scheme="light",
            reduced_motion="reduce",
        )
        page.set_default_timeout(TIMEOUT_MS)
        yield page
        browser.close()


def _take_ui(page: Page, url: str, daily: str, mapped: str, review: str, folder: Path) -> None:
    def take(name: str, path: str, height: int, *shown: str) -> None:
        page.set_viewport_size({"width": WIDTH, "height": height})
        page.goto(f"{url}/{path}")
        if name.startswith("xcom"):
            page.get_by_role("button", name="Expand all extra JSON").click()
        for text in shown:
            page.get_by_text(text).first.wait_for()
        # The grid on the left fades in.
        page.wait_for_timeout(1000)
        picture = page.screenshot(animations="disabled", caret="hide")
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        image.quantize(COLOURS).save(folder / f"{name}.png", optimize=True)

    run = f"dags/{DAILY}/runs/{daily}"
    take("dag-run", run, 560, "TransferToS3Operator")
    take("mapped-tasks", f"dags/{MAPPED}/runs/{mapped}/tasks/generate_images/mapped", 640, SUBJECTS[0])
    take("xcom-generate", f"{run}/tasks/generate_image/xcom", 760, "deletes_at")
    take("xcom-transfer", f"{run}/tasks/save_to_s3/xcom", 800, "sha256")
    take("gallery", "getimg/images/", 900, "The camera moves")
    take("spend", "getimg/spend/", 900, BATCH)
    take(
        "review",
        f"dags/{REVIEW}/runs/{review}/tasks/review/required_actions",
        1000,
        "a night train, as a poster",
    )


def main() -> int:
    """Run the command line in the module's docstring."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    try:
        take_all(folder)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The pictures are in {folder}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
